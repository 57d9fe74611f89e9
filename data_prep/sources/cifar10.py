"""CIFAR-10 and CIFAR-100 in their binary version: a folder of records, or the ``.tar.gz`` it is distributed in.

A record of CIFAR-10 is a byte with the label, then 3 x 32 x 32 bytes: red, green and blue planes. CIFAR-100's has two
bytes of labels, coarse and fine; the fine one is taken. Source: https://www.cs.toronto.edu/~kriz/cifar.html.
The Python version is refused: it consists of pickles, and reading a pickle may run whatever is in it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename
from typing import IO

import numpy as np

from data_prep.sources.source import Source, SourceImage
from data_prep.sources.tar_index import first_names
from nfnet_ray.errors import UserError

_SIDE = 32  # pixels
_PIXEL_BYTES = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class _Kind:
    """One of the two data sets."""

    name: str
    files: dict[str, tuple[str, ...]]
    """By split."""
    names_file: str
    label_bytes: int
    """Of a record; the last of them is the label."""

    @property
    def record_bytes(self) -> int:
        return self.label_bytes + _PIXEL_BYTES


_KINDS = (
    _Kind(
        "CIFAR-10",
        {
            "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            "validation": ("test_batch.bin",),
        },
        "batches.meta.txt",
        1,
    ),
    _Kind("CIFAR-100", {"train": ("train.bin",), "validation": ("test.bin",)}, "fine_label_names.txt", 2),
)
# Files of the Python versions.
_PICKLES = frozenset({"data_batch_1", "test_batch", "batches.meta"})


@dataclass(frozen=True)
class _CifarSplit:
    place: Path
    """A folder, or a tar file."""
    kind: _Kind
    files: tuple[str, ...]
    counts: tuple[int, ...]
    """Records in each file."""
    names: list[str]
    labels: np.ndarray

    def images(self, indices: np.ndarray) -> Iterator[SourceImage]:
        start = 0
        for file_name, count in zip(self.files, self.counts, strict=True):
            wanted = indices[(indices >= start) & (indices < start + count)].tolist()
            if wanted:
                with _opened(self.place, file_name) as file:
                    for index in wanted:
                        file.seek((index - start) * self.kind.record_bytes + self.kind.label_bytes)
                        load = _Pixels(file.read(_PIXEL_BYTES))
                        yield SourceImage(self.names[index], int(self.labels[index]), load)
            start += count


@dataclass(frozen=True)
class _Pixels:
    planes: bytes

    def __call__(self) -> np.ndarray:
        """(32, 32, 3) uint8."""
        if len(self.planes) < _PIXEL_BYTES:
            raise OSError("its file has become shorter")
        pixels_CHW = np.frombuffer(self.planes, np.uint8).reshape(3, _SIDE, _SIDE)
        return np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0))


def holds_cifar(path: Path) -> bool:
    """Whether a folder or tar file holds one of the data sets, in whichever version."""
    names = _file_names(path)
    return _kind_of(names) is not None or bool(_PICKLES & names)


def open_cifar(path: Path) -> Source:
    """Read the labels of a folder or tar file; the official test images become the validation split.

    Raises:
        UserError: a file is missing or cut short, or it is the Python version.
    """
    names = _file_names(path)
    kind = _kind_of(names)
    if kind is None:
        raise UserError(
            f"{path}: is CIFAR's Python version, whose pickles run code when they are read; give the binary"
            " version (cifar-10-binary.tar.gz)"
        )
    for file in (kind.names_file, *kind.files["train"], *kind.files["validation"]):
        if file not in names:
            raise UserError(f"{path}: {file} of {kind.name} is missing; download the binary version again")
    try:
        with _opened(path, kind.names_file) as lines:
            class_names = tuple(lines.read().decode().split())
        splits = {split: _open_split(path, kind, files) for split, files in kind.files.items()}
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from error
    notes = ("the fine labels are used",) if kind.label_bytes > 1 else ()
    return Source(f"{kind.name}, binary version", class_names, splits, notes)


def _open_split(place: Path, kind: _Kind, files: tuple[str, ...]) -> _CifarSplit:
    counts: list[int] = []
    names: list[str] = []
    labels: list[np.ndarray] = []
    for name in files:
        records: list[bytes] = []
        with _opened(place, name) as file:
            while record := file.read(kind.record_bytes):
                if len(record) < kind.record_bytes:
                    raise UserError(
                        f"{place}: {name}: cut short: not a number of records of {kind.record_bytes:,}"
                        " bytes; download it again"
                    )
                records.append(record[kind.label_bytes - 1 : kind.label_bytes])
        if not records:
            raise UserError(f"{place}: {name}: empty; download it again")
        counts.append(len(records))
        names += [f"{name.removesuffix('.bin')}/{row:05}" for row in range(len(records))]
        labels.append(np.frombuffer(b"".join(records), np.uint8).astype(np.int64))
    return _CifarSplit(place, kind, files, tuple(counts), names, np.concatenate(labels))


def _kind_of(names: set[str]) -> _Kind | None:
    """The data set that has one of these files; which others it must have is checked later."""

    def score(kind: _Kind) -> int:
        return sum(file in names for files in kind.files.values() for file in files)

    best = max(_KINDS, key=score)
    return best if score(best) else None


def _file_names(place: Path) -> set[str]:
    """Without the folder that they lie in, inside a tar file; of a folder's own files only."""
    if place.is_dir():
        return {entry.name for entry in place.iterdir() if entry.is_file()}
    return set(map(basename, first_names(place)))


@contextmanager
def _opened(place: Path, name: str) -> Generator[IO[bytes]]:
    """A file of the folder or of the tar file, whichever ``place`` is."""
    if place.is_dir():
        with open(place / name, "rb") as file:
            yield file
        return
    with tarfile.open(place) as tar:
        member = next((member for member in tar if basename(member.name) == name), None)
        content = tar.extractfile(member) if member is not None else None
        if content is None:
            raise FileNotFoundError(f"no file {name} in {place.name}")
        with content:
            yield content
