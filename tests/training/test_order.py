"""Order, crops and augmentation depend on (seed, epoch, sample) alone; each validation image counts once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from data_prep.__main__ import main as data_prep
from nfnet_ray.data.augmentation.crop import central_square_boxes, random_resized_boxes
from nfnet_ray.data.batching import positions_of_rank
from nfnet_ray.data.draws import Purpose, epoch_order, sample_keys, uniforms
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.loading.loader import EvalLoader, TrainBatch, TrainLoader
from nfnet_ray.recipe import DataRecipe, MixingRecipe, ProgressiveRecipe, RandAugmentRecipe

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """48 photographs of many sizes, as the data set that data_prep makes of them."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for label, picture in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / "source" / label).mkdir(parents=True)
        for number in range(24):
            height, width = generator.integers(40, 200, size=2)
            top, left = generator.integers(0, 200, size=2)
            cut = Image.fromarray(picture[top : top + height, left : left + width])
            cut.save(folder / "source" / label / f"{number}.jpg")
    assert data_prep(["convert", str(folder / "source"), str(folder / "out")]) == 0
    return open_dataset(folder / "out")


def epoch_of(
    dataset: Dataset,
    recipe: DataRecipe,
    *,
    world_size: int = 1,
    threads: int = 1,
    epoch: int = 3,
    seed: int = 5,
    first_batch: int = 0,
) -> TrainBatch:
    """An epoch's batches of 16, put together by their positions from all ranks."""
    parts = []
    for rank in range(world_size):
        loader = TrainLoader(
            dataset.train,
            recipe,
            batch_size=16,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=CPU,
            threads=threads,
            epochs=8,
        )
        parts.append(list(loader.epoch(epoch, first_batch)))
    batches = []
    for together in zip(*parts, strict=True):
        shares = concatenated(together)
        assert sorted(shares.positions) == list(range(16))
        batches.append(shares.chosen(torch.from_numpy(np.argsort(shares.positions))))
    return concatenated(batches)


def concatenated(parts: Sequence[TrainBatch]) -> TrainBatch:
    """The samples of all parts, one part after the other."""
    partner_labels = [part.partner_labels for part in parts if part.partner_labels is not None]
    label_shares = [part.label_share for part in parts if part.label_share is not None]
    return TrainBatch(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        indices=np.concatenate([part.indices for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        keys=torch.cat([part.keys for part in parts]),
        partner_labels=torch.cat(partner_labels) if partner_labels else None,
        label_share=torch.cat(label_shares) if label_shares else None,
    )


PLAIN: dict[str, Any] = {
    "mixing": MixingRecipe(mixup_alpha=None, cutmix_alpha=None),
    "randaugment": RandAugmentRecipe(layers=0),
}
RECIPES = {
    "decoded in every epoch": DataRecipe(image_size=32, eval_size=32, crop="random_resized", **PLAIN),
    "resident": DataRecipe(image_size=32, eval_size=32, crop="padded", **PLAIN),
    "mixed with others, RandAugment": DataRecipe(
        image_size=32,
        eval_size=32,
        crop="random_resized",
        mixing=MixingRecipe(mixup_alpha=0.2, cutmix_alpha=1.0, partners="separate"),
        randaugment=RandAugmentRecipe(layers=4, magnitude=5.0),
    ),
    "resident, mixed with neighbours": DataRecipe(
        image_size=32,
        eval_size=32,
        crop="padded",
        mixing=MixingRecipe(mixup_alpha=0.2, cutmix_alpha=1.0, partners="batch"),
        randaugment=RandAugmentRecipe(layers=0),
    ),
    "resident, MixUp with others, AutoAugment": DataRecipe(
        image_size=32,
        eval_size=32,
        crop="padded",
        mixing=MixingRecipe(mixup_alpha=0.2, cutmix_alpha=None),
        autoaugment=True,
    ),
    "growing, mixed with others, RandAugment": DataRecipe(
        image_size=48,
        progressive=ProgressiveRecipe(16, step=8, start_magnitude=1.0, mixing_grows=True),
        eval_size=32,
        crop="random_resized",
        mixing=MixingRecipe(mixup_alpha=0.2, cutmix_alpha=1.0, partners="separate"),
        randaugment=RandAugmentRecipe(layers=2, magnitude=5.0),
    ),
    "growing, resident, mixed with neighbours": DataRecipe(
        image_size=48,
        progressive=ProgressiveRecipe(16, step=8),
        eval_size=32,
        crop="padded",
        mixing=MixingRecipe(mixup_alpha=0.2, cutmix_alpha=1.0, partners="batch"),
        randaugment=RandAugmentRecipe(layers=0),
    ),
}


def assert_equal(got: TrainBatch, expected: TrainBatch) -> None:
    assert np.array_equal(got.indices, expected.indices)
    assert np.array_equal(got.positions, expected.positions)
    for name in ("images", "labels", "keys", "partner_labels", "label_share"):
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None and b is None) or torch.equal(a, b), name


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize(("world_size", "threads"), [(1, 4), (2, 1), (8, 2)])
def test_batches_are_the_same_for_any_number_of_ranks_and_threads(
    photos: Dataset, recipe: DataRecipe, world_size: int, threads: int
) -> None:
    assert_equal(epoch_of(photos, recipe, world_size=world_size, threads=threads), epoch_of(photos, recipe))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_seed_and_epoch_change_order_pixels_and_keys(photos: Dataset, recipe: DataRecipe) -> None:
    base = epoch_of(photos, recipe)
    for other in (epoch_of(photos, recipe, epoch=4), epoch_of(photos, recipe, seed=6)):
        assert not np.array_equal(other.indices, base.indices)
        in_both = np.intersect1d(base.indices, other.indices)[0]
        one, two = (int(np.flatnonzero(batch.indices == in_both)[0]) for batch in (base, other))
        assert not torch.equal(base.images[one], other.images[two])  # growing images differ in size
        assert base.keys[one] != other.keys[two]


@pytest.mark.parametrize(
    "name", ["mixed with others, RandAugment", *(name for name in RECIPES if name.startswith("growing"))]
)
def test_an_epoch_can_be_entered_in_the_middle(photos: Dataset, name: str) -> None:
    recipe = RECIPES[name]
    whole, rest = epoch_of(photos, recipe), epoch_of(photos, recipe, first_batch=1)
    assert len(whole.labels) == 32
    assert_equal(rest, whole.part(slice(16, None)))


@pytest.mark.parametrize("extras", [PLAIN, {"autoaugment": True}], ids=["plain", "mixed"])
def test_resident_images_are_the_decoded_ones(photos: Dataset, extras: dict[str, Any]) -> None:
    resident = DataRecipe(image_size=32, eval_size=32, crop="padded", resident="always", **extras)
    streamed = DataRecipe(image_size=32, eval_size=32, crop="padded", resident="never", **extras)
    assert_equal(epoch_of(photos, resident), epoch_of(photos, streamed))


@pytest.mark.parametrize(
    ("world_size", "batch_size", "first"),
    [
        (1, 16, [0, 1, 2, 3, 4, 5]),
        (2, 16, [0, 1, 2, 3, 8, 9]),  # chunks of 4
        (8, 16, [0, 1]),  # of 2
        (2, 12, [0, 1, 4, 5, 8, 9]),
        (3, 9, [0, 3, 6]),  # of 1
    ],
)
def test_every_share_starts_with_the_first_images_of_the_batch(
    world_size: int, batch_size: int, first: list[int]
) -> None:
    shares = [positions_of_rank(batch_size, rank, world_size) for rank in range(world_size)]
    assert shares[0][: len(first)].tolist() == first
    assert sorted(np.concatenate(shares)) == list(range(batch_size))
    assert all((np.diff(share) > 0).all() and len(share) == batch_size // world_size for share in shares)


def test_each_sample_has_a_key_of_its_own() -> None:
    keys = sample_keys(1, 2, np.arange(100_000))
    assert keys.dtype == np.int64
    assert len(np.unique(keys)) == 100_000
    assert abs((keys < 0).mean() - 0.5) < 0.01  # standard error 0.0016


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_each_validation_image_comes_exactly_once(photos: Dataset, world_size: int) -> None:
    recipe, seen = DataRecipe(image_size=32, eval_size=32), []
    for rank in range(world_size):
        loader = EvalLoader(
            photos.validation, recipe, batch_size=4, rank=rank, world_size=world_size, device=CPU, threads=1
        )
        for batch in loader:
            assert torch.equal(batch.labels, torch.tensor(photos.validation.beton.labels[batch.indices]))
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(len(photos.validation)))


def test_an_epoch_is_a_permutation_and_draws_are_uniform() -> None:
    assert sorted(epoch_order(1, 2, 1000)) == list(range(1000))
    draws = uniforms(0, 0, Purpose.SHIFT, np.arange(100_000), 2)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.005  # standard error 0.0009
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.02


def test_inception_crops_keep_to_their_area_aspect_and_image() -> None:
    generator = np.random.default_rng(1)
    heights, widths = generator.integers(20, 900, size=(2, 5000))
    boxes = random_resized_boxes(0, 0, np.arange(5000), heights, widths, size=64)
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()
    share = height * width / (heights * widths)
    usual = (heights / widths > 0.5) & (heights / widths < 2)
    assert share[usual].min() >= 0.1  # how they are distributed: tests/parity/test_random_crop.py
    assert (np.abs(np.log(width / height)) < np.log(4 / 3) + 0.15)[heights > 60].all()


def test_evaluation_takes_the_central_square() -> None:
    boxes = central_square_boxes(np.array([256, 500, 32]), np.array([256, 375, 32]), 224)
    assert boxes[0].tolist() == [16, 16, 224, 224]
    assert boxes[1].tolist() == [(500 - 328) // 2, (375 - 328) // 2, 328, 328]
    assert central_square_boxes(np.array([32]), np.array([32]), 32)[0].tolist() == [0, 0, 32, 32]


def test_a_damaged_image_stops_the_loader_with_its_name(photos: Dataset, tmp_path: Path) -> None:
    import shutil

    from nfnet_ray.errors import UserError

    shutil.copytree(photos.path, tmp_path / "data")
    beton = photos.train.beton
    start, size = int(beton.offsets[7]), int(beton.sizes[7])
    with (tmp_path / "data" / "train.beton").open("r+b") as file:
        file.seek(start)
        file.write(b"\0" * size)
    damaged = open_dataset(tmp_path / "data")
    with pytest.raises(UserError, match=r"train\.beton.*7"):
        epoch_of(damaged, RECIPES["decoded in every epoch"], threads=2)
