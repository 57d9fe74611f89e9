"""Shared memory in which processes of one node leave finished batches for each other.

A *stream* is the sequence of batches that one key describes, numbered from 0. It lies in an anonymous file in memory
(memfd), which has no name in any folder: the kernel frees it with the last process that has it open, also after
``kill -9``, so nothing is ever left behind. A process finds it through a list of (key, process, descriptor) in the
user's folder for temporary files, and opens it as ``/proc/PROCESS/fd/DESCRIPTOR``.

All exchanges are locks on bytes of that file (``F_OFD_SETLK``), which the kernel frees when their holder dies, however
it dies:

* Each *member* holds the lock of its row, in which it writes the number of the batch that it reads next.
* The member that makes a batch holds its *claim*, so that no other one makes it too.
* A *slot* holds one batch. A writer holds its lock alone, and readers share the lock. The number in the slot's entry is
  0 while it is written to. So nobody reads half a batch.

A batch is kept as long as some member still needs it. If all slots hold such batches, the one that is needed last is
replaced by a batch that is needed sooner. Nobody waits for a slow member: it finds that a batch is missing, and makes
it.

Failures are OSErrors, and no batch depends on the stream.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfnet_ray.data.loading.resident import own_folder

MOST_MEMBERS = 64
MOST_SLOTS = 1024
LEAST_SLOTS = 4  # with fewer, members that differ by a few steps could not share
LIST_SECONDS = 2.0  # a list is locked for well under a millisecond, unless its holder is stopped

_HEADER = struct.Struct("<16s32sQQ")  # magic, digest of the key, slots, bytes of one
_MAGIC = b"nfnet_ray strm 1"
_PAGE = 4096
_ROWS_AT, _TABLE_AT = _PAGE, 2 * _PAGE
_SLOTS_AT = _TABLE_AT + 8 * MOST_SLOTS
_RECORD_HEADER = struct.Struct("<QQ")  # bytes of the JSON that follows, and the member that made the batch
_JSON_BYTES = 2048

# Bytes that are locked to represent rows, slots and claims. They lie beyond the end of the file, which is allowed.
_ROW_LOCKS, _SLOT_LOCKS, _CLAIMS = 1 << 40, 1 << 41, 1 << 42
_LOCK = struct.Struct("@hhqqi4x")  # struct flock of a 64-bit Linux: type, whence, start, length, process
_NUMBER = struct.Struct("<q")

Record = Mapping[str, Tensor]
"""The contiguous tensors of one batch, by name."""
Empty = Callable[[Sequence[int], torch.dtype], Tensor]
"""A function that makes an uninitialised tensor in the host's memory."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A batch that was in the stream."""

    record: Record
    is_own: bool
    """Whether this member made it."""


def slot_bytes(content_bytes: int) -> int:
    """The size of a slot for records whose tensors have at most ``content_bytes`` bytes."""
    return -(-(_RECORD_HEADER.size + _JSON_BYTES + content_bytes) // _PAGE) * _PAGE


class Stream:
    """The membership of a process in a stream. :meth:`join` begins it, and :meth:`leave` ends it."""

    def __init__(self, descriptor: int, slots: int, bytes_of_slot: int) -> None:
        self._file, self.slots, self._slot_bytes = descriptor, slots, bytes_of_slot
        self._row, self._member = -1, secrets.randbits(64)

    @classmethod
    def join(cls, key: str, bytes_of_slot: int, most_bytes: int, folder: Path | None = None) -> Stream:
        """Joins the stream of this key, or creates it.

        Args:
            key: a text with everything on which the batches depend.
            bytes_of_slot: the size of a slot (:func:`slot_bytes`); the value of the creator is used.
            most_bytes: the most memory that all batches may take. Memory is allocated only as it is needed.
            folder: the folder of the list; by default one of this user in the folder for temporary files.

        Raises:
            OSError: the system has no such memory, or too little of it, or the stream has too many members.
        """
        if not hasattr(os, "memfd_create") or not hasattr(fcntl, "F_OFD_SETLK"):
            raise OSError(errno.ENOSYS, "memory can be shared on Linux only")
        digest = blake2b(key.encode(), digest_size=32).digest()
        # The namespace in which process numbers are valid.
        space = os.readlink("/proc/self/ns/pid").rpartition("[")[2].rstrip("]")
        with _List((folder or own_folder()) / f"streams-{space}") as members:
            stream = cls._found(digest, members) or cls._founded(digest, bytes_of_slot, most_bytes)
            try:
                stream._take_row()
            except OSError:
                stream.leave()
                raise
            members.add(digest.hex(), os.getpid(), stream._file)
        return stream

    @classmethod
    def _found(cls, digest: bytes, members: _List) -> Stream | None:
        for process, descriptor in members.of(digest.hex()):
            path = f"/proc/{process}/fd/{descriptor}"
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:  # it has left
                continue
            header = os.pread(file, _HEADER.size, 0)
            magic, found, slots, bytes_of_slot = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
            if (magic, found) == (_MAGIC, digest):
                return cls(file, slots, bytes_of_slot)
            os.close(file)
        return None

    @classmethod
    def _founded(cls, digest: bytes, bytes_of_slot: int, most_bytes: int) -> Stream:
        slots = min(MOST_SLOTS, most_bytes // bytes_of_slot)
        if slots < LEAST_SLOTS:
            raise OSError(
                errno.ENOMEM, f"{LEAST_SLOTS} batches of {bytes_of_slot / 1e6:,.0f} MB do not fit the memory"
            )
        file = os.memfd_create(_name(digest))
        os.ftruncate(file, _SLOTS_AT + slots * bytes_of_slot)  # takes no memory yet
        os.pwrite(file, _HEADER.pack(_MAGIC, digest, slots, bytes_of_slot), 0)
        return cls(file, slots, bytes_of_slot)

    def _take_row(self) -> None:
        for row in range(MOST_MEMBERS):
            if self._lock(fcntl.F_WRLCK, _ROW_LOCKS + row):
                self._row = row
                self.move_to(-1)
                return
        raise OSError(errno.EUSERS, f"{MOST_MEMBERS} processes share these batches already")

    def leave(self) -> None:
        """Ends the membership and frees its locks. The last member frees the memory."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    @property
    def held_bytes(self) -> int:
        """The memory that the stream takes now, in bytes."""
        return os.fstat(self._file).st_blocks * 512

    # ---- Members --------------------------------------------------------------------------------------------------

    def move_to(self, number: int) -> None:
        """Sets the number of the batch that this member reads next."""
        os.pwrite(self._file, _NUMBER.pack(number), _ROWS_AT + 8 * self._row)

    def others(self) -> list[int]:
        """The numbers of the batches that the other members will read next."""
        rows = np.frombuffer(os.pread(self._file, 8 * MOST_MEMBERS, _ROWS_AT), np.int64)
        return [
            int(rows[row])
            for row in np.flatnonzero(rows >= 0).tolist()
            if row != self._row and self._is_held(_ROW_LOCKS + row)
        ]

    # ---- Claims ---------------------------------------------------------------------------------------------------

    def claim(self, number: int) -> bool:
        """Claims a batch. Returns False if another member is making it."""
        return self._lock(fcntl.F_WRLCK, _CLAIMS + number)

    def release(self, number: int) -> None:
        """Ends a claim."""
        self._lock(fcntl.F_UNLCK, _CLAIMS + number)

    # ---- Batches --------------------------------------------------------------------------------------------------

    def has(self, number: int) -> bool:
        """Whether the batch is in the stream."""
        return bool((self._table() == number + 1).any())

    def read(self, number: int, empty: Empty) -> Found | None:
        """A copy of the batch; None if it is not in the stream."""
        for slot in np.flatnonzero(self._table() == number + 1).tolist():
            if not self._lock(fcntl.F_RDLCK, _SLOT_LOCKS + slot):
                continue  # it is being replaced
            try:
                if self._entry(slot) == number + 1:
                    return self._read(slot, empty)
            finally:
                self._lock(fcntl.F_UNLCK, _SLOT_LOCKS + slot)
        return None

    def has_place_for(self, number: int, *, needed_by: Sequence[int]) -> bool:
        """Whether :meth:`publish` would find a slot for it now."""
        return slot_for(number, self._table(), needed_by) is not None

    def publish(self, number: int, record: Record, *, needed_by: Sequence[int]) -> bool:
        """Writes a batch to a slot, if one of the members that read the batches ``needed_by`` next will need it.

        Returns whether the batch is in the stream. Only the member that has claimed the batch may call this.
        """
        table = self._table()
        slot = slot_for(number, table, needed_by)
        if slot is None or not self._lock(fcntl.F_WRLCK, _SLOT_LOCKS + slot):
            return False  # or someone still reads it
        try:
            if self._entry(slot) != table[slot]:
                return False
            self._set_entry(slot, 0)
            self._write(slot, record)
            self._set_entry(slot, number + 1)
        finally:
            self._lock(fcntl.F_UNLCK, _SLOT_LOCKS + slot)
        return True

    def _write(self, slot: int, record: Record) -> None:
        shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in record.items()}
        described = json.dumps(shapes).encode()
        content = sum(tensor.nbytes for tensor in record.values())
        if len(described) > _JSON_BYTES or slot_bytes(content) > self._slot_bytes:
            raise OSError(errno.EFBIG, f"a batch of {content:,} bytes is larger than it can be")
        header = _RECORD_HEADER.pack(len(described), self._member) + described
        offset = self._offset(slot)
        _write_all(self._file, memoryview(header), offset)
        offset += _RECORD_HEADER.size + _JSON_BYTES
        for tensor in record.values():
            _write_all(self._file, _bytes_of(tensor), offset)
            offset += tensor.nbytes

    def _read(self, slot: int, empty: Empty) -> Found:
        offset = self._offset(slot)
        header = os.pread(self._file, _RECORD_HEADER.size + _JSON_BYTES, offset)
        length, maker = _RECORD_HEADER.unpack_from(header)
        shapes = json.loads(header[_RECORD_HEADER.size : _RECORD_HEADER.size + length])
        offset += _RECORD_HEADER.size + _JSON_BYTES
        record = {}
        for name, (dtype, shape) in shapes.items():
            tensor = empty(shape, getattr(torch, dtype.removeprefix("torch.")))
            _read_all(self._file, _bytes_of(tensor), offset)
            offset += tensor.nbytes
            record[name] = tensor
        return Found(record, maker == self._member)

    def _offset(self, slot: int) -> int:
        return _SLOTS_AT + slot * self._slot_bytes

    def _table(self) -> NDArray[np.int64]:
        """(slots,) The number of each slot's batch plus 1; 0 for an empty slot."""
        return np.frombuffer(os.pread(self._file, 8 * self.slots, _TABLE_AT), np.int64)

    def _entry(self, slot: int) -> int:
        return int(_NUMBER.unpack(os.pread(self._file, 8, _TABLE_AT + 8 * slot))[0])

    def _set_entry(self, slot: int, entry: int) -> None:
        os.pwrite(self._file, _NUMBER.pack(entry), _TABLE_AT + 8 * slot)

    # ---- Locks ----------------------------------------------------------------------------------------------------

    def _lock(self, kind: int, byte: int) -> bool:
        """Locks or unlocks a byte. Returns False if the lock of another member prevents it."""
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
        except (BlockingIOError, PermissionError):  # fcntl(2): EAGAIN or EACCES
            return False
        return True

    def _is_held(self, byte: int) -> bool:
        """Whether another member holds the lock of a byte."""
        asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind = _LOCK.unpack(fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked))[0]
        return bool(kind != fcntl.F_UNLCK)


def slot_for(number: int, table: NDArray[np.int64], needed_by: Sequence[int]) -> int | None:
    """The slot for a batch, where the table has the numbers + 1 of the batches that are kept; None: it has to give way.

    First a slot whose batch nobody needs, then an empty one, then the one whose batch is needed last. A batch is needed
    by those who read it or an earlier one next, and by the nearest of them first.
    """
    needed_in = _needed_in(np.array([number], np.int64), needed_by)[0]
    if needed_in == _NEVER:
        return None
    kept_for = _needed_in(table - 1, needed_by)
    kept_for[table == 0] = _NEVER - 1
    slot = int(kept_for.argmax())
    return slot if kept_for[slot] > needed_in else None


_NEVER = np.iinfo(np.int64).max


def _needed_in(numbers: NDArray[np.int64], needed_by: Sequence[int]) -> NDArray[np.int64]:
    """How many batches the nearest member has to go until it needs each of the numbers."""
    steps = numbers[:, None] - np.asarray(needed_by, np.int64)[None]
    return np.where(steps >= 0, steps, _NEVER).min(axis=1, initial=_NEVER)


def _name(digest: bytes) -> str:
    return f"nfnet_ray-{digest.hex()[:16]}"


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.numpy().reshape(-1).view(np.uint8).data


def _write_all(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _read_all(file: int, into: memoryview, offset: int) -> None:
    while into:
        read = os.preadv(file, [into], offset)
        if not read:
            raise OSError(errno.EIO, "the shared memory is shorter than it was")
        into, offset = into[read:], offset + read


class _List:
    """Who is a member of which stream on this node: lines of key, process and descriptor. Locked within ``with``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def __enter__(self) -> _List:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LIST_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._file)
                    raise
                time.sleep(0.01)
        lines = os.pread(self._file, os.fstat(self._file).st_size, 0).decode(errors="replace").splitlines()
        self._lines = [parts for line in lines if _is_listed(parts := line.split())]
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def of(self, key: str) -> list[tuple[int, int]]:
        return [(int(process), int(file)) for listed, process, file in self._lines if listed == key]

    def add(self, key: str, process: int, file: int) -> None:
        """Adds a line, and takes those away whose process or descriptor has gone."""
        lines = [line for line in self._lines if line[1:] != [str(process), str(file)]]
        content = "".join(" ".join(line) + "\n" for line in [*lines, [key, str(process), str(file)]]).encode()
        os.pwrite(self._file, content, 0)
        os.ftruncate(self._file, len(content))


def _is_listed(parts: list[str]) -> bool:
    """Whether a line is complete, and its process has its descriptor open for a stream of this key.

    Another file may have its number by now, and to open some has effects.
    """
    if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        return False
    try:
        return os.readlink(f"/proc/{parts[1]}/fd/{parts[2]}").startswith(
            f"/memfd:{_name(bytes.fromhex(parts[0]))} "
        )
    except (OSError, ValueError):  # ValueError: the bytes are not a key
        return False
