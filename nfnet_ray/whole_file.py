"""Writes files atomically: a file is either complete, or still the previous one.

The content goes to a file next to it, ``NAME.partial``, which is renamed at the end. A file that grows over several
runs of a program (:class:`nfnet_ray.data.files.beton.BetonWriter`, ``data_prep/fetch.py``) shares only that name.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial"
"""The suffix of a file that is being written, or that was when its program was killed."""


@contextlib.contextmanager
def whole_file(
    path: Path, mode: str = "wb", *, sync: bool = True, several_writers: bool = False
) -> Generator[IO[Any]]:
    """Opens a file that replaces ``path`` when the block ends. After an exception ``path`` is as before.

    The folder has to exist. A killed program leaves the partial file, which the next writer overwrites.

    Args:
        path: the file to make or to replace.
        mode: ``"wb"``, ``"w+b"``, or ``"w"`` for text, which is written as UTF-8.
        sync: whether to flush content and name to the disk, so that the new file survives a power failure. Without it
            readers still find either the old file or the new one.
        several_writers: whether processes or threads may write the same path at once. Each of them then has a separate
            partial file, and the last one to finish wins.

    Raises:
        OSError: the file cannot be written.
    """
    partial = partial_path(path)
    if several_writers:
        partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        try:
            file = partial.open(mode, encoding=None if "b" in mode else "utf-8")
        except OSError as error:
            error.filename = str(path)  # the name that the person knows
            raise
        with file:
            yield file
        if sync:
            replace_for_good(partial, path)
        else:
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # it would take room that may be missing
            partial.unlink()
        raise


def partial_path(path: Path) -> Path:
    """The path of the partial file of ``path``."""
    return path.with_name(path.name + PARTIAL)


def replace_for_good(partial: Path, path: Path) -> None:
    """Renames a complete file to ``path``. Content and name survive a power failure.

    Raises OSError if the disk cannot keep it.
    """
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every network file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
