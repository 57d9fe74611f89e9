"""Reading files, and only files: opening a named pipe waits until somebody writes to it, which may be never."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_regular_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it cannot be read, or is a named pipe, a socket, a device or a folder.
    """
    # Opening a pipe this way does not wait for a writer; for a file the flag means nothing.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def what_it_is(path: Path) -> str:
    """For people: ``a named pipe``, ``a socket``, ``a device``, ``a folder``, ``a file``."""
    mode = path.stat().st_mode
    for is_it, name in (
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISREG, "a file"),
    ):
        if is_it(mode):
            return name
    return "a device"
