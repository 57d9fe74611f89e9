"""The manifest of a ``.beton``: a Parquet file next to it that lists what should be in it.

A row per sample, in the beton's order:

====== ====== =====================================================================
index  int64  0, 1, 2, …
source string the image's name in what was converted; says nothing of where that lay
label  int64  a position in the class names
width  int32  pixels
height int32  pixels
bytes  int64  stored bytes
hash   string hash of the stored bytes, see :func:`hash_stored`
====== ====== =====================================================================

The schema's metadata holds one JSON document under the key ``nfnet_ray.manifest``: format version, class
names, writing settings, the beton's size in bytes, the split's fingerprint, and hashes of the names and of the document
itself (manifests written before there were these two are read all the same).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nfnet_ray.data.files.beton import Beton
from nfnet_ray.errors import UserError
from nfnet_ray.whole_file import whole_file

if TYPE_CHECKING:  # importing pyarrow takes 0.3 s, which a command line's --help need not wait for
    import pyarrow as pa

FORMAT_VERSION = 1
_METADATA_KEY = b"nfnet_ray.manifest"
_DOCUMENT_HASH_KEY = "document_hash"
_HASH_BYTES = 16  # 128 bits: two of 10^9 images agree by chance with a probability of 10^-21


@dataclass(frozen=True, eq=False)
class Manifest:
    """A manifest that was read and agrees with itself. N is the number of samples."""

    path: Path
    class_names: tuple[str, ...]
    settings: Mapping[str, Any]
    """How the beton was written: JPEG quality, what was re-encoded, what was left out, …"""
    beton_bytes: int
    """The size of the beton it belongs to."""
    fingerprint: str
    """32 hexadecimal digits over class names, and over every sample's label, size and hash, in order."""
    labels: np.ndarray
    """(N,) int64."""
    heights: np.ndarray
    """(N,) int32, pixels."""
    widths: np.ndarray
    """(N,) int32, pixels."""
    sizes: np.ndarray
    """(N,) int64, stored bytes."""
    hashes: pa.StringArray
    """(N,) strings of 32 hexadecimal digits."""
    names_hash: str | None
    """:func:`hash_names` of the images' names; None in a manifest written before there was one."""

    def __len__(self) -> int:
        return len(self.labels)

    def sources(self) -> list[str]:
        """The N images' names, read from the file when asked for: most callers never need them."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            return file.read(columns=["source"]).column("source").to_pylist()

    def check_names(self) -> None:
        """Compare the images' names, which no fingerprint covers, with their hash.

        Raises:
            UserError: they cannot be read, or are others than were written.
        """
        import pyarrow as pa

        try:
            names_hash = hash_names(self.sources())
        except (OSError, KeyError, TypeError, ValueError, MemoryError, pa.ArrowException) as error:
            raise UserError(
                f"{self.path}: its names cannot be read; copy or convert the data set again"
            ) from error
        if self.names_hash not in (None, names_hash):
            raise UserError(
                f"{self.path}: the images' names in it are not those that were written; copy or convert the data"
                " set again"
            )

    def check_belongs_to(self, beton: Beton) -> None:
        """Compare all that can be compared without reading the images.

        Raises:
            UserError: this is the manifest of another file, or of another version of it.
        """
        problem = None
        if len(self) != len(beton):
            problem = f"it lists {len(self)} samples, the beton has {len(beton)}"
        elif self.beton_bytes != beton.file_bytes:
            problem = f"it was made for a file of {self.beton_bytes} bytes, the beton has {beton.file_bytes}"
        else:
            for what, mine, theirs in (
                ("label", self.labels, beton.labels),
                ("height", self.heights, beton.heights),
                ("width", self.widths, beton.widths),
                ("stored size", self.sizes, beton.sizes),
            ):
                differs = mine != theirs
                if differs.any():
                    index = int(np.argmax(differs))
                    problem = f"sample {index} has {what} {mine[index]} in it, {theirs[index]} in the beton"
                    break
        if problem is not None:
            raise UserError(
                f"{self.path}: does not belong to {beton.path}: {problem}; copy both files again from one"
                " conversion"
            )


def hash_stored(stored: bytes | np.ndarray) -> str:
    """BLAKE2b (RFC 7693) cut to 128 bits, in hexadecimal, of a sample's stored bytes.

    BLAKE2b is the fastest hash in the standard library on machines without SHA instructions, is
    collision-resistant, and is computed without the interpreter lock.
    """
    data = stored if isinstance(stored, bytes) else stored.data
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).hexdigest()


def hash_names(sources: Sequence[str]) -> str:
    """BLAKE2b-128 over the images' names, in order."""
    return hash_stored(json.dumps(list(sources)).encode())


def _hash_document(document: Mapping[str, Any]) -> str:
    """BLAKE2b-128 over the JSON document without its own hash."""
    rest = {key: value for key, value in document.items() if key != _DOCUMENT_HASH_KEY}
    return hash_stored(json.dumps(rest, sort_keys=True).encode())


def write_manifest(
    path: str | os.PathLike[str],
    *,
    beton: Beton,
    class_names: Sequence[str],
    sources: Sequence[str],
    hashes: Sequence[str],
    settings: Mapping[str, Any],
) -> Manifest:
    """Write the manifest of a finished ``beton``; a file that exists is replaced once the new one is whole.

    Args:
        class_names: a name per label; every label of the beton is a position in it.
        sources: N names of the images in what was converted.
        hashes: N hashes of the stored bytes, from :func:`hash_stored`.
        settings: how the beton was written; must be expressible in JSON, and free of places on this machine.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    num_samples = len(beton)
    if not len(sources) == len(hashes) == num_samples:
        raise ValueError(f"{len(sources)} sources and {len(hashes)} hashes for {num_samples} samples")
    if int(beton.labels.max()) >= len(class_names):
        raise ValueError(f"label {int(beton.labels.max())} has no name among {len(class_names)} classes")
    table = pa.table(
        {
            "index": _integers_to_arrow(np.arange(num_samples, dtype=np.int64)),
            "source": _strings_to_arrow(sources),
            "label": _integers_to_arrow(beton.labels),
            "width": _integers_to_arrow(beton.widths.astype(np.int32)),
            "height": _integers_to_arrow(beton.heights.astype(np.int32)),
            "bytes": _integers_to_arrow(beton.sizes),
            "hash": _strings_to_arrow(hashes),
        }
    )
    document = {
        "format_version": FORMAT_VERSION,
        "class_names": list(class_names),
        "settings": dict(settings),
        "beton_bytes": beton.file_bytes,
        "fingerprint": _fingerprint(table, class_names),
        "names_hash": hash_names(sources),
    }
    document[_DOCUMENT_HASH_KEY] = _hash_document(document)
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(document)})
    with whole_file(path) as file:
        pq.write_table(table, file)
    return read_manifest(path)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest and check that it agrees with itself.

    Raises:
        UserError: there is none, it is not one, or its rows are not those its fingerprint was taken of.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    columns = ["index", "label", "width", "height", "bytes", "hash"]
    try:
        # Not pq.read_table, which would import pandas (2 s).
        with pq.ParquetFile(path) as file:
            table = file.read(columns=columns)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such manifest; copy it together with its .beton") from error
    # Of a damaged file, names may be no text (ValueError) and sizes absurd (MemoryError).
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read as a manifest ({reason}); copy or convert the data set again"
        ) from error
    try:
        document = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: a manifest of format {version}, and this version reads {FORMAT_VERSION}; convert again"
            )
        if document.get(_DOCUMENT_HASH_KEY) not in (None, _hash_document(document)):
            raise UserError(
                f"{path}: its settings are not those that were written; copy or convert the data set again"
            )
        manifest = Manifest(
            path=path,
            class_names=tuple(document["class_names"]),
            settings=document["settings"],
            beton_bytes=document["beton_bytes"],
            fingerprint=document["fingerprint"],
            labels=_column(table, "label", np.int64),
            heights=_column(table, "height", np.int32),
            widths=_column(table, "width", np.int32),
            sizes=_column(table, "bytes", np.int64),
            hashes=table.column("hash").combine_chunks(),
            names_hash=document.get("names_hash"),
        )
        indices = _column(table, "index", np.int64)
        fingerprint = _fingerprint(table, manifest.class_names)
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a manifest of a .beton; copy or convert the data set again") from error
    if not np.array_equal(indices, np.arange(len(table))) or manifest.fingerprint != fingerprint:
        raise UserError(
            f"{path}: its rows are not those its fingerprint was taken of; copy or convert the data set again"
        )
    return manifest


def _integers_to_arrow(values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    # To and from Arrow by the buffers, here and below: pa.array() and to_numpy() would import pandas (2 s).
    arrow_type = pa.int64() if values.dtype == np.int64 else pa.int32()
    return pa.Array.from_buffers(arrow_type, len(values), [None, pa.py_buffer(values)])


def _strings_to_arrow(values: Sequence[str]) -> pa.StringArray:
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _column(table: pa.Table, name: str, dtype: type[np.integer]) -> np.ndarray:
    values = np.from_dlpack(table.column(name).combine_chunks())
    if values.dtype != dtype:
        raise ValueError(f"column {name} is {values.dtype}")
    return values


def _fingerprint(table: pa.Table, class_names: Sequence[str]) -> str:
    """BLAKE2b-128 over what a training can see of a split. Names and places of files are not part of it."""
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    digest.update(json.dumps([FORMAT_VERSION, len(table), list(class_names)]).encode())
    for name, dtype in (("label", np.int64), ("height", np.int32), ("width", np.int32)):
        values = _column(table, name, dtype)
        digest.update(values.astype(values.dtype.newbyteorder("<")).data)
    for chunk in table.column("hash").chunks:
        # One pass over the column's bytes: a hash has a fixed length, so no separators are needed.
        digest.update("".join(chunk.to_pylist()).encode("ascii"))
    return digest.hexdigest()
