"""Decoded images of a split in one file for all processes of a node, which map it into memory.

The file lies in the folder for temporary files. Its name contains the fingerprint of the split and the size and crop of
the images. It is written under a lock as ``.partial`` and renamed when it is complete, so a file with the right name is
complete; a process that is killed leaves a partial file and a free lock. The length and the checksum of a file are
checked when it is opened. The images are in the system's page cache, which processes share, and which the system frees
when it needs the memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.errors import UserError
from nfnet_ray.whole_file import PARTIAL, whole_file

LOCK_DEADLINE_SECONDS = 1800.0  # another process may decode ImageNet; it is an error if that takes longer
LOCK_LOOK_SECONDS = 0.1
UNUSED_SECONDS = 24 * 3600.0  # files unopened for this long are removed when a new one is made

_HEADER = struct.Struct("<16sQQI")  # magic, images, bytes of one image, CRC-32 of all that follows
_HEADER_BYTES = 4096
_MAGIC = b"nfnet_ray images"

logger = logging.getLogger(__name__)

Images = NDArray[np.uint8]
Samples = NDArray[np.int64]
Decode = Callable[[Images, Samples], None]
"""A function that fills images (N, H, W, 3) and the indices of their samples, (N,); -1 for no sample."""


def shared_images(
    name: str, count: int, size: int, decode: Decode, folder: Path | None = None
) -> tuple[Images, Samples]:
    """Decoded images (count, size, size, 3) uint8 and their samples (count,) int64, shared by all processes of the
    node.

    The first process that needs them calls ``decode``. Do not write to the arrays; only this process would see it. If
    the folder has no room, the arrays belong to this process alone.

    Args:
        name: letters, digits, dots and dashes that name everything on which the images depend.
        decode: a function that fills both arrays. If it raises an exception, no file is left.
        folder: the folder of the file; by default one of this user in the folder for temporary files.

    Raises:
        UserError: another process has held the lock for :data:`LOCK_DEADLINE_SECONDS`.
    """
    shape = (count, size, size, 3)
    what = f"{count:,} images of {size} px, {count * size * size * 3 / 1e6:,.0f} MB,"
    try:
        path = (own_folder() if folder is None else folder) / f"{name}.images"
        found = _opened(path, shape)
        if found is None:
            with _locked(path):
                found = _opened(path, shape)  # another process may have made it in the meantime
                if found is None:
                    return _made(path, shape, decode, what)
        logger.info("resident: %s taken from this node's copy", what)
        return found
    except OSError as error:  # no room, or no folder that can be written to
        logger.warning("resident: %s decoded for this process alone (%s)", what, error)
        images, samples = np.empty(shape, np.uint8), np.empty(count, np.int64)
        decode(images, samples)
        return images, samples


def _made(path: Path, shape: tuple[int, ...], decode: Decode, what: str) -> tuple[Images, Samples]:
    """Writes the file and returns its content. Call it only while holding its lock."""
    start = time.perf_counter()
    _remove_unused(path.parent, keep=path)
    _write(path, shape, decode)
    found = _opened(path, shape)
    if found is None:
        raise OSError(f"{path} does not read as it was written")
    seconds = time.perf_counter() - start
    logger.info("resident: %s decoded in %.1f s, one copy for this node", what, seconds)
    return found


def own_folder() -> Path:
    """The folder for temporary files of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"nfnet_ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def _opened(path: Path, shape: tuple[int, ...]) -> tuple[Images, Samples] | None:
    """The content of a complete file; None if there is none, or if it is short, damaged or of another shape.

    The file stays locked (shared) as long as one of the arrays exists, so that nobody removes it meanwhile.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            header = file.read(_HEADER.size)
            if os.fstat(file.fileno()).st_size != _bytes(shape) or len(header) != _HEADER.size:
                return None
            # The pages are private because torch needs a writable array. Only pages that are written are copied. The
            # mapping holds a duplicate of the descriptor, which keeps the lock until the arrays are gone.
            memory = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            os.utime(path)
    except (FileNotFoundError, BlockingIOError):  # there is none, or it is just being removed
        return None
    images, samples = _parts(memory, shape)
    expected = (_MAGIC, shape[0], images[0].size, _checksum(images, samples))
    if _HEADER.unpack(header) != expected:
        logger.warning("resident: %s is damaged; its images are decoded again", path)
        return None
    return images, samples


def _write(path: Path, shape: tuple[int, ...], decode: Decode) -> None:
    """Decodes into ``path``. Call it only while holding its lock."""
    with whole_file(path, "w+b", sync=False) as file:
        # Allocate the room first. A full disk is an error here; later, while writing to mapped memory, it would be a
        # signal that kills the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, _bytes(shape))
        else:  # macOS
            file.truncate(_bytes(shape))
        memory = mmap.mmap(file.fileno(), 0)  # goes with the arrays in it
        images, samples = _parts(memory, shape)
        decode(images, samples)
        _HEADER.pack_into(memory, 0, _MAGIC, shape[0], images[0].size, _checksum(images, samples))


def _bytes(shape: tuple[int, ...]) -> int:
    return _HEADER_BYTES + 8 * shape[0] + int(np.prod(shape))


def _parts(memory: mmap.mmap, shape: tuple[int, ...]) -> tuple[Images, Samples]:
    samples = np.frombuffer(memory, np.int64, shape[0], _HEADER_BYTES)
    images = np.frombuffer(memory, np.uint8, int(np.prod(shape)), _HEADER_BYTES + 8 * shape[0])
    return images.reshape(shape), samples


def _checksum(images: Images, samples: Samples) -> int:
    return zlib.crc32(images.reshape(-1).data, zlib.crc32(samples.data))


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Holds the lock of ``path``, which the system frees when the process dies."""
    with _lock_path(path).open("wb") as file:
        deadline = time.monotonic() + LOCK_DEADLINE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{path}: another process has been decoding it for {LOCK_DEADLINE_SECONDS:.0f} s; is it stuck? "
                        "End it, or train with --set data.resident=never"
                    ) from error
                time.sleep(LOCK_LOOK_SECONDS)
        yield


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _remove_unused(folder: Path, keep: Path) -> None:
    """Removes files that no process has opened for a day, and partial files of dead processes."""
    for path in folder.glob("*.images"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if path == keep or time.time() - os.fstat(file.fileno()).st_mtime < UNUSED_SECONDS:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    for partial in folder.glob(f"*.images{PARTIAL}"):
        path = partial.with_name(partial.name.removesuffix(PARTIAL))
        with contextlib.suppress(OSError), _lock_path(path).open("wb") as file:
            fcntl.flock(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # who writes to it holds the lock; so does our caller
            partial.unlink()
