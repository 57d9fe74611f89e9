"""FFCV's own code reads our files, and we read its: the format is FFCV's, not a relative of it.

The only tests that import FFCV's Python package (about 10 s of compilation), hence one module. About 25 s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.digits import write_digits
from nfnet_ray.data.decoding.decode import resize_crop
from nfnet_ray.data.files.beton import JPEG, RAW, Beton, BetonWriter
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.files.manifest import hash_stored, write_manifest

Decoded = Callable[[Beton, int], np.ndarray]


class Pictures:
    """An indexable data set, as FFCV's writer wants it: deterministic noise and a label."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        noise = np.random.default_rng(index).integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        return noise, index % 7


def write_with_ffcv(path: Path, pictures: Pictures, write_mode: str, workers: int) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode=write_mode), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=workers).from_indexed_dataset(pictures, chunksize=5)


@pytest.mark.parametrize("os_cache", [True, False], ids=["memory map", "page by page"])
def test_ffcv_loader_reads_our_file(tmp_path: Path, decoded: Decoded, os_cache: bool) -> None:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    beton = open_dataset(write_digits(tmp_path / "digits")).validation.beton
    loader = Loader(
        str(beton.path), batch_size=90, num_workers=1, os_cache=os_cache, order=OrderOption.SEQUENTIAL,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )  # fmt: skip
    images, labels = [], []
    for image, label in loader:
        images.append(np.array(image))
        labels.append(np.array(label)[:, 0])
    np.testing.assert_array_equal(np.concatenate(labels), beton.labels)
    ours = np.stack([decoded(beton, index) for index in range(len(beton))])
    np.testing.assert_array_equal(np.concatenate(images), ours)


def test_ffcv_loader_reads_what_each_write_mode_stores(tmp_path: Path, decoded: Decoded) -> None:
    """With ``smart``, noise, whose JPEGs are larger than its pixels, is raw, and photographs stay JPEGs."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    for number in range(12):
        noise = Pictures([(90, 80)] * 12)[number][0]
        pixels = noise if number % 3 else np.full_like(noise, 20 * number)
        folder = tmp_path / "source" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:02}.jpg", quality=100, subsampling="4:4:4")
    modes = {}
    for write_mode in ("jpg", "raw", "smart"):
        out = tmp_path / f"{write_mode}.beton"
        assert main(["convert", str(tmp_path / "source"), str(out), "--write-mode", write_mode]) == 0
        beton = open_dataset(out).train.beton
        modes[write_mode] = set(beton.modes.tolist())
        loader = Loader(
            str(beton.path), batch_size=len(beton), num_workers=1, os_cache=True, order=OrderOption.SEQUENTIAL,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
        )  # fmt: skip
        ((images, labels),) = [(np.array(image), np.array(label)[:, 0]) for image, label in loader]
        np.testing.assert_array_equal(images, [decoded(beton, index) for index in range(len(beton))])
        np.testing.assert_array_equal(labels, beton.labels)
    assert modes == {"jpg": {JPEG}, "raw": {RAW}, "smart": {JPEG, RAW}}


def test_ffcv_reader_finds_our_samples_on_several_pages(tmp_path: Path) -> None:
    """Three images of 3 MB take two pages of 8 MiB; FFCV asks for a sample's bytes by its pointer."""
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    pictures = Pictures([(1000, 1000), (1000, 999), (999, 1000)])
    path = tmp_path / "pages.beton"
    with BetonWriter(path, capacity=5) as writer:
        for image, label in (pictures[index] for index in range(3)):
            writer.append(image.tobytes(), label=label, height=image.shape[0], width=image.shape[1], mode=RAW)
    reader = Reader(str(path))
    assert reader.num_samples == 3
    assert len({int(pointer) // int(reader.page_size) for pointer in reader.alloc_table["ptr"]}) == 2
    sizes = OSCacheManager(reader).ptr_to_size
    stored = np.fromfile(path, np.uint8)
    for index in range(3):
        metadata = reader.metadata[index]
        start = int(metadata["f0"]["data_ptr"])
        image, label = pictures[index]
        assert metadata["f1"] == label
        assert (metadata["f0"]["height"], metadata["f0"]["width"]) == image.shape[:2]
        np.testing.assert_array_equal(stored[start : start + int(sizes[start])], image.ravel())


def test_we_write_byte_for_byte_what_ffcv_writes(tmp_path: Path) -> None:
    """Raw images, since two JPEG encoders differ; several pages, so that gaps and padding count too."""
    pictures = Pictures([(1000, 1000), (1000, 999), (999, 1000), (20, 30), (1200, 1500), (8, 8)])
    theirs, ours = tmp_path / "theirs.beton", tmp_path / "ours.beton"
    write_with_ffcv(theirs, pictures, "raw", workers=1)
    with BetonWriter(ours, capacity=len(pictures)) as writer:
        for image, label in (pictures[index] for index in range(len(pictures))):
            writer.append(image.tobytes(), label=label, height=image.shape[0], width=image.shape[1], mode=RAW)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("write_mode", ["raw", "jpg"])
def test_we_read_what_ffcv_writes(tmp_path: Path, decoded: Decoded, write_mode: str) -> None:
    """Two writers, whose allocation table is not in the samples' order; images of different sizes."""
    from ffcv.libffcv import imdecode

    pictures = Pictures([(20 + index % 5, 31 + index % 3) for index in range(40)])
    path = tmp_path / "theirs.beton"
    write_with_ffcv(path, pictures, write_mode, workers=2)
    beton = Beton.open(path)
    assert len(beton) == 40
    for index in range(40):
        image, label = pictures[index]
        assert beton.labels[index] == label
        expected = image
        if write_mode == "jpg":
            expected = np.empty_like(image)
            height, width = image.shape[:2]
            imdecode(beton.image_bytes(index), expected, height, width, height, width)
        np.testing.assert_array_equal(decoded(beton, index), expected)

    manifest = write_manifest(
        path.with_suffix(".parquet"),
        beton=beton,
        class_names=[str(label) for label in range(7)],
        sources=[f"noise/{index}" for index in range(40)],
        hashes=[hash_stored(beton.image_bytes(index)) for index in range(40)],
        settings={"source": "FFCV's DatasetWriter"},
    )
    manifest.check_belongs_to(beton)


def test_our_crop_is_ffcvs_crop() -> None:
    from ffcv.libffcv import resize_crop as ffcv_resize_crop

    image = Pictures([(60, 80)])[0][0]
    for top, left, height, width, side in ((0, 0, 60, 80, 32), (7, 11, 31, 45, 24), (50, 70, 3, 4, 16)):
        ours, theirs = np.empty((side, side, 3), np.uint8), np.empty((side, side, 3), np.uint8)
        resize_crop(image, top, left, height, width, ours)
        ffcv_resize_crop(image, top, top + height, left, left + width, theirs)
        np.testing.assert_array_equal(ours, theirs)
