"""Without libffcv: the same samples in the same order, the same crops, nearly the same pixels. About 3 s."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nfnet_ray.data.decoding import decode
from nfnet_ray.data.decoding.decode import decode_jpeg, decode_jpeg_box, decode_jpeg_top, resize_crop
from nfnet_ray.data.decoding.jpeg import DecodeError
from nfnet_ray.data.files.beton import RAW, Beton, BetonWriter
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.files.manifest import hash_stored, write_manifest
from nfnet_ray.data.loading.loader import EvalLoader, TrainLoader
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe

Switch = Callable[[str], None]

# How a JPEG may be written: Pillow's options. The first is what cameras and ImageNet have.
KINDS: dict[str, dict[str, object]] = {
    "4:2:0": {"subsampling": "4:2:0", "quality": 90},
    "4:4:4": {"subsampling": "4:4:4", "quality": 95},
    "progressive": {"progressive": True, "quality": 85},
    "restarts": {"restart_marker_blocks": 3, "quality": 85},
    "Exif and comment": {"exif": b"Exif\0\0" + b"x" * 300, "comment": b"\xff\xda\xff\xd9"},
}
# What is between libjpeg's fast inverse transform and its accurate one, in levels of 255.
MOST_LEVELS, MOST_MEAN_LEVELS = 30, 2.0


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
    """``switch(name)``: from here on that decoder decodes."""

    def to(name: str) -> None:
        monkeypatch.setenv(decode.DECODER_VARIABLE, name)
        decode.decoder.cache_clear()

    yield to
    decode.decoder.cache_clear()


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def write_split(stem: Path, images: list[Image.Image], shift: int) -> None:
    """Every fifth image raw, one grey, the rest JPEGs of all kinds; five classes."""
    hashes = []
    with BetonWriter(stem.with_suffix(".beton"), capacity=len(images)) as writer:
        for number, image in enumerate(images):
            options = list(KINDS.values())[number % len(KINDS)]
            is_raw = number % 5 == 4
            pixels = image.convert("L") if number == 3 else image
            stored = np.asarray(image).tobytes() if is_raw else jpeg(pixels, **options)
            size = {"height": image.height, "width": image.width}
            writer.append(stored, label=(number + shift) % 5, mode=RAW if is_raw else 0, **size)
            hashes.append(hash_stored(stored))
    write_manifest(
        stem.with_suffix(".parquet"),
        beton=Beton.open(stem.with_suffix(".beton")),
        class_names=[f"class {label}" for label in range(5)],
        sources=[f"{number}" for number in range(len(images))],
        hashes=hashes,
        settings={},
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, photograph: Image.Image) -> Dataset:
    """33 + 23 cuts of a photograph, of 48 to 300 pixels a side."""
    folder = tmp_path_factory.mktemp("plain")
    generator = np.random.default_rng(0)
    for shift, (name, count) in enumerate((("train", 33), ("validation", 23))):
        cuts = []
        for _ in range(count):
            width, height = (int(side) for side in generator.integers(48, 300, size=2))
            left, top = int(generator.integers(0, 640 - width)), int(generator.integers(0, 427 - height))
            cuts.append(photograph.crop((left, top, left + width, top + height)))
        write_split(folder / name, cuts, shift)
    return open_dataset(folder)


def recipe(**fields: object) -> DataRecipe:
    return DataRecipe(
        image_size=64,
        eval_size=64,
        mixing=MixingRecipe(mixup_alpha=None, cutmix_alpha=None),
        randaugment=RandAugmentRecipe(layers=0),
        **fields,  # type: ignore[arg-type]
    )


def assert_close(plain: np.ndarray, compiled: np.ndarray) -> None:
    difference = np.abs(plain.astype(np.int64) - compiled.astype(np.int64))
    assert difference.max() <= MOST_LEVELS
    assert difference.reshape(len(difference), -1).mean(axis=1).max() <= MOST_MEAN_LEVELS


def train_epoch(
    dataset: Dataset, chosen: DataRecipe, rank: int, world_size: int
) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """The indices, labels and uint8 or float pixels of epoch 2."""
    loader = TrainLoader(
        dataset.train,
        chosen,
        batch_size=8,
        seed=3,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        threads=2,
    )
    batches = list(loader.epoch(2))
    return (
        np.concatenate([batch.indices for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.images for batch in batches]).numpy(),
    )


@pytest.mark.parametrize("crop", ["random_resized", "padded"])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_training_sees_the_same_samples_labels_and_crops(
    photographs: Dataset, switch: Switch, crop: str, rank: int, world_size: int
) -> None:
    epochs = []
    for name in ("plain", "libffcv"):
        switch(name)
        epochs.append(train_epoch(photographs, recipe(crop=crop, resident="never"), rank, world_size))
    (indices, labels, images), (expected_indices, expected_labels, expected_images) = epochs
    assert np.array_equal(indices, expected_indices)
    assert len(indices) == 32 // world_size
    assert torch.equal(labels, expected_labels)
    assert_close(images, expected_images)


@pytest.mark.parametrize("crop", ["squash", "central", "whole"])
def test_evaluation_sees_the_same_images(photographs: Dataset, switch: Switch, crop: str) -> None:
    seen = []
    for name in ("plain", "libffcv"):
        switch(name)
        chosen = recipe(crop="padded", resident="never", eval_crop=crop)
        loader = EvalLoader(
            photographs.validation,
            chosen,
            batch_size=5,
            rank=0,
            world_size=1,
            device=torch.device("cpu"),
            threads=2,
        )
        seen.append(list(loader))
    for ours, theirs in zip(*seen, strict=True):
        assert np.array_equal(ours.indices, theirs.indices)
        assert torch.equal(ours.labels, theirs.labels)
        assert_close(ours.images.numpy(), theirs.images.numpy())


def test_whole_images_are_close_and_raw_ones_equal(photographs: Dataset, switch: Switch) -> None:
    beton = photographs.train.beton
    for index in range(len(beton)):
        decoded = {}
        for name in ("plain", "libffcv"):
            switch(name)
            decoded[name] = np.zeros((beton.heights[index], beton.widths[index], 3), np.uint8)
            beton.decode(index, decoded[name])
        if beton.modes[index] == RAW:
            assert np.array_equal(decoded["plain"], decoded["libffcv"])
        assert_close(decoded["plain"][None], decoded["libffcv"][None])


def test_resizing_is_opencvs_to_one_level(switch: Switch) -> None:
    """Bilinear and whole-number ratios to the bit; a mean over parts of pixels rounds float sums of another order."""
    generator = np.random.default_rng(1)
    kinds = set()
    for number in range(400):
        height, width, new_height, new_width = (int(side) for side in generator.integers(1, 130, size=4))
        if number % 4 == 0:
            height, width = (
                new_height * int(generator.integers(1, 5)),
                new_width * int(generator.integers(1, 5)),
            )
        elif number % 4 == 1:
            height, width = (
                new_height + int(generator.integers(0, 80)),
                new_width + int(generator.integers(1, 80)),
            )
        top, left = (int(margin) for margin in generator.integers(0, 5, size=2))
        source = generator.integers(0, 256, (height + top + 2, width + left + 2, 3), np.uint8)
        resized = {}
        for name in ("plain", "libffcv"):
            switch(name)
            resized[name] = np.zeros((new_height, new_width, 3), np.uint8)
            resize_crop(source, top, left, height, width, resized[name])
        grows = new_height > height or new_width > width
        is_exact = grows or (height % new_height == 0 and width % new_width == 0)
        difference = np.abs(resized["plain"].astype(np.int64) - resized["libffcv"])
        assert difference.max() <= (0 if is_exact else 1), (height, width, new_height, new_width)
        assert (difference > 0).mean() <= 0.1
        kinds.add((grows, is_exact))
    assert kinds == {(True, True), (False, True), (False, False)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_an_error(photograph: Image.Image, switch: Switch, kind: str) -> None:
    switch("plain")
    encoded = jpeg(photograph.crop((100, 100, 164, 148)), **KINDS[kind])
    out = np.empty((48, 64, 3), np.uint8)
    decode_jpeg(np.frombuffer(encoded, np.uint8), out)
    for length in [*range(1, len(encoded) - 9, 23), *range(len(encoded) - 9, len(encoded))]:
        with pytest.raises(DecodeError):
            decode_jpeg(np.frombuffer(encoded[:length], np.uint8), out)


def test_what_shows_in_the_markers_is_an_error(photograph: Image.Image, switch: Switch) -> None:
    switch("plain")
    part = photograph.crop((300, 100, 364, 148))
    plain_jpeg, restarting = jpeg(part), jpeg(part, restart_marker_blocks=3)
    middle = (plain_jpeg.index(b"\xff\xda") + len(plain_jpeg)) // 2
    damaged = [
        plain_jpeg[:middle] + b"\xff\xd9" + plain_jpeg[middle + 2 :],  # an end in the middle
        plain_jpeg[:middle] + b"\xff\xd3" + plain_jpeg[middle + 2 :],  # a restart where there are none
        plain_jpeg[:middle] + b"\xff\x77" + plain_jpeg[middle + 2 :],  # no marker at all
        restarting.replace(b"\xff\xd1", b"\xff\xd2", 1),
        restarting.replace(b"\xff\xd1", b"\x00\xd1", 1),
        plain_jpeg.replace(b"\xff\xdb", b"\x00\xdb", 1),
        jpeg(part.convert("CMYK")),
    ]
    for encoded in damaged:
        with pytest.raises(DecodeError, match=r"damaged|Pillow|components"):
            decode_jpeg(np.frombuffer(encoded, np.uint8), np.empty((48, 64, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_unusual_parts_of_a_sound_jpeg_are_no_damage(
    photograph: Image.Image, switch: Switch, kind: str
) -> None:
    """Images of every size, so of every number of bits left in the last byte; bytes after the end; fill bytes."""
    switch("plain")
    for side in range(1, 65):
        encoded = jpeg(photograph.crop((300, 100, 300 + side, 148)), **KINDS[kind])
        expected = np.empty((48, side, 3), np.uint8)
        decode_jpeg(np.frombuffer(encoded, np.uint8), expected)
        for variant in (encoded + b"\0thumbnail\xff\xd8", encoded[:-2] + b"\xff\xff\xff\xd9"):
            out = np.empty_like(expected)
            decode_jpeg(np.frombuffer(variant, np.uint8), out)
            assert np.array_equal(out, expected)


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4"])
def test_changed_bits_are_noticed_about_as_often_as_by_libffcv(
    photograph: Image.Image, switch: Switch, kind: str
) -> None:
    """One bit in the entropy-coded data of a JPEG in one scan. Of several scans, or with restarts, far fewer are."""
    encoded = jpeg(photograph.crop((300, 100, 364, 148)), **KINDS[kind])
    start = encoded.rindex(b"\xff\xda") + 12
    generator = np.random.default_rng(2)
    noticed = {"plain": 0, "libffcv": 0}
    for _ in range(200):
        damaged = bytearray(encoded)
        damaged[int(generator.integers(start, len(encoded) - 2))] ^= 1 << int(generator.integers(0, 8))
        for name in noticed:
            switch(name)
            try:
                decode_jpeg(np.frombuffer(bytes(damaged), np.uint8), np.empty((48, 64, 3), np.uint8))
            except DecodeError:
                noticed[name] += 1
    assert noticed["libffcv"] > 20
    assert noticed["plain"] >= 0.9 * noticed["libffcv"]


@pytest.mark.parametrize("kind", KINDS)
def test_upper_rows_and_boxes_alone_are_those_of_the_whole(
    photograph: Image.Image, switch: Switch, kind: str
) -> None:
    switch("plain")
    encoded = np.frombuffer(jpeg(photograph.crop((300, 100, 364, 148)), **KINDS[kind]), np.uint8)
    whole = np.empty((48, 64, 3), np.uint8)
    decode_jpeg(encoded, whole)
    for bottom in (1, 15, 16, 20, 47, 48):
        assert np.array_equal(decode_jpeg_top(encoded, 48, 64, bottom)[:bottom], whole[:bottom])
        box = decode_jpeg_box(encoded, 48, 64, bottom // 2, 7, bottom - bottom // 2, 30)
        assert np.array_equal(box, whole[bottom // 2 : bottom, 7:37])


def test_it_takes_over_where_libffcv_is_missing_and_says_so_once(
    photographs: Dataset,
    switch: Switch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    switch("")
    monkeypatch.setitem(sys.modules, "ffcv", None)  # as if it were not installed
    beton = photographs.train.beton
    out = np.empty((beton.heights[0], beton.widths[0], 3), np.uint8)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            beton.decode(0, out)
    (record,) = caplog.records
    assert "libffcv" in record.message
    assert "not installed" in record.message
    assert decode.decoder() == "plain"


def test_an_unknown_decoder_is_refused_by_name(switch: Switch) -> None:
    switch("turbo")
    with pytest.raises(UserError, match="NFNET_RAY_DECODER=turbo"):
        decode.decoder()
