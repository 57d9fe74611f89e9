"""The checkpoints of one run. Each is complete, with a checksum, or does not exist.

A checkpoint has two files: ``step-00000123-1f0c9a2e.pt`` with the state, and an entry, a ``.json`` of the same name
that is written afterwards. The entry has the length and BLAKE2b hash of the state, the time at which it was taken, and
the metric of its epoch. A state without an entry is ignored. No name is used twice, so a worker that was believed dead
but still writes cannot damage a checkpoint of its successor.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any

import torch

from nfnet_ray.training.checkpoints.storage import Storage, storage_at

logger = logging.getLogger(__name__)

State = Mapping[str, Any]

_ENTRY = re.compile(r"step-(\d{8})-[0-9a-f]{8}\.json")
_STATE = re.compile(r"step-\d{8}-[0-9a-f]{8}\.pt")
_PIECE_BYTES = 1 << 22
_LOADED_BYTES = 1 << 26  # larger than a piece, since each read of an object store is a request


@dataclass(frozen=True)
class Kept:
    """The numbers of checkpoints to keep: the ``last`` ones, and the ``best`` ones among those with a metric."""

    last: int = 2  # the newest, and the previous one in case the newest is damaged
    best: int = 1


DEFAULT_KEPT = Kept()


@dataclass(frozen=True)
class Entry:
    """The description of a checkpoint, as its ``.json`` file holds it.

    ``step`` and ``epoch`` count optimiser steps and finished epochs. ``metric`` is that of the last finished epoch, and
    None within an epoch. ``written_at`` is the time at which the state was taken, in seconds of the system's clock.
    """

    name: str
    step: int
    epoch: int
    bytes: int
    blake2b: str
    written_at: float
    metric: float | None


class CheckpointStore:
    """Writes, finds and removes the checkpoints of one run in a :class:`Storage`."""

    def __init__(self, place: str | os.PathLike[str], kept: Kept = DEFAULT_KEPT) -> None:
        self._storage: Storage = storage_at(place)
        self._kept = kept

    @property
    def place(self) -> str:
        """The path or URI of the storage, without secrets."""
        return self._storage.place

    def save(
        self,
        state: State,
        *,
        step: int,
        epoch: int,
        time: float,
        metric: float | None,
        wrote: Callable[[], object] = lambda: None,
    ) -> Entry:
        """Writes ``state`` as a checkpoint, then removes the checkpoints that need not be kept.

        Args:
            state: tensors and plain values, in dictionaries and lists.
            step: the number of optimiser steps done.
            epoch: the number of finished epochs.
            time: the time at which the state was taken, in seconds of the system's clock.
            metric: the metric of the last finished epoch, of which larger is better; None within an epoch.
            wrote: a function that is called after each piece of the state that is written.

        Raises:
            OSError: the checkpoint cannot be written. Earlier checkpoints are not changed.
        """
        name = f"step-{step:08d}-{secrets.token_hex(4)}"
        hashing = _Hashing(wrote)

        def content(file: IO[bytes]) -> None:
            hashing.file = file
            try:
                torch.save(dict(state), hashing)  # pyrefly: ignore[bad-argument-type]  # it needs write and flush alone
            except RuntimeError:  # torch raises this in place of the OSError of the disk
                if hashing.error is not None:
                    raise hashing.error from None
                raise

        self._storage.write(f"{name}.pt", content)
        entry = Entry(name, step, epoch, hashing.bytes, hashing.digest(), time, metric)
        described = json.dumps(asdict(entry), indent=1).encode()
        self._storage.write(f"{name}.json", lambda file: file.write(described))
        self._remove_old()
        return entry

    def entries(self) -> list[Entry]:
        """The entries of all checkpoints, newest first."""
        entries = []
        for name in self._storage.names():
            if not _ENTRY.fullmatch(name):
                continue
            try:
                with self._storage.open(name) as file:
                    entries.append(Entry(**json.loads(file.read())))
            except (OSError, ValueError, TypeError) as error:
                logger.warning("%s/%s: not the entry of a checkpoint (%s); left out", self.place, name, error)
        return sorted(entries, key=lambda entry: (entry.step, entry.written_at), reverse=True)

    def best(self) -> Entry | None:
        """The checkpoint with the largest metric; None if no checkpoint has a metric."""
        rated = [entry for entry in self.entries() if entry.metric is not None]
        return max(rated, key=lambda entry: (entry.metric, entry.step), default=None)

    def latest_sound(self, read: Callable[[], object] = lambda: None) -> Entry | None:
        """The newest checkpoint whose bytes match its hash; None if there is none. Warns of each damaged one.

        ``read`` is called after each piece that is read.
        """
        for entry in self.entries():
            reason = self.damage(entry, read)
            if reason is None:
                return entry
            logger.warning(
                "checkpoint %s/%s.pt is damaged (%s): using the one before it", self.place, entry.name, reason
            )
        return None

    def damage(self, entry: Entry, read: Callable[[], object] = lambda: None) -> str | None:
        """Why the bytes do not match the entry; None if they do. ``read`` is called after each piece that is read."""
        try:
            with self._storage.open(f"{entry.name}.pt") as file:
                found, digest = 0, hashlib.blake2b(digest_size=16)
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
                    found += len(piece)
                    read()
        except OSError as error:
            return error.strerror or str(error)
        if found != entry.bytes:
            return f"{found} bytes, not {entry.bytes}"
        return None if digest.hexdigest() == entry.blake2b else "its bytes are not those that were written"

    def load(self, entry: Entry, read: Callable[[], object] = lambda: None) -> State:
        """Loads the state to the CPU. Reads only tensors and plain values, and runs no code from the file.

        ``read`` is called after each piece that is read.
        """
        with self._storage.open(f"{entry.name}.pt") as file:
            pieces: Any = _InPieces(file, read)
            state: State = torch.load(pieces, map_location="cpu", weights_only=True)
        return state

    def probe(self, name: str, token: bytes) -> None:
        """Writes a small file and reads it again. Raises OSError if that fails or if the content differs."""
        self._storage.write(name, lambda file: file.write(token))
        if self.read_probe(name) != token:
            raise OSError(f"{self.place}/{name} does not read as it was written")

    def read_probe(self, name: str) -> bytes:
        """Reads a file that :meth:`probe` has written, perhaps on another machine. Raises OSError if that fails."""
        with self._storage.open(name) as file:
            return file.read()

    def remove_probe(self, name: str) -> None:
        """Removes a file of :meth:`probe`. Ignores errors."""
        with contextlib.suppress(OSError):
            self._storage.remove(name)

    def remove_leftovers(self) -> None:
        """Removes the files of writers that were killed: partial files, and states without an entry."""
        with contextlib.suppress(OSError):
            self._storage.remove_partial()
            known = {entry.name for entry in self.entries()}
            for name in self._storage.names():
                if _STATE.fullmatch(name) and name.removesuffix(".pt") not in known:
                    self._storage.remove(name)

    def _remove_old(self) -> None:
        entries = self.entries()
        rated = [entry for entry in entries if entry.metric is not None]
        rated.sort(key=lambda entry: (entry.metric, entry.step), reverse=True)
        stay = {entry.name for entry in (*entries[: self._kept.last], *rated[: self._kept.best])}
        for entry in entries:
            if entry.name not in stay:
                with contextlib.suppress(OSError):  # the new one is written; a superfluous one does no harm
                    self._storage.remove(f"{entry.name}.json")  # first, so that no entry is without its state
                    self._storage.remove(f"{entry.name}.pt")


class _InPieces(io.RawIOBase):
    """A file that is read in pieces. ``read`` is called after each piece."""

    def __init__(self, file: IO[bytes], read: Callable[[], object]) -> None:
        self._file, self._was_read = file, read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        view, at = memoryview(buffer).cast("B"), 0
        while at < len(view) and (piece := self._file.read(min(_LOADED_BYTES, len(view) - at))):
            view[at : at + len(piece)] = piece
            at += len(piece)
            self._was_read()
        return at


class _Hashing:
    """A file for :func:`torch.save` that writes the data to ``file`` in pieces, and hashes them.

    ``error`` is the OSError of a failed write. ``wrote`` is called after each piece.
    """

    def __init__(self, wrote: Callable[[], object]) -> None:
        self._wrote = wrote
        self.file: IO[bytes] | None = None
        self.error: OSError | None = None
        self.bytes = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        assert self.file is not None
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), _PIECE_BYTES):
                piece = view[start : start + _PIECE_BYTES]
                self._digest.update(piece)
                self.file.write(piece)
                self._wrote()
        except OSError as error:
            self.error = error
            raise
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Does nothing, since the storage flushes the file."""

    def digest(self) -> str:
        return self._digest.hexdigest()
