"""Images prepared in parallel, by threads here or by Ray's workers, and handed out in their order.

All that reads from the source does so in threads that can be left behind: a disk or a network share that does not
answer holds neither Ctrl-C nor, for ever, the conversion.
"""

from __future__ import annotations

import errno
import itertools
import math
import platform
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from data_prep.conversion.encode import EncodeSettings, StoredImage, prepare_image
from data_prep.sources.source import SourceImage
from nfnet_ray.data.decoding.pillow_image import UnreadableImageError
from nfnet_ray.data.loading.pool import LOOK_SECONDS, Job, Pool, Watch
from nfnet_ray.errors import UserError

READ_SECONDS = 120.0
"""A read that takes longer hangs: a network share whose server is started again comes back within this time."""
# Images in flight per worker: enough that none waits while the writer catches up on a large one.
_IN_FLIGHT_PER_WORKER = 8
# Images per Ray task: at some 5 ms of work each, Ray's own millisecond per task does not show.
_IMAGES_PER_TASK = 16
# Images that a source is asked for at a time: enough that handing them from thread to thread does not show.
_IMAGES_PER_READ = 16

T = TypeVar("T")
Prepared = Callable[[], StoredImage]
"""Waits for the image and gives it; raises UnreadableImageError, OSError or MemoryError as loading and preparing do."""


def in_threads(
    images: Iterator[SourceImage], encode: EncodeSettings, workers: int
) -> Generator[tuple[SourceImage, Prepared]]:
    """The images as they came, each with its result in the making; a bounded number at a time."""
    in_flight: deque[tuple[SourceImage, _InTheMaking]] = deque()
    pool = Pool(workers, deadline_seconds=math.inf)
    try:
        for image in _read_ahead(images):
            in_flight.append((image, _InTheMaking(pool, image, encode)))
            if len(in_flight) >= _IN_FLIGHT_PER_WORKER * workers:
                first, making = in_flight.popleft()
                yield first, making.result
        while in_flight:
            first, making = in_flight.popleft()
            yield first, making.result
    finally:
        for _, making in in_flight:
            making.job.cancel()


class _InTheMaking:
    """An image that a thread of the pool fetches and prepares."""

    def __init__(self, pool: Pool, image: SourceImage, encode: EncodeSettings) -> None:
        self._pool, self._image, self._encode = pool, image, encode
        self._stored: StoredImage | None = None
        self._reading_since: float | None = None
        self.job = pool.submit(1, self._prepare, lambda _: image.name)

    def _prepare(self, row: int) -> None:
        del row
        self._reading_since = time.monotonic()
        try:
            loaded = self._image.load()
        finally:
            self._reading_since = None
        self._stored = prepare_image(loaded, self._encode)

    def result(self) -> StoredImage:
        """Waits for it. Raises what loading and preparing it did, or OSError where its source does not answer."""
        watch = Watch()
        while not self.job.wait(LOOK_SECONDS):
            self._pool.check()
            if watch.look(self._reading_since) > READ_SECONDS:
                raise OSError(errno.ETIMEDOUT, f"no answer for {READ_SECONDS:.0f} s")
        assert self._stored is not None
        return self._stored


class _Call(Generic[T]):
    """A function that runs in its own thread."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._results: list[T] = []

    def start(self, pool: Pool) -> Job:
        return pool.submit(1, lambda _: self._results.append(self._function()), lambda _: "the source")

    @property
    def result(self) -> T:
        return self._results[0]


def in_own_thread(function: Callable[[], T]) -> T:
    """``function()``, left behind in its thread when this one is interrupted."""
    call, pool = _Call(function), Pool(1, deadline_seconds=math.inf)
    job = call.start(pool)
    while not job.wait(LOOK_SECONDS):
        pool.check()
    return call.result


def _read_ahead(images: Iterator[SourceImage]) -> Generator[SourceImage]:
    """The images, of which the next ones are read meanwhile.

    Raises:
        UserError: the source cannot be read, or does not answer.
    """
    pool = Pool(1, deadline_seconds=math.inf)

    def start() -> tuple[Job, _Call[list[SourceImage]], float]:
        call = _Call(lambda: list(itertools.islice(images, _IMAGES_PER_READ)))
        return call.start(pool), call, time.monotonic()

    job, call, since = start()
    while True:
        watch = Watch()
        try:
            while not job.wait(LOOK_SECONDS):
                pool.check()
                if watch.look(since) > READ_SECONDS:
                    raise OSError(errno.ETIMEDOUT, f"no answer for {READ_SECONDS:.0f} s")
        except OSError as error:  # of the source; those of the images' own files come with the images
            raise UserError(
                f"{error.filename or 'SOURCE'}: cannot be read ({error.strerror or error}); check the disk"
            ) from error
        found = call.result
        if not found:
            return
        job, call, since = start()
        yield from found


def in_ray_tasks(
    images: Iterator[SourceImage], encode: EncodeSettings
) -> Generator[tuple[SourceImage, Prepared]]:
    """Like :func:`in_threads`, in tasks on the Ray cluster that this process is connected to.

    Images that are files of their own, or members of a tar, are read in the task, so the workers need the
    source's folder under the same name. A worker that dies is replaced, and its images are done again.
    """
    from nfnet_ray.cluster.connection.parallel_map import map_in_order

    for image, outcome in map_in_order(
        partial(_attempt, encode), _read_ahead(images), items_per_task=_IMAGES_PER_TASK, describe=_name
    ):
        yield image, outcome.result


@dataclass(frozen=True)
class _Outcome:
    """A result, or why there is none: an exception about one image is not a failed task."""

    stored: StoredImage | None
    error: UnreadableImageError | OSError | MemoryError | None

    def result(self) -> StoredImage:
        if self.stored is None:
            assert self.error is not None
            raise self.error
        return self.stored


def _attempt(encode: EncodeSettings, image: SourceImage) -> _Outcome:
    try:
        return _Outcome(_InTheMaking(Pool(1, deadline_seconds=math.inf), image, encode).result(), None)
    except (UnreadableImageError, MemoryError) as error:
        return _Outcome(None, error.with_traceback(None))
    except OSError as error:  # of this machine, which is one of several
        reason = f"{error.strerror or error}, on {platform.node()}"
        return _Outcome(None, OSError(error.errno, reason, error.filename))


def _name(image: SourceImage) -> str:
    return image.name
