"""``python -m data_prep info``: what is in a data set, in words and as a picture of its classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.lines import say
from nfnet_ray.data.files.beton import JPEG, Beton
from nfnet_ray.data.files.dataset import Dataset, Split
from nfnet_ray.data.files.manifest import Manifest
from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable
from nfnet_ray.wording import agree, count, storage_size

if TYPE_CHECKING:  # a summary in words need not wait for Pillow
    from PIL import Image

SHEET_CLASSES = 100  # more than that is no overview; they are spread evenly over all
_FEWEST_IMAGES, _MOST_IMAGES = 2, 8  # of each class
_IMAGES_ACROSS = 20
_CELL, _GAP, _LABEL = 72, 8, 14  # pixels
_INK, _PAPER, _FRAME = (40, 40, 40), (255, 255, 255), (232, 232, 232)
_SHOWN_SETTINGS_CHARACTERS = 200


@dataclass(frozen=True)
class Duplicates:
    """Images whose stored bytes are those of another one."""

    surplus: dict[str, int]
    """Split name to how many of its images are there once already, in the same split."""
    leaked: int
    """Validation images that are training images too."""
    contradictory: int
    """Different stored bytes that carry more than one label."""
    examples: tuple[tuple[str, str], ...]
    """Names of a few leaked images: in validation, in train."""


def describe(dataset: Dataset) -> list[str]:
    """A summary of a data set in lines of text. Reads no image."""
    splits = (dataset.train, dataset.validation)
    images = sum(map(len, splits))
    file_bytes = sum(split.beton.file_bytes for split in splits)
    lines = [
        f"{dataset.path}: {count(images, 'image')} of {count(len(dataset.class_names), 'class')},"
        f" {storage_size(file_bytes)}",
        f"fingerprint {dataset.fingerprint}",
    ]
    for split in splits:
        lines += _describe_split(split)
    lines.append(f"classes: {_shortened(', '.join(dataset.class_names))}")
    duplicates = find_duplicates(dataset)
    for name, surplus in duplicates.surplus.items():
        if surplus:
            there = agree(surplus, "is", "are")
            lines.append(f"note: {name}: {count(surplus, 'image')} {there} there once already, byte for byte")
    if duplicates.contradictory:
        lines.append(
            f"warning: {count(duplicates.contradictory, 'image')} {agree(duplicates.contradictory, 'is', 'are')} there"
            " several times, byte for byte, with different labels"
        )
    if duplicates.leaked:
        examples = "; ".join(f"{one} is {other}" for one, other in duplicates.examples)
        lines.append(
            f"warning: {duplicates.leaked:,} of {count(len(dataset.validation), 'validation image')}"
            f" {agree(duplicates.leaked, 'is a training image', 'are training images')} too, byte for byte: accuracy"
            f" on them says little ({examples})"
        )
    return lines


def _describe_split(split: Split) -> Iterator[str]:
    beton, name = split.beton, split.name
    jpegs = int((beton.modes == JPEG).sum())
    modes = [
        f"{images:,} {mode}" for mode, images in (("JPEG", jpegs), ("raw", len(beton) - jpegs)) if images
    ]
    yield (
        f"{name}: {count(len(beton), 'image')} ({', '.join(modes)}), {storage_size(beton.file_bytes)},"
        f" {_spread(beton.sizes)} stored bytes an image"
    )
    shorter = np.minimum(beton.heights, beton.widths)
    if (beton.heights == beton.heights[0]).all() and (beton.widths == beton.widths[0]).all():
        yield f"  all {beton.heights[0]}x{beton.widths[0]} pixels (height x width)"
    else:
        yield (
            f"  height {_spread(beton.heights)}, width {_spread(beton.widths)},"
            f" shorter side {_spread(shorter)} pixels"
        )
        yield f"  shorter side: {_histogram(shorter)}"
    counts = np.bincount(beton.labels, minlength=len(split.manifest.class_names))
    yield f"  {_spread(counts)} images a class"
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        names = _shortened(", ".join(split.manifest.class_names[index] for index in empty))
        yield f"  note: {count(len(empty), 'class')} {agree(len(empty), 'has', 'have')} no image here: {names}"
    yield from _describe_settings(split.manifest)


def _describe_settings(manifest: Manifest) -> Iterator[str]:
    settings = dict(manifest.settings)
    re_encoded = settings.pop("re_encoded", None) or {}
    left_out = settings.pop("skipped", None) or []
    settings.pop("split", None)
    plain = ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    )
    if plain:
        yield f"  written with {_shortened(plain)}"
    if re_encoded:
        reasons = ", ".join(f"{images:,} {reason}" for reason, images in re_encoded.items())
        total = sum(re_encoded.values())
        yield f"  {count(total, 'image')} {agree(total, 'was', 'were')} re-encoded: {reasons}"
    if left_out:
        were = agree(len(left_out), "was", "were")
        yield f"  {count(len(left_out), 'image')} {were} left out: {_shortened(', '.join(map(str, left_out)))}"


def find_duplicates(dataset: Dataset) -> Duplicates:
    """Images of equal stored bytes, by the manifests' hashes; 100 bytes of memory an image."""
    splits = (dataset.train, dataset.validation)
    hashes = [_hash_array(split.manifest) for split in splits]
    surplus = {split.name: len(own) - len(np.unique(own)) for split, own in zip(splits, hashes, strict=True)}
    _, numbers = np.unique(np.concatenate(hashes), return_inverse=True)
    labels = np.concatenate([split.beton.labels for split in splits])
    pairs = np.unique(np.stack([numbers, labels]), axis=1)
    contradictory = int((np.bincount(pairs[0]) > 1).sum())
    train, validation = numbers[: len(hashes[0])], numbers[len(hashes[0]) :]
    leaked = np.flatnonzero(np.isin(validation, train))
    examples: list[tuple[str, str]] = []
    if len(leaked):
        names = [split.manifest.sources() for split in splits]
        for index in leaked[:3]:
            twin = int(np.argmax(train == validation[index]))
            examples.append((names[1][index], names[0][twin]))
    return Duplicates(surplus, len(leaked), contradictory, tuple(examples))


def _hash_array(manifest: Manifest) -> np.ndarray:
    """(N,) of 32 ASCII characters each."""
    return np.array(manifest.hashes.to_pylist(), dtype="S32")


def write_class_sheet(dataset: Dataset, path: Path) -> int:
    """Draw the first images of the classes; gives how many classes there are on it.

    Training images, and validation images where those are too few; above them the class and how many it has of both.
    Of more than :data:`SHEET_CLASSES` classes, that many are taken, evenly spread. Each image is shown whole.

    Raises:
        UserError: an image is damaged, or the suffix of ``path`` means no kind of picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{path}: give a name that ends in .png or .jpg")
    names = dataset.class_names
    count = min(len(names), SHEET_CLASSES)
    labels = np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))
    images_each = min(_MOST_IMAGES, max(_FEWEST_IMAGES, SHEET_CLASSES // count))
    columns = min(count, _IMAGES_ACROSS // images_each)
    rows = -(-len(labels) // columns)
    width, height = images_each * (_CELL + 2), _CELL + _LABEL
    sheet = Image.new("RGB", (_GAP + columns * (width + _GAP), _GAP + rows * (height + _GAP)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    of_class = _images_of_classes(dataset.train), _images_of_classes(dataset.validation)
    for number, label in enumerate(map(int, labels)):
        row, column = divmod(number, columns)
        left, top = _GAP + column * (width + _GAP), _GAP + row * (height + _GAP)
        train, validation = of_class[0](label), of_class[1](label)
        title = f"{printable(names[label])} ({len(train):,} + {len(validation):,})"
        draw.text((left, top), _fitting(title, width, font.getlength), _INK, font)
        chosen = [(dataset.train.beton, index) for index in train[:images_each]]
        chosen += [(dataset.validation.beton, index) for index in validation[: images_each - len(chosen)]]
        for place, (beton, index) in enumerate(chosen):
            thumbnail = _thumbnail(beton, int(index))
            x, y = left + place * (_CELL + 2), top + _LABEL
            draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), _FRAME)
            sheet.paste(thumbnail, (x + (_CELL - thumbnail.width) // 2, y + (_CELL - thumbnail.height) // 2))
    options: dict[str, Any] = {"optimize": True} if path.suffix.lower() == ".png" else {"quality": 85}
    sheet.save(path, **options)
    return len(labels)


def _images_of_classes(split: Split) -> Callable[[int], np.ndarray]:
    """Gives the indices of a class's images, in order."""
    order = np.argsort(split.beton.labels, kind="stable")
    starts = np.searchsorted(split.beton.labels[order], np.arange(len(split.manifest.class_names) + 1))
    return lambda label: order[starts[label] : starts[label + 1]]


def _thumbnail(beton: Beton, index: int) -> Image.Image:
    from PIL import Image

    pixels_HWC = np.empty((beton.heights[index], beton.widths[index], 3), np.uint8)
    beton.decode(index, pixels_HWC)
    image = Image.fromarray(pixels_HWC)
    scale = _CELL / max(image.size)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    # Small images are shown with their pixels, as the network sees them.
    return image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


def _fitting(text: str, width: int, length: Callable[[str], float]) -> str:
    if length(text) <= width:
        return text
    while text and length(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _spread(values: np.ndarray) -> str:
    """Smallest, median and largest value, or the one that all have."""
    low, middle, high = int(values.min()), float(np.median(values)), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {middle:,.0f})"


def _histogram(sides: np.ndarray) -> str:
    """Shares of images between powers of two of pixels."""
    exponents = np.floor(np.log2(sides)).astype(int)
    found, counts = np.unique(exponents, return_counts=True)
    return ", ".join(
        f"{1 << exponent} to {(2 << exponent) - 1}: {count / len(sides):.1%}"
        for exponent, count in zip(map(int, found), counts, strict=True)
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_SETTINGS_CHARACTERS else text[: _SHOWN_SETTINGS_CHARACTERS - 2] + " …"


def run_info(dataset: Dataset, sheet: Path | None) -> None:
    """Print the summary, and write the sheet if one is requested."""
    lines: Sequence[str] = describe(dataset)
    for line in lines:
        say(line)
    if sheet is not None:
        classes = write_class_sheet(dataset, sheet)
        say(f"wrote {sheet}: {classes} of {count(len(dataset.class_names), 'class')}")
