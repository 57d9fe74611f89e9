"""Order, crops and shifts depend on (seed, epoch, sample) alone; each validation image counts once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from data_prep.__main__ import main as data_prep
from nfnet_ray.data.crop import central_square_boxes, random_resized_boxes
from nfnet_ray.data.dataset import Dataset, open_dataset
from nfnet_ray.data.draws import Purpose, epoch_order, uniforms
from nfnet_ray.data.loader import EvalLoader, TrainLoader
from nfnet_ray.recipe import DataRecipe

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
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Indices, images and labels of an epoch's batches of 8, put together from all ranks."""
    parts = []
    for rank in range(world_size):
        loader = TrainLoader(
            dataset.train,
            recipe,
            batch_size=8,
            seed=seed,
            rank=rank,
            world_size=world_size,
            device=CPU,
            threads=threads,
        )
        parts.append(list(loader.epoch(epoch, first_batch)))
    batches = [batch for together in zip(*parts, strict=True) for batch in together]
    return (
        np.concatenate([batch.indices for batch in batches]),
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
    )


RECIPES = {
    "decoded in every epoch": DataRecipe(image_size=32, eval_size=32, crop="random_resized"),
    "resident": DataRecipe(image_size=32, eval_size=32, crop="padded"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize(("world_size", "threads"), [(1, 4), (2, 1), (8, 2)])
def test_batches_are_the_same_for_any_number_of_ranks_and_threads(
    photos: Dataset, recipe: DataRecipe, world_size: int, threads: int
) -> None:
    expected = epoch_of(photos, recipe)
    got = epoch_of(photos, recipe, world_size=world_size, threads=threads)
    assert np.array_equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], expected[2])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_seed_and_epoch_change_order_and_pixels(photos: Dataset, recipe: DataRecipe) -> None:
    base = epoch_of(photos, recipe)
    for other in (epoch_of(photos, recipe, epoch=4), epoch_of(photos, recipe, seed=6)):
        assert not np.array_equal(other[0], base[0])
        in_both = np.intersect1d(base[0], other[0])[0]
        rows = [int(np.flatnonzero(indices == in_both)[0]) for indices in (base[0], other[0])]
        assert not torch.equal(base[1][rows[0]], other[1][rows[1]])


def test_an_epoch_can_be_entered_in_the_middle(photos: Dataset) -> None:
    recipe = RECIPES["decoded in every epoch"]
    whole, rest = epoch_of(photos, recipe), epoch_of(photos, recipe, first_batch=2)
    assert np.array_equal(whole[0][16:], rest[0])
    assert torch.equal(whole[1][16:], rest[1])


def test_resident_images_are_the_decoded_ones(photos: Dataset) -> None:
    resident = DataRecipe(image_size=32, eval_size=32, crop="padded", resident="always")
    streamed = DataRecipe(image_size=32, eval_size=32, crop="padded", resident="never")
    assert torch.equal(epoch_of(photos, resident)[1], epoch_of(photos, streamed)[1])


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
    boxes = random_resized_boxes(0, 0, np.arange(5000), heights, widths)
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()
    share = height * width / (heights * widths)
    usual = (heights / widths > 0.5) & (heights / widths < 2)
    assert share[usual].min() > 0.07
    assert 0.4 < share[usual].mean() < 0.6
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
