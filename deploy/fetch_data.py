"""Copies a data set from object storage to a folder of this node, before Ray starts there.

``python deploy/fetch_data.py s3://bucket/imagenet /data`` makes ``/data/imagenet``. A file that is there in its
full size is left alone. Several parts of a file are on their way at a time, since one connection carries a small part
of what a node can take, and the node's GPUs wait. A part that fails is asked for again: a pod whose copy fails begins
anew, with an empty disk.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from nfnet_ray.errors import UserError
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import count

PART_BYTES = 16 << 20
PARTS_AT_ONCE = 16  # 256 MiB in all; pyarrow's client of S3 has at least 25 connections
WAITS_SECONDS = (1.0, 5.0, 25.0)
"""Before a part is asked for again, after what pyarrow itself tries."""


def fetch(uri: str, folder: Path) -> Path:
    """Copies all files below ``uri`` into ``folder``, under the last name of the URI. Returns their folder.

    Raises:
        UserError: the storage refuses the URI or our credentials, or there is nothing.
    """
    try:
        storage, root = FileSystem.from_uri(uri)
        files = storage.get_file_info(FileSelector(root, recursive=True))
    except (OSError, ValueError) as error:
        raise UserError(f"{uri}: {str(error).splitlines()[0]}") from None
    files = [file for file in files if file.type == FileType.File]
    if not files:
        raise UserError(f"{uri}: there are no files")
    target = folder / PurePosixPath(root).name
    total = sum(file.size for file in files)
    print(f"{uri}: {count(len(files), 'file')}, {total / 2**30:.2f} GiB, to {target}", flush=True)
    started = time.monotonic()
    for file in files:
        path = target / PurePosixPath(file.path).relative_to(root)
        if path.exists() and path.stat().st_size == file.size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, sync=False) as copy:
            _copy(storage, file, copy)
        seconds = max(time.monotonic() - started, 1e-9)
        print(f"{path.name}: {file.size / 2**20:,.0f} MiB, {seconds:,.0f} s so far", flush=True)
    return target


def _copy(storage: FileSystem, file: FileInfo, copy: IO[Any]) -> None:
    """Raises OSError if a part cannot be had, or has no room here."""
    with storage.open_input_file(file.path) as source, ThreadPoolExecutor(PARTS_AT_ONCE) as pool:

        def part(start: int) -> None:
            size = min(PART_BYTES, file.size - start)
            content = memoryview(_read(source, size, start))
            if len(content) != size:
                raise OSError(f"{file.path} has become shorter")
            while content:
                written = os.pwrite(copy.fileno(), content, start)
                content, start = content[written:], start + written

        for _ in pool.map(
            part, range(0, file.size, PART_BYTES)
        ):  # an error cancels those that have not begun
            pass


def _read(source: Any, size: int, start: int) -> bytes:
    content: bytes
    for wait in WAITS_SECONDS:
        try:
            content = source.read_at(size, start)
            return content
        except OSError as error:
            print(f"{str(error).splitlines()[0]}: again in {wait:.0f} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    content = source.read_at(size, start)
    return content


if __name__ == "__main__":
    try:
        fetch(sys.argv[1], Path(sys.argv[2]))
    except (UserError, OSError) as error:
        sys.exit(f"fetch_data.py: {error}")
