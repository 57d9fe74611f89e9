"""What a conversion reads from: the shape every source has, and the choice of the right one.

To add a kind of source, write a function that returns a :class:`Source` and name it in :func:`open_source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nfnet_ray.errors import UserError


class UnreadableImageError(Exception):
    """There is no image in what the source holds, or no decoder makes one of it."""


@dataclass(frozen=True)
class SourceImage:
    """One image on its way; its bytes are fetched by whoever works on it, in a thread of its own."""

    name: str
    label: int
    load: Callable[[], bytes]
    """Gives the encoded image: JPEG, PNG, or whatever else Pillow reads.

    Raises :class:`UnreadableImageError` where the source holds none, and OSError where its disk fails."""


class SourceSplit(Protocol):
    """One split of a source. Names and labels are known at once; the images stream."""

    @property
    def names(self) -> Sequence[str]:
        """A name per image that does not depend on where the source lies."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, positions in the source's class names."""

    def images(self, indices: np.ndarray) -> Iterator[SourceImage]:
        """The images at ``indices`` (ascending), in that order, few of them in memory at a time."""


@dataclass(frozen=True)
class Source:
    """A data set as it was found."""

    kind: str
    """For people: "image folder", "Parquet", …"""
    class_names: tuple[str, ...]
    splits: Mapping[str, SourceSplit]
    """Keys: ``train`` always, ``validation`` and ``test`` where the source has them."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the source was read."""


def open_source(paths: Sequence[Path], label_column: str) -> Source:
    """Recognise and list a source.

    Args:
        paths: one folder of images, or Parquet files, or one folder of Parquet files.
        label_column: the Parquet column that holds the labels.

    Raises:
        UserError: there is nothing there that can be converted.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check SOURCE")
    if all(path.is_file() and path.suffix == ".parquet" for path in paths):
        return _parquet(paths, label_column)
    if len(paths) > 1:
        raise UserError("several SOURCEs are understood only if each is a Parquet file; give one folder")
    (path,) = paths
    if path.is_file():
        raise UserError(f"{path}: not a Parquet file; give a folder of images, or .parquet files")
    shards = sorted(path.glob("*.parquet"))
    if shards:
        return _parquet(shards, label_column)
    from data_prep.image_folder import open_image_folder

    return open_image_folder(path)


def _parquet(files: Sequence[Path], label_column: str) -> Source:
    from data_prep.parquet import open_parquet

    return open_parquet(files, label_column)
