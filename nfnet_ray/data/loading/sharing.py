"""Sharing of batches: one process of a node makes a batch, and others that need the same one copy it from memory.

Processes share batches if these depend on the same values (:mod:`nfnet_ray.data.loading.stream`). No process makes
batches for others alone: a process that needs a batch that no other has made or is making makes it. While another
process makes the batch that it needs, it makes one of the following batches. So each of k processes side by side makes
one batch of k. It does not matter which of them is faster, starts later, or dies.

A process that is alone, or whose position is too far from all others, uses its own loader, which reads ahead.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from nfnet_ray.data.loading.free_memory import free_bytes
from nfnet_ray.data.loading.stream import Record, Stream, slot_bytes

VARIABLE = "NFNET_RAY_SHARED_BATCHES"
"""The environment variable: ``0`` turns sharing off, ``1`` turns it on for GPUs too."""
SHARE_OF_MEMORY = 1 / 16
"""The largest share of the memory that is free when a stream begins, which its batches may take."""
REACH = 4
"""Members that are further apart than this multiple of the slots do not share: at a distance of r times the slots, the
one behind would find one batch of r."""
LOOK_SECONDS = 0.0005
"""The time between two looks at a batch that another process makes, which takes milliseconds."""
LOOK_SECONDS_WHEN_FULL = 0.1
"""The time after which a thread that has read far enough ahead looks whether it should end."""
LEAST_PATIENCE_SECONDS = 5.0
PATIENCE = 4.0
"""How long to wait for a batch that another process makes: this multiple of the time that one takes here, but at least
the seconds. This is much longer than any batch takes, and a run can afford to lose it once if a process stops."""

Records = Generator[Record, None, None]
Make = Callable[[Sequence[int]], Records]
"""A function that makes the batches with these numbers, one after the other."""

logger = logging.getLogger(__name__)


class Sharing:
    """The participation of a worker in the sharing of batches, during a run. Close it, or use ``with``."""

    def __init__(self, is_on: bool = True, folder: Path | None = None) -> None:
        """``folder`` is that of :meth:`Stream.join`."""
        self.is_on = is_on and os.environ.get(VARIABLE) != "0"
        self._pins = False
        self._folder = folder
        self._stream: Stream | None = None
        self._seconds_of_one = 0.0
        self.made, self.taken = 0, 0
        """The numbers of batches that this process made and took from others since :meth:`reset_counts`."""

    def __enter__(self) -> Sharing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_on_for(self, device: torch.device) -> bool:
        """Whether batches for this device are shared; for GPUs only if the environment variable says so."""
        return self.is_on and (device.type == "cpu" or os.environ.get(VARIABLE) == "1")

    def close(self) -> None:
        """Leaves the stream."""
        if self._stream is not None:
            self._stream.leave()
        self._stream, self.is_on = None, False

    def reset_counts(self) -> None:
        """Sets both counts to 0."""
        self.made, self.taken = 0, 0

    def batches(
        self, key: str, content_bytes: int, numbers: range, make: Make, *, pins: bool = False
    ) -> Records:
        """Yields the batches with these numbers from the stream of this key.

        Args:
            key: a text with everything on which the batches depend.
            content_bytes: the bytes of the tensors of the stream's largest batch.
            numbers: consecutive numbers of batches.
            make: a function that is called with some consecutive numbers and makes these batches.
            pins: whether to copy the batches of others to pinned memory, from which a GPU copies asynchronously.
        """
        self._pins = pins
        self._join(key, content_bytes, numbers.start)
        number = numbers.start
        while number < numbers.stop:
            if self._has_partner(number):
                record = self._shared(number, numbers.stop, make)
                number += 1
                self._move_to(number)
                yield record
                continue
            own = make(range(number, numbers.stop))
            for record in own:
                number += 1
                self.made += 1
                self._move_to(number)
                yield record
                if self._has_partner(number):
                    break
            own.close()

    # ---- One batch ------------------------------------------------------------------------------------------------

    def _shared(self, number: int, stop: int, make: Make) -> Record:
        """A batch that another process or this one has made."""
        patience = max(LEAST_PATIENCE_SECONDS, PATIENCE * self._seconds_of_one)
        give_up_at = time.monotonic() + patience
        while self._stream is not None:
            try:
                record = self._taken(number) or self._made(number, make, ahead=False)
                if record is not None:
                    return record
                if self._make_ahead(number, stop, make):
                    continue
            except OSError as error:
                self._end(error)
                break
            if time.monotonic() > give_up_at:
                logger.warning(
                    "loading: another process makes a batch for over %.1f s; it is made here", patience
                )
                break
            time.sleep(LOOK_SECONDS)
        return self._one(number, make)

    def _taken(self, number: int) -> Record | None:
        assert self._stream is not None
        found = self._stream.read(number, self._empty)
        if found is None:
            return None
        if not found.is_own:
            self.taken += 1
        return found.record

    def _made(self, number: int, make: Make, *, ahead: bool) -> Record | None:
        """Makes a batch and publishes it; None if another process does so now, or has just done so."""
        stream = self._stream
        assert stream is not None
        if not stream.claim(number):
            return None
        try:
            if stream.has(number):
                return None if ahead else self._taken(number)
            own = [number] if ahead else []
            if ahead and not stream.has_place_for(number, needed_by=stream.others() + own):
                return None
            record = self._one(number, make)
            stream.publish(number, record, needed_by=stream.others() + own)
            return record
        finally:
            with suppress(OSError):
                stream.release(number)

    def _make_ahead(self, number: int, stop: int, make: Make) -> bool:
        """Makes one of the next batches, which no other member makes. Returns False if there is none to make."""
        stream = self._stream
        assert stream is not None
        most = min(2 * (1 + len(stream.others())), stream.slots - 1)
        for later in range(number + 1, min(number + most, stop)):
            if stream.has(later):
                continue
            # An error in it is raised later, when the batch is needed.
            with suppress(Exception):
                if self._made(later, make, ahead=True) is not None:
                    return True
        return False

    def _one(self, number: int, make: Make) -> Record:
        start = time.perf_counter()
        (record,) = make([number])
        self._seconds_of_one = time.perf_counter() - start
        self.made += 1
        return record

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self._pins)

    # ---- The stream; without one, a worker is alone ------------------------------------------------------------------

    def _join(self, key: str, content_bytes: int, number: int) -> None:
        if self._stream is None and self.is_on:
            try:
                most_bytes = int(SHARE_OF_MEMORY * free_bytes())
                self._stream = Stream.join(key, slot_bytes(content_bytes), most_bytes, self._folder)
            except OSError as error:
                self._end(error)
        self._move_to(number)

    def _has_partner(self, number: int) -> bool:
        """Whether the batch is in the stream, or another member is near enough to share batches."""
        if self._stream is None:
            return False
        try:
            reach = REACH * self._stream.slots
            is_near = any(abs(number - other) <= reach for other in self._stream.others())
            return is_near or self._stream.has(number)
        except OSError as error:
            self._end(error)
            return False

    def _move_to(self, number: int) -> None:
        if self._stream is None:
            return
        try:
            self._stream.move_to(number)
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        logger.info("loading: batches are not shared with other processes of this node (%s)", error)
        self.close()


@contextmanager
def ahead(records: Records, count: int) -> Generator[Iterator[Record]]:
    """Reads up to ``count`` records ahead, in a thread that ends with the context. Errors are raised in order."""
    waiting: queue.Queue[Record | BaseException | None] = queue.Queue(count)
    over = threading.Event()

    def put(item: Record | BaseException | None) -> None:
        while not over.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=LOOK_SECONDS_WHEN_FULL)
                return

    def take() -> None:
        try:
            for record in records:
                put(record)
                if over.is_set():
                    break
            records.close()
        except BaseException as error:  # raised by the consumer
            put(error)
        else:
            put(None)

    def arriving() -> Iterator[Record]:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=take, name="shared-batches", daemon=True)
    thread.start()
    try:
        yield arriving()
    finally:
        over.set()
        thread.join()


def source_digest(paths: Iterable[Path]) -> str:
    """A hash of source files, since other code may make other batches."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
