"""Checks every byte of a data set against its manifests, at the speed of the disk.

Opening a data set reads 48 bytes a sample and no image. Here each image's stored bytes are hashed and compared with
the manifest, each sample's record (label, size, place) is compared one by one, and all that is wrong is named rather
than the first thing. Of a beton this leaves zeros between samples and the unused arguments of its field
descriptors: no sample's bytes, read by nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nfnet_ray.command_line.progress import Progress, silent
from nfnet_ray.data.decoding.jpeg import DecodeError, jpeg_header
from nfnet_ray.data.files.beton import (
    ALLOCATION,
    FIELD_DESCRIPTOR,
    HEADER,
    JPEG,
    METADATA,
    RAW,
    VERSION,
    Beton,
)
from nfnet_ray.data.files.dataset import check_is_whole, open_dataset, split_paths
from nfnet_ray.data.files.manifest import Manifest, hash_stored, read_manifest
from nfnet_ray.data.files.regular_file import what_it_is
from nfnet_ray.errors import UserError
from nfnet_ray.wording import count

# Read by one thread in one go, in the file's order: long enough for a spinning disk to stream, short enough
# that 16 threads hold little and progress moves.
_PORTION_BYTES = 8 << 20
_PORTIONS_PER_WORKER = 2


@dataclass(frozen=True)
class Damage:
    """One problem that was found."""

    split: str
    """``train`` or ``validation``."""
    path: Path
    """The file that is wrong: a beton, or a manifest."""
    index: int | None
    """The sample, or None where it is the file as a whole."""
    source: str | None
    """The sample's name in what was converted, where the manifest can say it."""
    reason: str

    def __str__(self) -> str:
        if self.index is None:
            return f"{self.split}: {self.reason}"  # such a reason begins with the file's name
        return f"{self.split}: {self.path.name}: sample {self.index:,} ({self.source}): {self.reason}"


@dataclass
class Verification:
    """What was checked, and the problems that were found."""

    damages: list[Damage] = field(default_factory=list)
    checked_images: int = 0
    checked_bytes: int = 0
    """Stored bytes that were hashed."""


def verify(
    path: str | os.PathLike[str],
    workers: int,
    *,
    decode: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Check a data set, open or not: whatever can still be read is checked.

    Args:
        path: a folder or a ``.beton``, as :func:`nfnet_ray.data.files.dataset.open_dataset` takes it.
        workers: threads that read and hash.
        decode: decode every image too. A hash says that the bytes are those that were written; this says that
            they make a picture.
        progress: told of how far it is, from the calling thread.

    Raises:
        UserError: there is no data set.
    """
    path = Path(path)
    check_is_whole(path)
    paths = split_paths(path)
    if not any(beton.exists() for beton, _ in paths.values()):
        open_dataset(path)  # says in which way there is none
    verification = Verification()
    for name, (beton_path, manifest_path) in paths.items():
        opened = _open_split(verification, name, beton_path, manifest_path)
        if opened is not None:
            _verify_images(verification, name, *opened, workers, decode, progress)
    if not verification.damages:
        try:
            open_dataset(path)  # what one split cannot say: the two have the same classes
        except UserError as error:
            verification.damages.append(Damage("train", path, None, None, str(error)))
    return verification


def check_all(path: str | os.PathLike[str], workers: int, progress: Progress = silent) -> None:
    """Check a data set byte by byte before it is used.

    Raises:
        UserError: something is wrong; names the first of it and how much there is.
    """
    damages = verify(path, workers, progress=progress).damages
    if damages:
        raise UserError(
            f"{path}: {summary_of(damages)}, first {damages[0]}; see all of it with"
            f" python -m data_prep verify {path}, then copy or convert the data set again"
        )


def summary_of(damages: list[Damage]) -> str:
    """How many samples and files are wrong, in words."""
    samples = len({(damage.split, damage.index) for damage in damages if damage.index is not None})
    files = sum(damage.index is None for damage in damages)
    parts = [count(samples, "damaged sample")] if samples else []
    parts += [f"{count(files, 'file')} wrong as a whole"] if files else []
    return " and ".join(parts)


def _open_split(
    verification: Verification, name: str, beton_path: Path, manifest_path: Path
) -> tuple[Beton, Manifest] | None:
    """Both files as far as they can be opened and compared; what is wrong with them goes to the verification."""
    for path in (beton_path, manifest_path):
        if path.exists() and not path.is_file():  # a named pipe would hold whoever opens it
            verification.damages.append(
                Damage(name, path, None, None, f"{path}: is {what_it_is(path)}, not a file; copy it again")
            )
            return None
    problems = []
    beton = manifest = None
    try:
        beton = Beton.open(beton_path)
    except UserError as error:
        problems.append(Damage(name, beton_path, None, None, str(error)))
    try:
        manifest = read_manifest(manifest_path)
    except UserError as error:
        problems.append(Damage(name, manifest_path, None, None, str(error)))
    if manifest is not None:
        try:
            manifest.check_names()
        except UserError as error:
            problems.append(Damage(name, manifest_path, None, None, str(error)))
        records = _compare_records(name, beton_path, manifest)
        verification.damages += records
        if beton is None and records:
            problems = problems[1:]  # that it cannot be opened is because of them
        elif beton is not None and not records:
            try:
                manifest.check_belongs_to(beton)
            except UserError as error:
                problems.append(Damage(name, manifest_path, None, None, str(error)))
    verification.damages += problems
    if beton is None or manifest is None or len(beton) != len(manifest):
        return None
    return beton, manifest


def _compare_records(name: str, path: Path, manifest: Manifest) -> list[Damage]:
    """All samples whose record in the beton is not as the manifest says, also where ``Beton.open`` refuses the file.

    Nothing if the header is so wrong that the records' places are not known: then that is what is said.
    """
    count = len(manifest)
    table_offset = manifest.beton_bytes - count * ALLOCATION.itemsize
    try:
        header = np.fromfile(path, HEADER, 1)
        metadata = np.fromfile(path, METADATA, count, offset=HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize)
        table = np.fromfile(path, ALLOCATION, count, offset=table_offset)
        same_size = path.stat().st_size == manifest.beton_bytes
    except OSError:
        return []
    expected = (VERSION, 2, count, table_offset)
    if not same_size or len(header) == 0 or len(table) != count:
        return []
    if tuple(header[0][["version", "num_fields", "num_samples", "alloc_table_ptr"]].tolist()) != expected:
        return []
    image = metadata["image"]
    entries = np.zeros(count, ALLOCATION)
    times_listed = np.zeros(count, np.int64)
    known = table["sample_id"] < count
    ids = table["sample_id"][known].astype(np.int64)
    np.add.at(times_listed, ids, 1)
    entries[ids] = table[known]
    checks: list[tuple[np.ndarray, Callable[[int], str]]] = [
        (
            metadata["label"] != manifest.labels,
            lambda i: f"label {metadata['label'][i]} where the manifest has {manifest.labels[i]}",
        ),
        (
            (image["height"] != manifest.heights) | (image["width"] != manifest.widths),
            lambda i: (
                f"{image['height'][i]}x{image['width'][i]} pixels where the manifest has"
                f" {manifest.heights[i]}x{manifest.widths[i]}"
            ),
        ),
        (
            (image["mode"] == RAW)
            & (manifest.sizes != 3 * manifest.heights.astype(np.int64) * manifest.widths),
            lambda i: f"said to be raw, but its {manifest.sizes[i]} bytes are not its pixels",
        ),
        (image["mode"] > RAW, lambda i: f"stored in mode {image['mode'][i]}, neither JPEG nor raw"),
        (times_listed != 1, lambda i: f"{times_listed[i]} entries in the allocation table"),
        (
            (times_listed == 1) & (entries["size"] != manifest.sizes.astype(np.uint64)),
            lambda i: f"{entries['size'][i]} stored bytes where the manifest has {manifest.sizes[i]}",
        ),
        (
            (times_listed == 1) & (entries["ptr"] != image["data_ptr"]),
            lambda i: f"two positions in the file, {image['data_ptr'][i]} and {entries['ptr'][i]}",
        ),
    ]
    reasons: dict[int, list[str]] = {}
    for differs, reason in checks:
        for index in map(int, np.flatnonzero(differs)):
            reasons.setdefault(index, []).append(reason(index))
    sources = _sources(manifest) if reasons else []
    return [Damage(name, path, index, sources[index], "; ".join(reasons[index])) for index in sorted(reasons)]


def _verify_images(
    verification: Verification,
    name: str,
    beton: Beton,
    manifest: Manifest,
    workers: int,
    decode: bool,
    progress: Progress,
) -> None:
    """Hash all samples in the file's order, with ``workers`` threads."""
    wrong: list[tuple[int, str]] = []
    with _ReadAhead(beton.path) as read_ahead, progress(name, int(beton.sizes.sum())) as advance:

        def check(portion: np.ndarray) -> list[tuple[int, str]]:
            read_ahead(
                int(beton.offsets[portion[0]]), int(beton.offsets[portion[-1]] + beton.sizes[portion[-1]])
            )
            expected = manifest.hashes.take(_arrow_indices(portion)).to_pylist()
            results = (
                (int(index), _problem(beton, int(index), hash_, decode))
                for index, hash_ in zip(portion, expected, strict=True)
            )
            return [(index, problem) for index, problem in results if problem is not None]

        for portion, found in _in_order(_portions(beton), check, workers):
            wrong += found
            portion_bytes = int(beton.sizes[portion].sum())
            verification.checked_images += len(portion)
            verification.checked_bytes += portion_bytes
            advance(portion_bytes)
    sources = _sources(manifest) if wrong else []
    verification.damages += [
        Damage(name, beton.path, index, sources[index], problem) for index, problem in sorted(wrong)
    ]


def _problem(beton: Beton, index: int, expected: str, decode: bool) -> str | None:
    try:
        stored = beton.image_bytes(index)
    except UserError as error:
        return str(error)
    if hash_stored(stored) != expected:
        return "its stored bytes are not those that were written"
    # The manifest does not list the mode. It shows: stored bytes are a JPEG of this size, or they are not.
    if (beton.modes[index] == JPEG) != _is_jpeg(stored, int(beton.heights[index]), int(beton.widths[index])):
        return "its record says JPEG where raw pixels are stored, or the other way round"
    if decode:
        try:
            beton.decode(index, np.empty((beton.heights[index], beton.widths[index], 3), np.uint8))
        except UserError as error:
            return f"its bytes are those that were written, but do not decode ({error})"
    return None


def _is_jpeg(stored: np.ndarray, height: int, width: int) -> bool:
    try:
        header = jpeg_header(stored.data)
    except DecodeError:
        return False
    return (header.height, header.width) == (height, width)


def _portions(beton: Beton) -> Iterator[np.ndarray]:
    """All samples' indices in the file's order, in portions of about :data:`_PORTION_BYTES`."""
    order = np.argsort(beton.offsets, kind="stable")
    ends = np.cumsum(beton.sizes[order])
    numbers = (ends - 1) // _PORTION_BYTES
    yield from np.split(order, np.flatnonzero(np.diff(numbers)) + 1)


def _in_order(
    portions: Iterator[np.ndarray], check: Callable[[np.ndarray], list[tuple[int, str]]], workers: int
) -> Iterator[tuple[np.ndarray, list[tuple[int, str]]]]:
    """Each portion with its result; a bounded number at a time, and none left running if the caller stops."""
    waiting: deque[tuple[np.ndarray, Future[list[tuple[int, str]]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        for portion in portions:
            waiting.append((portion, pool.submit(check, portion)))
            if len(waiting) >= _PORTIONS_PER_WORKER * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class _ReadAhead:
    """Tells the kernel what is read next, because several threads in one file look like random reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> _ReadAhead:
        if hasattr(os, "posix_fadvise"):  # Linux; macOS has none
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __call__(self, start: int, end: int) -> None:
        if self._descriptor >= 0:
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _arrow_indices(indices: np.ndarray) -> object:
    import pyarrow as pa

    # By the buffer: pa.array() of an array would import pandas (2 s).
    return pa.Array.from_buffers(pa.int64(), len(indices), [None, pa.py_buffer(indices)])


def _sources(manifest: Manifest) -> list[str]:
    """The samples' names. The fingerprint does not cover them, so they may be unreadable when all else is fine."""
    try:
        return manifest.sources()
    except (OSError, KeyError, ValueError):  # pyarrow's exceptions are ValueErrors and KeyErrors
        return ["name unreadable"] * len(manifest)
