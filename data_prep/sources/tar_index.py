"""The positions of a tar file's members, so that they can be read at random without unpacking."""

from __future__ import annotations

import errno
import os
import tarfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.sources.source import SourceImage
from nfnet_ray.errors import UserError

# Enough for a member's header and the byte before it, which is what tarfile reads of each.
_READ_BYTES = 2 * tarfile.BLOCKSIZE


class SharedFile:
    """A file that any number of threads read by position; pickles as its path; closed with its last reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[object, ...]:
        return SharedFile, (self.path,)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes from ``offset`` on, or an OSError."""
        parts = []
        while size:
            part = os.pread(self._descriptor, size, offset)
            if not part:
                raise OSError(errno.EIO, f"ends before byte {offset + size:,}", str(self.path))
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar."""

    name: str
    offset: int
    """Of its first byte, from the start of the outermost tar."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class TarSplit:
    """Images within one tar file, at any depth. N is their number."""

    path: Path
    names: list[str]
    labels: np.ndarray
    """(N,) int64."""
    offsets: np.ndarray
    """(N,) int64."""
    sizes: np.ndarray
    """(N,) int64, bytes."""

    def images(self, indices: np.ndarray) -> Iterator[SourceImage]:
        file = SharedFile(self.path)
        for index in indices:
            load = _Load(file, int(self.offsets[index]), int(self.sizes[index]))
            yield SourceImage(self.names[index], int(self.labels[index]), load)


@dataclass(frozen=True)
class _Load:
    file: SharedFile
    offset: int
    size: int

    def __call__(self) -> bytes:
        return self.file.read(self.offset, self.size)


def tar_members(path: Path, inside: TarMember | None = None) -> Iterator[TarMember]:
    """The regular files of a tar, or of the tar that is its member ``inside``. Reads their headers only.

    Raises:
        UserError: it is no tar, is compressed, or was cut short.
    """
    where = str(path) if inside is None else f"{path}: {inside.name}"
    with open(path, "rb", buffering=_READ_BYTES) as file:
        end = os.fstat(file.fileno()).st_size if inside is None else inside.offset + inside.size
        file.seek(0 if inside is None else inside.offset)
        try:
            tar = tarfile.TarFile(fileobj=file)
            while (member := tar.next()) is not None:
                # tarfile keeps all it has seen; there may be a million.
                tar.members.clear()  # pyrefly: ignore[missing-attribute]
                if member.isreg():
                    yield TarMember(member.name, member.offset_data, member.size)
        except tarfile.ReadError as error:
            if "unexpected end" in str(error):
                raise _cut_short(where) from error
            raise UserError(
                f"{where}: not an uncompressed tar file ({error}); give it as it was downloaded"
            ) from error
        # tarfile takes a file that just stops, or continues with something else, for a tar that ends there; and it
        # does not know where a tar inside another one has to end.
        file.seek(tar.offset)
        mark = file.read(tarfile.BLOCKSIZE) if tar.offset < end else b""
        if mark.strip(b"\0") or (not mark and (inside is None or tar.offset > end)):
            raise _cut_short(where)


def first_names(path: Path, count: int = 32) -> list[str]:
    """The names of a tar's first regular files, at most ``count``; of a compressed tar too; [] if it is none."""
    names: list[str] = []
    try:
        with tarfile.open(path) as tar:
            while len(names) < count and (member := tar.next()) is not None:
                if member.isreg():
                    names.append(member.name)
    except (tarfile.TarError, EOFError, OSError):
        pass  # what could be read of it is what there is to judge by
    return names


def _cut_short(where: str) -> UserError:
    return UserError(f"{where}: cut short: it does not end as a tar file does; copy or download it again")
