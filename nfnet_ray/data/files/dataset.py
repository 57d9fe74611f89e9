"""A data set: a train and a validation beton, each with its manifest, that belong together.

Two layouts are understood:

- a folder with ``train.beton``, ``train.parquet``, ``validation.beton`` and ``validation.parquet``;
- ``NAME.beton`` and ``NAME.parquet``, next to ``NAME.validation.beton`` and ``NAME.validation.parquet``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfnet_ray.data.files.beton import Beton
from nfnet_ray.data.files.manifest import Manifest, read_manifest
from nfnet_ray.errors import DataChangedError, UserError

_SUFFIX = ".beton"


@dataclass(frozen=True, eq=False)
class Split:
    """One beton and its manifest, which were found to belong together."""

    name: str
    """``train`` or ``validation``."""
    beton: Beton
    manifest: Manifest

    def __len__(self) -> int:
        return len(self.beton)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked data set."""

    path: Path
    train: Split
    validation: Split

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.manifest.class_names

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that identify the content of both splits, wherever the files are."""
        both = self.train.manifest.fingerprint + self.validation.manifest.fingerprint
        return hashlib.blake2b(both.encode("ascii"), digest_size=16).hexdigest()

    @property
    def uniform_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels if all images of both splits have it, else None."""
        betons = (self.train.beton, self.validation.beton)
        height, width = int(betons[0].heights[0]), int(betons[0].widths[0])
        same = all(np.all(beton.heights == height) and np.all(beton.widths == width) for beton in betons)
        return (height, width) if same else None

    def check_unchanged(self) -> None:
        """Raises DataChangedError if either beton has been written to since it was opened."""
        for split in (self.train, self.validation):
            split.beton.check_unchanged()


@dataclass(frozen=True)
class DatasetSummary:
    """The facts about a data set that a program needs before it starts anything. Plain values only."""

    path: Path
    train_images: int
    validation_images: int
    class_names: tuple[str, ...]
    fingerprint: str
    uniform_size: tuple[int, int] | None
    """(height, width) in pixels, or None where images differ in size."""
    source: str = ""
    """What it was converted from, in words, as its manifest says."""


def split_paths(path: Path) -> dict[str, tuple[Path, Path]]:
    """Where the data set ``path`` keeps its splits, if it exists: ``{split name: (beton, manifest)}``."""
    if path.suffix == _SUFFIX:
        stems = {"train": path.with_suffix(""), "validation": path.with_suffix(".validation")}
    else:
        stems = {name: path / name for name in ("train", "validation")}
    # Not with_suffix: NAME itself may contain dots.
    return {
        name: (stem.with_name(stem.name + _SUFFIX), stem.with_name(stem.name + ".parquet"))
        for name, stem in stems.items()
    }


def check_is_whole(path: Path) -> None:
    """Raises UserError, with the data set that is meant, for the beton of one of its splits."""
    if path.suffix != _SUFFIX or path.is_dir() or split_paths(path)["validation"][0].exists():
        return
    name, dot, _ = path.name.rpartition(f".validation{_SUFFIX}")
    whole = (
        path.parent
        if path.stem in ("train", "validation")
        else path.with_name(name + _SUFFIX)
        if dot
        else None
    )
    if whole is not None:
        raise UserError(f"{path}: a part of the data set {whole}; give that")


def open_dataset(path: str | os.PathLike[str], fingerprint: str | None = None) -> Dataset:
    """Open a data set and check everything but the images' bytes; a second for a million images.

    Args:
        path: a folder or a ``.beton``, laid out as this module says.
        fingerprint: of the data set that has to be there, the one that a study or a training began with.

    Raises:
        UserError: something is missing, damaged, or does not belong together.
        DataChangedError: it is that, or another data set, where a fingerprint was given.
    """
    if fingerprint is None:
        return _open(path)
    try:
        dataset = _open(path)
    except UserError as error:
        raise DataChangedError(f"the data set that this began with is gone ({error}); put it back") from None
    if dataset.fingerprint != fingerprint:
        raise DataChangedError(
            f"{path} is not the data set that this began with (fingerprint {fingerprint}, now"
            f" {dataset.fingerprint}); put that one back"
        )
    return dataset


def _open(path: str | os.PathLike[str]) -> Dataset:
    if not os.fspath(path):  # Path("") is the current folder
        raise UserError("the Recipe names no data set: set data.path to what data_prep has written")
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such data set; give a folder with train.beton or a .beton file,"
            " or make one: python -m data_prep convert SOURCE OUT"
        )
    if not path.is_dir() and path.suffix != _SUFFIX:
        raise UserError(
            f"{path}: neither a folder nor a {_SUFFIX} file; convert it first: python -m data_prep"
        )
    check_is_whole(path)
    paths = split_paths(path)
    if path.is_dir() and not any(beton.exists() for beton, _ in paths.values()):
        raise UserError(
            f"{path}: holds neither train.beton nor validation.beton; give the folder that a conversion wrote"
        )
    train, validation = (_open_split(name, *files) for name, files in paths.items())
    names, other = train.manifest.class_names, validation.manifest.class_names
    if names != other:
        detail = f"{len(names)} and {len(other)}"
        if len(names) == len(other):
            detail = next(f"'{a}' and '{b}'" for a, b in zip(names, other, strict=True) if a != b)
        raise UserError(
            f"{path}: train and validation have different classes ({detail}); convert both in one go"
        )
    return Dataset(path, train, validation)


def check_dataset(path: str | os.PathLike[str]) -> DatasetSummary:
    """Check a data set as :func:`open_dataset` does, and keep nothing open."""
    dataset = open_dataset(path)
    return DatasetSummary(
        path=dataset.path,
        train_images=len(dataset.train),
        validation_images=len(dataset.validation),
        class_names=dataset.class_names,
        fingerprint=dataset.fingerprint,
        uniform_size=dataset.uniform_size,
        source=str(dataset.train.manifest.settings.get("source", "")),
    )


def _open_split(name: str, beton_path: Path, manifest_path: Path) -> Split:
    for path in (beton_path, manifest_path):
        if path.exists() and not path.is_file():  # a named pipe would hold whoever opens it
            raise UserError(f"{path}: not a regular file; copy the data set again")
    if not beton_path.exists():
        raise UserError(f"{beton_path}: missing, so there are no {name} images; copy it or convert again")
    beton = Beton.open(beton_path)
    if not manifest_path.exists():
        raise UserError(
            f"{beton_path}: its manifest {manifest_path.name} is missing next to it; copy it or convert again"
        )
    manifest = read_manifest(manifest_path)
    manifest.check_belongs_to(beton)
    return Split(name, beton, manifest)
