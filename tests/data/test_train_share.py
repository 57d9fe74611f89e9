"""``data.train_share``: which training images it takes, and that nothing else changes. About 3 s."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from nfnet_ray.data.batching import check_batch_size
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.files.manifest import Manifest, hash_stored
from nfnet_ray.data.files.train_share import images_drawn
from nfnet_ray.data.loading.loader import TrainBatch, TrainLoader
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe, ResolvedRecipe

SIZES = (1, 2, 30, 467)  # images of each class
LABELS = np.repeat(np.arange(4), SIZES)
HASHES = np.array([hash_stored(bytes([index % 256, index // 256])) for index in range(500)])


def manifest(labels: np.ndarray, hashes: np.ndarray) -> Manifest:
    class Listed(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.labels)

    return cast(Manifest, Listed(labels=labels, hashes=SimpleNamespace(to_pylist=hashes.tolist)))


# Which images


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.333, 0.5, 0.99])
def test_each_class_gives_its_share_to_within_one_image(share: float) -> None:
    drawn = images_drawn(manifest(LABELS, HASHES), share)
    assert len(drawn) == max(1, round(500 * share))
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    given = np.bincount(LABELS[drawn], minlength=4)
    assert np.abs(given - share * np.array(SIZES)).max() <= 1


def test_a_smaller_share_is_a_part_of_a_larger_one() -> None:
    shares = [images_drawn(manifest(LABELS, HASHES), share) for share in np.linspace(0.01, 1, 100)]
    for smaller, larger in itertools.pairwise(shares):
        assert set(smaller) < set(larger)
    assert shares[-1].tolist() == list(range(500))


def test_the_images_decide_and_not_their_order_in_the_file() -> None:
    order = np.random.default_rng(0).permutation(500)
    before = images_drawn(manifest(LABELS, HASHES), 0.1)
    after = images_drawn(manifest(LABELS[order], HASHES[order]), 0.1)
    assert set(HASHES[order][after]) == set(HASHES[before])


# What a training sees of them


@pytest.fixture(scope="module")
def digits(few_digits: Path) -> Dataset:
    return open_dataset(few_digits)


def recipe_with(**changes: object) -> ResolvedRecipe:
    fields = {
        "model.name": "nfnet_pico",
        "batch_size": 8,
        "data.image_size": 24,
        "data.crop": "padded",
        "data.resident": "always",
        "data.train_share": 0.3,
    }
    return resolve(Recipe().with_values(fields | {f"data.{name}": value for name, value in changes.items()}))


def epoch_of(
    dataset: Dataset, recipe: ResolvedRecipe, workers: int = 1, first_batch: int = 0
) -> list[TrainBatch]:
    """The batches of all workers, one worker after the other."""
    loaders = [
        TrainLoader(
            dataset.train, recipe.data, batch_size=recipe.batch_size, seed=3, rank=rank, world_size=workers,
            device=torch.device("cpu"), threads=1,
        )
        for rank in range(workers)
    ]  # fmt: skip
    return [batch for loader in loaders for batch in loader.epoch(2, first_batch)]


def indices_of(batches: list[TrainBatch]) -> list[int]:
    return np.concatenate([batch.indices for batch in batches]).tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_epoch_has_each_image_of_the_share_once(digits: Dataset, workers: int) -> None:
    drawn = images_drawn(digits.train.manifest, 0.3)
    assert len(drawn) == 72  # of 240
    seen = indices_of(epoch_of(digits, recipe_with(), workers))
    assert sorted(seen) == drawn.tolist()
    assert set(seen) == set(indices_of(epoch_of(digits, recipe_with())))


def test_an_epoch_can_be_entered_in_the_middle(digits: Dataset) -> None:
    assert indices_of(epoch_of(digits, recipe_with(), first_batch=4)) == indices_of(
        epoch_of(digits, recipe_with())[4:]
    )


def test_resident_images_are_the_decoded_ones_and_only_those_of_the_share_are_kept(digits: Dataset) -> None:
    resident, decoded = (epoch_of(digits, recipe_with(resident=value)) for value in ("always", "never"))
    for one, other in zip(resident, decoded, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.labels.tolist() == digits.train.beton.labels[one.indices].tolist()
    loader = TrainLoader(
        digits.train, recipe_with().data, batch_size=8, seed=3, rank=0, world_size=1, device=torch.device("cpu"),
        threads=1,
    )  # fmt: skip
    images = loader._source._images
    assert images is not None
    assert len(images) == 72


def test_images_are_augmented_as_they_are_without_a_share(digits: Dataset) -> None:
    """Shifts and flips are drawn from the image's place in the data set, so a share leaves them as they are."""
    recipe = recipe_with()
    plain = replace(
        recipe.data,
        mixing=replace(recipe.data.mixing, mixup_alpha=None, cutmix_alpha=None),
        randaugment=replace(recipe.data.randaugment, layers=0),
    )
    of_part, of_whole = (
        {
            int(index): image
            for batch in epoch_of(digits, replace(recipe, data=replace(plain, train_share=share)))
            for index, image in zip(batch.indices, batch.images, strict=True)
        }
        for share in (0.3, 1.0)
    )
    assert len(of_part) == 72
    for index, image in of_part.items():
        assert torch.equal(image, of_whole[index])


def test_a_share_too_small_for_a_batch_is_refused_in_one_line() -> None:
    recipe = recipe_with(train_share=0.02)
    with pytest.raises(UserError, match=r"larger than the 5 images that data.train_share 0.02 takes of x"):
        check_batch_size(recipe, 240, 1, "x")
    check_batch_size(recipe, 400, 1, "x")


def test_the_share_is_part_of_the_recipes_fingerprint() -> None:
    assert recipe_with(train_share=0.3).fingerprint() != recipe_with(train_share=0.4).fingerprint()
