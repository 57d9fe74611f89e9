"""scikit-learn's handwritten digits: real scans, no download, a data set in a second.

1,797 grey images of 8x8 pixels with 17 levels: the test part of the UCI "Optical Recognition of Handwritten
Digits" data set (E. Alpaydin, C. Kaynak, 1998, doi:10.24432/C50P49).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.conversion.convert import ConvertSettings, OutTakenError, convert
from data_prep.conversion.splits import plan_splits
from data_prep.sources.source import Source, SourceImage
from nfnet_ray.data.files.dataset import DatasetSummary, open_dataset
from nfnet_ray.errors import UserError


@dataclass(frozen=True)
class DigitsPart:
    """Which of the digits, and the share of each class's images that validates; ``kind`` names it in the data set.

    Studies keep it in the folder ``name`` of ``data``.
    """

    name: str
    kind: str
    digits: str
    holdout: float


ALL_DIGITS = DigitsPart("digits", "scikit-learn digits", "0123456789", 0.2)
"""1,437 images to train with and 360 to validate."""
HALF_VALIDATES = DigitsPart("digits_half", "scikit-learn digits, half of them to validate", "0123456789", 0.5)
"""For questions about a point or two, which 360 images cannot tell: 898 images to train with and 899 to validate."""
FIRST_HALF = DigitsPart("digits_0_to_4", "scikit-learn digits, 0 to 4", "01234", 0.2)
"""To learn something that may help with the others: 720 images to train with and 181 to validate."""
SECOND_HALF_FEW = DigitsPart(
    "digits_5_to_9", "scikit-learn digits, 5 to 9, few to train with", "56789", 1 - 50 / 896
)
"""Ten images of each class to train with, and all the others to validate: 50 and 846."""

_SIDE = 32  # pixels: CIFAR's size, so that what trains on one trains on the other
_JPEG_QUALITY = 95
_BRIGHTEST = 16  # the data set's pixels are 0 to 16


def write_digits(out_directory: Path, part: DigitsPart = ALL_DIGITS) -> Path:
    """Write the digits, or a part of them, as a data set, the same every time.

    Each image is enlarged to 32x32 pixels with Pillow's bicubic filter (smooth strokes, as a scan at that
    size would have) and stored as a grey JPEG of quality 95. Does nothing where it was done before. When
    several processes do it at once, one puts its result in place and all return.

    Returns:
        ``out_directory``.

    Raises:
        UserError: the folder holds something else or cannot be written, or scikit-learn is missing.
    """
    out = Path(out_directory)
    if _holds_digits(out, part):
        return out
    source = open_digits(part)
    try:
        convert(source, plan_splits(source, part.holdout), out, ConvertSettings())
    except OutTakenError:
        if not _holds_digits(out, part):
            raise
    return out


def describe_digits(out_directory: Path, part: DigitsPart = ALL_DIGITS) -> DatasetSummary:
    """The summary of the data that :func:`write_digits` would write, without a fingerprint. Writes nothing."""
    source = open_digits(part)
    plan = plan_splits(source, part.holdout)
    train, validation = len(plan.train.indices), len(plan.validation.indices)
    return DatasetSummary(
        Path(out_directory), train, validation, source.class_names, "", (_SIDE, _SIDE), part.kind
    )


def open_digits(part: DigitsPart) -> Source:
    """The digits, or a part of them, as a source with a training split only."""
    # The table is read from the installed package's folder; importing scikit-learn takes seconds.
    spec = importlib.util.find_spec("sklearn")
    folders = spec.submodule_search_locations if spec is not None else None
    tables = [Path(folder) / "datasets" / "data" / "digits.csv.gz" for folder in folders or ()]
    table = next((table for table in tables if table.exists()), None)
    if table is None:
        raise UserError("scikit-learn, which has the digits, is not installed: pip install scikit-learn")
    # A row is 64 pixels, row by row, and the digit.
    values = np.loadtxt(table, delimiter=",", dtype=np.int64)
    pixels = np.rint(values[:, :-1] * (255 / _BRIGHTEST)).astype(np.uint8).reshape(-1, 8, 8)
    chosen = [index for index, digit in enumerate(values[:, -1]) if str(digit) in part.digits]
    names = [f"digits/{index:04}" for index in chosen]
    labels = np.array([part.digits.index(str(digit)) for digit in values[chosen, -1]], np.int64)
    split = _DigitsSplit(names, labels, pixels[chosen])
    return Source(part.kind, tuple(part.digits), {"train": split})


@dataclass(frozen=True)
class _DigitsSplit:
    names: list[str]
    labels: np.ndarray
    pixels: np.ndarray

    def images(self, indices: np.ndarray) -> Iterator[SourceImage]:
        for index in indices:
            load = partial(_enlarge, self.pixels[index])
            yield SourceImage(self.names[index], int(self.labels[index]), load)


def _enlarge(pixels: np.ndarray) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _holds_digits(out: Path, part: DigitsPart) -> bool:
    return (out / "train.beton").exists() and open_dataset(out).train.manifest.settings["source"] == part.kind
