"""The interface of every kind of source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

WriteMode = Literal["auto", "jpg", "raw", "smart"]
"""How images are stored; :class:`data_prep.conversion.encode.EncodeSettings` says what each means."""


@dataclass(frozen=True)
class SourceImage:
    """One image of a source; whoever works on it fetches its bytes, in a separate thread."""

    name: str
    label: int
    load: Callable[[], bytes | np.ndarray]
    """Gives the encoded image (JPEG, PNG, or whatever else Pillow reads), or (H, W, 3) uint8 pixels.

    Raises :class:`~nfnet_ray.data.decoding.pillow_image.UnreadableImageError` where the source holds none, and OSError
    where its disk fails."""


class SourceSplit(Protocol):
    """One split of a source. Names and labels are known at once; the images stream."""

    @property
    def names(self) -> Sequence[str]:
        """A name per image that does not depend on the source's path."""

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
    """Remarks for the user about how the source was read."""
