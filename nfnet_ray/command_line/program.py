"""The first lines of every program, before the imports that take seconds.

From then on Ctrl-C takes one line instead of the stack trace of an import, and an output that nobody reads any more
(``| head``, a terminal that is gone) is written into the void: what was begun is finished. Imports nothing that takes
time.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from nfnet_ray.command_line.interruption import end_quietly

_NOBODY_READS = {errno.EPIPE, errno.EIO}  # of a pipe; of a terminal, see write(2)

_warning: str | None = None


def begin() -> None:
    """For ``if __name__ == "__main__":`` and nowhere else: it changes the process's signals and output."""
    end_quietly()
    sys.stdout, sys.stderr = _forgiving(sys.stdout), _forgiving(sys.stderr)


@contextmanager
def goes_on_without_output(warning: str) -> Iterator[None]:
    """Inside the block output that cannot be written is no error: the disk with the log may be full.

    The ``warning`` goes to standard error, once, when the output is lost.
    """
    global _warning
    _warning = warning
    try:
        yield
    finally:
        _warning = None


class _Forgiving(io.FileIO):
    """A file whose writes never fail."""

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BlockingIOError:
            raise
        except OSError as error:
            if _warning is None and error.errno not in _NOBODY_READS:
                raise
            self._warn()
            return memoryview(data).nbytes  # type: ignore[arg-type]

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
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
