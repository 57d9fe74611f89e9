"""Progressive image size: the size in each epoch, and the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nfnet_ray.data.augmentation.crop import random_resized_boxes
from nfnet_ray.data.augmentation.progressive import data_at_epoch
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.data.decoding.resize import resize_antialiased
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading import source as source_module
from nfnet_ray.data.loading.loader import TrainLoader
from nfnet_ray.recipe import DataRecipe, MixingRecipe, ProgressiveRecipe, RandAugmentRecipe

CPU = torch.device("cpu")
NO_MIXING = MixingRecipe(mixup_alpha=None, cutmix_alpha=None)
NO_RANDAUGMENT = RandAugmentRecipe(layers=0)


def sizes(image_size: int, epochs: int, **growth: Any) -> list[int | None]:
    recipe = DataRecipe(image_size=image_size, progressive=ProgressiveRecipe(**growth))
    return [data_at_epoch(recipe, epoch, epochs).image_size for epoch in range(epochs)]


def ffcv_size(epoch: int, smallest: int, largest: int, start_ramp: int, end_ramp: int) -> int:
    """The law of FFCV's rn50 recipe, in NumPy's terms."""
    if epoch <= start_ramp:
        return smallest
    if epoch >= end_ramp:
        return largest
    between = np.interp([epoch], [start_ramp, end_ramp], [smallest, largest])[0]
    return int(np.round(between / 32)) * 32


@pytest.mark.parametrize(
    ("smallest", "largest", "start", "end", "epochs"),
    [(160, 192, 65, 76, 88), (160, 192, 11, 13, 16), (96, 256, 0, 17, 18), (128, 320, 3, 40, 60)],
)
def test_sizes_are_those_of_ffcvs_recipe(
    smallest: int, largest: int, start: int, end: int, epochs: int
) -> None:
    found = sizes(largest, epochs, start_size=smallest, start_epoch=start, end_epoch=end)
    assert found == [ffcv_size(epoch, smallest, largest, start, end) for epoch in range(epochs)]


def test_without_more_said_images_grow_until_the_last_epoch() -> None:
    assert sizes(192, 5, start_size=64) == [64, 96, 128, 160, 192]
    assert sizes(192, 9, start_size=64) == [64, 64, 96, 128, 128, 128, 160, 192, 192]  # half to even


def test_rounding_leaves_neither_end() -> None:
    assert sizes(190, 5, start_size=70) == [70, 96, 128, 160, 190]
    assert sizes(30, 5, start_size=20) == [20, 30, 30, 30, 30]  # 32 is the nearest multiple, and too large
    assert sizes(40, 3, start_size=40) == [40, 40, 40]


def test_stages_are_of_equal_length_and_height() -> None:
    assert sizes(200, 10, start_size=80, stages=4, step=1) == [80, 80, 120, 120, 120, 160, 160, 200, 200, 200]
    assert sizes(200, 8, start_size=100, stages=2, step=1, start_epoch=2) == 5 * [100] + 3 * [200]
    assert sizes(200, 9, start_size=100, stages=3, step=1, start_epoch=1, end_epoch=5) == [
        *3 * [100], *2 * [150], *4 * [200],
    ]  # fmt: skip


def test_augmentation_grows_with_the_share_of_growth() -> None:
    growth = ProgressiveRecipe(100, stages=3, step=1, start_magnitude=4.0, mixing_grows=True)
    recipe = DataRecipe(image_size=200, progressive=growth, randaugment=RandAugmentRecipe(2, 10.0))
    found = [data_at_epoch(recipe, epoch, 3) for epoch in range(3)]
    assert [data.randaugment.magnitude for data in found] == [4, 7, 10]
    assert [data.mixing.mixup_alpha for data in found] == [None, 0.1, 0.2]
    assert [data.mixing.cutmix_alpha for data in found] == [None, 0.5, 1.0]


def batches(path: Path, recipe: DataRecipe, epoch: int) -> list[TrainBatch]:
    loading = TrainLoader(
        open_dataset(path).train, recipe, batch_size=24, seed=3, rank=0, world_size=1, device=CPU, threads=2, epochs=3
    )  # fmt: skip
    found = list(loading.epoch(epoch))
    assert {tuple(batch.images.shape[1:]) for batch in found} == {(*2 * (loading.image_size(epoch),), 3)}
    return found


@pytest.mark.parametrize("extras", [{}, {"autoaugment": True}], ids=["plain", "AutoAugment"])
@pytest.mark.parametrize("crop", ["padded", "whole"])
def test_resident_images_grow_to_the_same_pixels_as_streamed_ones(
    few_digits: Path, crop: str, extras: dict[str, Any]
) -> None:
    for epoch, size in enumerate((16, 24, 32)):
        found = [
            batches(
                few_digits,
                DataRecipe(
                    image_size=32, eval_size=32, crop=crop, resident=resident, randaugment=NO_RANDAUGMENT,  # type: ignore[arg-type]
                    progressive=ProgressiveRecipe(16, step=8), **extras,
                ),
                epoch,
            )
            for resident in ("always", "never")
        ]  # fmt: skip
        for one, other in zip(*found, strict=True):
            assert one.images.shape[1] == size
            assert torch.equal(one.images, other.images)


def test_a_padded_image_is_shifted_and_mirrored_at_full_size_and_then_resized(few_digits: Path) -> None:
    full = DataRecipe(image_size=32, crop="padded", mixing=NO_MIXING, randaugment=NO_RANDAUGMENT)
    growing = DataRecipe(
        image_size=32, crop="padded", mixing=NO_MIXING, randaugment=NO_RANDAUGMENT,
        progressive=ProgressiveRecipe(20),
    )  # fmt: skip
    for large, small in zip(batches(few_digits, full, 0), batches(few_digits, growing, 0), strict=True):
        expected = F.interpolate(
            large.images.permute(0, 3, 1, 2).double(), (20, 20), mode="bilinear", antialias=True
        ).permute(0, 2, 3, 1)
        assert (small.images - expected).abs().max() <= 0.5001  # rounded to the nearest
        assert np.array_equal(small.indices, large.indices)


def test_a_random_crop_is_decoded_to_its_epochs_size(few_digits: Path) -> None:
    growing = DataRecipe(
        image_size=32, crop="random_resized", flip=False, mixing=NO_MIXING, randaugment=NO_RANDAUGMENT,
        progressive=ProgressiveRecipe(16),
    )  # fmt: skip
    beton = open_dataset(few_digits).train.beton
    batch = batches(few_digits, growing, 0)[0]
    index = int(batch.indices[5])
    whole, out = np.empty((32, 32, 3), np.uint8), np.empty((16, 16, 3), np.uint8)
    beton.decode(index, whole)
    box = random_resized_boxes(3, 0, np.array([index]), np.array([32]), np.array([32]), 16)[0]
    resize_antialiased(whole, *map(int, box), out)
    assert np.array_equal(batch.images[5].numpy(), out)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident images go there, and none are remembered from another test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(source_module, "_RESIDENT", {})
