"""A conversion's progress, on disk, so that another process can resume it.

One line of JSON per image, in the order of the split: for a stored image its size in bytes, mode, height, width,
hash, the reason why it was re-encoded (or null), and its orientation tag; for an unreadable one the reason. A line
is written only after the image's bytes are on the disk, so a journal never promises more than there is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

SYNC_SECONDS = 5.0
"""A kill or a power failure costs the images of at most this time, and of the writing that was under way."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """An image whose bytes are in the beton."""

    size: int
    """Bytes."""
    mode: int
    height: int
    width: int
    hash: str
    re_encoded: str | None
    orientation: int = 1


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """An image that was left out."""

    reason: str


Record = StoredRecord | UnreadableRecord


class SplitJournal:
    """The journal of one split: replayed first, then appended to."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._path = path
        self._good_bytes = 0
        self._pending: list[bytes] = []

    def __enter__(self) -> SplitJournal:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def replay(self) -> Iterator[Record]:
        """The records that are there. One that the caller breaks off at is forgotten, and so are all after it."""
        with open(self._path, "rb") as file:
            for line in file:
                record = _parse(line)
                if (
                    record is None
                ):  # torn by a kill or a full disk; it is the last one, or nothing after it counts
                    return
                yield record
                self._good_bytes += len(line)

    def add(self, record: Record) -> None:
        """Note a record; :meth:`commit` writes it."""
        self._pending.append(_line(record))

    def commit(self) -> None:
        """Write what was added, to the disk. Call it after the images' bytes are there.

        Everything behind the last record that counts is overwritten: it was torn, forgotten, or is of a
        commit that failed half-way.
        """
        pending = b"".join(self._pending)
        os.ftruncate(self._descriptor, self._good_bytes)
        done = 0
        while done < len(pending):
            done += os.pwrite(self._descriptor, pending[done:], self._good_bytes + done)
        os.fsync(self._descriptor)
        self._good_bytes += len(pending)
        self._pending.clear()


def count_records(path: Path) -> int:
    """How many records a journal has, or 0 where there is none."""
    try:
        with open(path, "rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def _line(record: Record) -> bytes:
    if isinstance(record, UnreadableRecord):
        value: object = record.reason
    else:
        value = list(astuple(record))
    return json.dumps(value).encode() + b"\n"


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if isinstance(value, str):
        return UnreadableRecord(value)
    return (
        StoredRecord(*value) if isinstance(value, list) and len(value) == len(fields(StoredRecord)) else None
    )
