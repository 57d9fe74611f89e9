"""Checks of the paths that users give, before anything starts, and the errors of a full or lost disk."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import unicodedata
from collections.abc import Generator
from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable

HOME_VARIABLE = "NFNET_RAY_HOME"
"""The environment variable that names the folder to which relative paths of studies are relative."""
PROBE_BYTES = 1 << 16
"""A disk that has not even this much room is full."""
MOST_PATH_BYTES = 4095
"""PATH_MAX of Linux, less the zero at the end."""
MOST_NAME_BYTES = 255
"""NAME_MAX of the usual file systems of Linux."""

# The place is full, or has become one that cannot be written: remounted, its server gone, its cable out.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOST = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)


def check_path(path: str | os.PathLike[str], named: str, *, makes: int = 0) -> Path:
    """Return the path if a file system can have it. ``named`` is the flag or variable that it comes from, for messages.

    With ``makes`` it is one under which files are made, at most that many bytes of path below it.

    Raises:
        UserError: it holds a zero byte, is not UTF-8, has a control character and is to be made, or is too long.
    """
    text = os.fspath(path)
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{named}: {printable(text)} is not UTF-8, as all names in results are; rename it"
        ) from None
    controls = [character for character in text if unicodedata.category(character) == "Cc"]
    if "\0" in controls or (makes and controls):
        raise UserError(f"{named}: {printable(text)} has a control character in it; give another path")
    longest = max(map(len, raw.split(b"/")))
    if longest > MOST_NAME_BYTES:
        raise UserError(f"{named}: a name in it is {longest} bytes long, and the limit is {MOST_NAME_BYTES}")
    if len(raw) + makes > MOST_PATH_BYTES:
        raise UserError(
            f"{named}: the path is {len(raw)} bytes long, and the limit is {MOST_PATH_BYTES - makes}"
        )
    return Path(text)


def resolved(path: Path, named: str, *, makes: int = 0) -> Path:
    """The absolute path without links, if a file system can have it. Raises UserError, as :func:`check_path` does."""
    check_path(path, named, makes=makes)
    try:
        found = path.resolve()
    except (OSError, RuntimeError) as error:  # links that go round in circles
        raise UserError(f"{named}: {printable(path)} leads nowhere ({error})") from None
    return check_path(found, named, makes=makes)


def check_can_write(folder: Path, named: str, room_bytes: int = PROBE_BYTES) -> None:
    """Raises UserError if nothing can be written in ``folder``, or where it would be made, or if there is less room.

    Leaves nothing behind.
    """
    nearest = folder
    try:
        nearest = nearest_folder(folder, named)
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            disk = os.fstatvfs(file.fileno())
        # Some network file systems tell of no size at all; of the others the probe has taken its part already.
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < room_bytes - PROBE_BYTES:
            raise OSError(errno.ENOSPC, f"less than {room_bytes / 1e6:.0f} MB of room")
    except OSError as error:
        remedy = "make room, or name another folder" if error.errno in _FULL else "name another folder"
        raise UserError(f"{named}: {nearest} cannot be written ({in_words(error)}); {remedy}") from None


def nearest_folder(folder: Path, named: str) -> Path:
    """The folder, or if it is not there the one in which it would be made. Raises UserError if that is no folder."""
    nearest = folder
    while not nearest.exists():
        if nearest.is_symlink():
            raise UserError(f"{named}: {nearest} is a link to nothing; remove it, or name another folder")
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{named}: {nearest} is not a folder; name another one")
    return nearest


@contextlib.contextmanager
def readable(named: str) -> Generator[None]:
    """Inside the block, a file that cannot be read raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{named}: {error.filename or 'it'} cannot be read ({in_words(error)})") from None


def lost_place(error: BaseException) -> OSError | None:
    """The OSError in the chain of ``error`` that means a full or no longer writable disk, or None."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno in (*_FULL, *_LOST):
            return found
        waiting += [found.__cause__, found.__context__]
    # What other processes raised arrives as text.
    for number in (*_FULL, *_LOST):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return None


def which_is_lost(*folders: Path) -> Path:
    """The first folder in which nothing can be written, or the first of all if there is room in every one again."""
    for folder in folders:
        try:
            check_can_write(folder, "")
        except UserError:
            return folder
    return folders[0]


def in_words(error: OSError) -> str:
    """The system's message, without number and path."""
    return error.strerror or str(error)


def remedy_for(error: OSError) -> str:
    """What to do about it, as the beginning of a sentence."""
    return "make room" if error.errno in _FULL else "make it writable again"
