"""Where checkpoints lie: a folder on a disk or a shared file system, or a place in an object store.

A place is a path, or a URI that pyarrow knows: ``s3://bucket/runs``, ``gs://bucket/runs``, ``hdfs://…``,
``file:///runs``. A file under its final name is complete: on a file system it is written under another name, synced
and renamed; an object store shows an object only when its last byte has arrived.
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
"""Between two waits for the disk or the network: seconds of a slow one, and too many for the waits themselves to count;
six parts of an upload to S3, which are on their way at the same time."""

Write = Callable[[IO[bytes]], object]
"""Writes a file's content, front to back."""


class Storage(Protocol):
    """A flat folder of files. OSError is whatever the disk or the network says."""

    place: str
    """Its path or URI, for messages."""

    def write(self, name: str, content: Write) -> None:
        """Makes or replaces a file; it is complete, or it is not there."""

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file for reading and seeking. Raises FileNotFoundError."""

    def names(self) -> list[str]:
        """The names of all complete files, in no order."""

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

    def remove_partial(self) -> None:
        """Removes what broken-off writes have left."""


def storage_at(place: str | os.PathLike[str]) -> Storage:
    """The storage at a path or a URI. Raises UserError for a URI that pyarrow does not know."""
    text = os.fspath(place)
    if "://" not in text:
        return _Folder(Path(text))
    if "#" in text or (text.startswith("file:") and "?" in text):
        # pyarrow would leave out what follows, and checkpoints would lie in another place.
        raise UserError(
            f"{without_secrets(text)}: in a URI write # as %23, and in one of a file ? as %3F; or give a path"
        )
    from pyarrow import fs  # here, so that a machine with torch alone can train

    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except Exception as error:  # pyarrow.ArrowInvalid, and OSError where a service does not answer
        line = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{without_secrets(text)}: not a place for checkpoints ({line}); give a path, or a URI such as s3://bucket/runs"
        ) from error
    if isinstance(filesystem, fs.LocalFileSystem):
        return _Folder(Path(path))
    return _ArrowFolder(text, filesystem, path)


def without_secrets(uri: str) -> str:
    """A URI as it may stand in a log: without the keys before its host, and the options after its path."""
    return re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])


class _Folder:
    """A folder of this machine, or of a file system that all machines share."""

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
    """A file that goes to the disk, or over the network, while it is written, so that it is known how far it is.

    The system, or pyarrow for S3 and Azure, would keep gigabytes back otherwise, and the last sync, or the end of the
    upload, would take as long as all of them. Its own end closes nothing.
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
    """A folder of one of pyarrow's file systems."""

    def __init__(self, place: str, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path.rstrip("/")
        self.place = without_secrets(place)

    def write(self, name: str, content: Write) -> None:
        self._filesystem.create_dir(self._path, recursive=True)
        buffered = None
        with self._filesystem.open_output_stream(f"{self._path}/{name}") as stream:
            # torch writes many small pieces.
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
        """There is nothing: an upload that broke off has no name."""
