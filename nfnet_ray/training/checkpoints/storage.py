"""The storage of checkpoints: a folder on a disk or a shared file system, or a prefix in an object store.

A place is a path, or a URI that pyarrow supports: ``s3://bucket/runs``, ``gs://bucket/runs``, ``hdfs://…``,
``file:///runs``. A file under its final name is complete. On a file system it is written under another name, synced,
and renamed. An object store shows an object only when its last byte has arrived.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from nfnet_ray.errors import UserError
from nfnet_ray.whole_file import PARTIAL, whole_file

BUFFERED_BYTES = 1 << 22
SYNCED_BYTES = 1 << 26
"""The number of bytes that are written between two syncs. A slow disk or network takes seconds for them. They are
enough for the cost of a sync not to matter, and make six parts of an upload to S3, which are sent in parallel."""

Write = Callable[[IO[bytes]], object]
"""Writes a file's content, front to back."""


class Storage(Protocol):
    """A flat folder of files. Errors of the disk or the network are raised as OSError."""

    place: str
    """The path or URI of the folder without secrets, for messages."""

    def write(self, name: str, content: Write) -> None:
        """Creates or replaces a file. If the write fails, the new file does not exist."""

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Opens a file for reading and seeking. Raises FileNotFoundError if it does not exist."""

    def names(self) -> list[str]:
        """The names of all complete files, in no particular order."""

    def remove(self, name: str) -> None:
        """Removes a file, if it exists."""

    def remove_partial(self) -> None:
        """Removes the partial files of interrupted writes."""


def storage_at(place: str | os.PathLike[str]) -> Storage:
    """The storage at a path or a URI. Raises UserError for a URI that pyarrow cannot open."""
    text = os.fspath(place)
    if "://" not in text:
        return _Folder(Path(text))
    if "#" in text or (text.startswith("file:") and "?" in text):
        # pyarrow would ignore the rest of the URI, and write the checkpoints to another place.
        raise UserError(
            f"{without_secrets(text)}: in a URI write # as %23, and in one of a file ? as %3F; or give a path"
        )
    from pyarrow import fs  # imported here, so that training into a folder needs only torch

    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except Exception as error:  # pyarrow.ArrowInvalid, or OSError if a service does not answer
        line = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{without_secrets(text)}: not a place for checkpoints ({line}); give a path, or a URI such as s3://bucket/runs"
        ) from error
    if isinstance(filesystem, fs.LocalFileSystem):
        return _Folder(Path(path))
    return _ArrowFolder(text, filesystem, path)


def without_secrets(uri: str) -> str:
    """A URI that may be logged: without the keys before its host and the options after its path."""
    return re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])


class _Folder:
    """A folder on this machine, or on a shared file system."""

    def __init__(self, path: Path) -> None:
        self.place, self._path = str(path), path

    def write(self, name: str, content: Write) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        with whole_file(self._path / name) as file:

            def sync() -> None:
                file.flush()
                os.fsync(file.fileno())

            content(_SyncedInParts(file.write, sync))  # pyrefly: ignore[bad-argument-type]  # it needs write alone

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        return (self._path / name).open("rb")

    def names(self) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self._path) if not entry.name.endswith(PARTIAL)]
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def remove_partial(self) -> None:
        for path in self._path.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)


class _SyncedInParts(io.RawIOBase):
    """A file that is synced after every SYNCED_BYTES, so that its writer can tell whether the storage makes progress.

    Otherwise the system, or pyarrow for S3 and Azure, would buffer gigabytes. The last sync, or the end of the upload,
    would then take as long as all of them, without a sign of progress. Closing this file does not close the one below.
    """

    def __init__(self, write: Callable[[Any], object], sync: Callable[[], object]) -> None:
        self._write, self._sync, self._not_synced = write, sync, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(data)
        self._not_synced += len(data)
        if self._not_synced >= SYNCED_BYTES:
            self._sync()
            self._not_synced = 0
        return len(data)


class _ArrowFolder:
    """A folder in one of pyarrow's file systems."""

    def __init__(self, place: str, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path.rstrip("/")
        self.place = without_secrets(place)

    def write(self, name: str, content: Write) -> None:
        self._filesystem.create_dir(self._path, recursive=True)
        buffered = None
        with self._filesystem.open_output_stream(f"{self._path}/{name}") as stream:
            # torch writes many small pieces, so they are buffered.
            buffered = io.BufferedWriter(
                _SyncedInParts(stream.write, stream.flush), buffer_size=BUFFERED_BYTES
            )
            content(buffered)
            buffered.flush()

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        file: contextlib.AbstractContextManager[IO[bytes]] = self._filesystem.open_input_file(
            f"{self._path}/{name}"
        )
        return file

    def names(self) -> list[str]:
        from pyarrow import fs

        selector = fs.FileSelector(self._path, allow_not_found=True)
        return [info.base_name for info in self._filesystem.get_file_info(selector) if info.is_file]

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._path}/{name}")

    def remove_partial(self) -> None:
        """Does nothing: an interrupted upload leaves no object."""
