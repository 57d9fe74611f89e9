"""The first lines of every program, before the imports that take seconds.

From then on Ctrl-C takes one line instead of the stack trace of an import, and an output that nobody reads any more
(``| head``, a terminal that is gone) is written into the void: what was begun is finished. So it is where an output
cannot show every character, as with a locale of Latin-1: others are written as escapes. Imports nothing that takes
time.
"""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

from nfnet_ray.command_line.interruption import end_quietly

# In place of Python's 700 (2,000 from 3.12 on), with which it spends a fifth of the time of imports on looking for
# garbage: they make many objects, which stay (docs/performance.md).
_NEW_OBJECTS_PER_COLLECTION = 50_000

_NOBODY_READS = {errno.EPIPE, errno.EIO}  # of a pipe; of a terminal, see write(2)

_warning: str | None = None


def begin() -> None:
    """For ``if __name__ == "__main__":`` and nowhere else: it changes the process's signals and output."""
    end_quietly()
    _collect_garbage_rarely()
    _open_what_is_closed()
    sys.stdout, sys.stderr = _forgiving(sys.stdout), _forgiving(sys.stderr)


def _collect_garbage_rarely() -> None:
    gc.set_threshold(_NEW_OBJECTS_PER_COLLECTION, *gc.get_threshold()[1:])
    atexit.register(_leave_modules_to_the_system)


def _leave_modules_to_the_system() -> None:
    """The collection at the end of the process would look through all modules, for memory that is freed anyway.

    But Triton, which torch imports to compile, counts its objects, and says at the end of those left that they leak.
    """
    if "triton" not in sys.modules:
        gc.freeze()


@contextmanager
def goes_on_without_output(warning: str) -> Generator[None]:
    """Inside the block output that cannot be written is no error: the disk with the log may be full.

    The ``warning`` goes to standard error, once, when the output is lost.
    """
    global _warning
    _warning = warning
    try:
        yield
    finally:
        _warning = None


def _open_what_is_closed() -> None:
    """Opens the void in place of standard streams that are closed (``>&-``), here and for every process started.

    Else there is no ``sys.stdout``, and the next file that is opened, such as a journal, gets what others print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest one that is free, which is the stream's own
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


class _Forgiving(io.FileIO):
    """A file whose writes never fail, or but once."""

    _has_failed = False

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # pyrefly: ignore[bad-argument-type]
        except BlockingIOError:
            raise
        except OSError as error:
            if _warning is None and error.errno not in _NOBODY_READS and not self._has_failed:
                self._has_failed = (
                    True  # what is still in a buffer is not worth another error, at the very end
                )
                raise OSError(error.errno, error.strerror, "the output") from error
            self._warn()
            return memoryview(data).nbytes  # pyrefly: ignore[bad-argument-type]

    def _warn(self) -> None:
        global _warning
        if _warning and self.fileno() != 2:
            told, _warning = _warning, ""
            try:
                os.write(2, f"{told}\n".encode())
            except OSError:
                return


def _forgiving(stream: TextIO) -> TextIO:
    # There may be none, somebody may have put another one there, and it may have been done before.
    if not isinstance(stream, io.TextIOWrapper) or isinstance(
        getattr(stream.buffer, "raw", None), _Forgiving
    ):
        return stream
    stream.flush()
    raw = _Forgiving(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors if stream.encoding.lower().startswith("utf") else "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
