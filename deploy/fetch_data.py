"""Copies a data set from object storage to a folder of this node, before Ray starts there.

``python deploy/fetch_data.py s3://bucket/imagenet /data`` makes ``/data/imagenet``. A file that is there in its
full size is left alone, so an attempt that was broken off costs at most the file that it was at.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileSelector, FileSystem, FileType

from nfnet_ray.errors import UserError
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import count

CHUNK_BYTES = 8 << 20


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
        with storage.open_input_stream(file.path) as source, whole_file(path, sync=False) as copy:
            while chunk := source.read(CHUNK_BYTES):
                copy.write(chunk)
        seconds = max(time.monotonic() - started, 1e-9)
        print(f"{path.name}: {file.size / 2**20:,.0f} MiB, {seconds:,.0f} s so far", flush=True)
    return target


if __name__ == "__main__":
    try:
        fetch(sys.argv[1], Path(sys.argv[2]))
    except UserError as error:
        sys.exit(f"fetch_data.py: {error}")
