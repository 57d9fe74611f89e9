"""Mixing, RandAugment and the evaluation crops: the official rules, by draws that depend on the sample alone."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from data_prep.__main__ import main as data_prep
from nfnet_ray.data import normalise as normalise_module
from nfnet_ray.data.__main__ import main as data
from nfnet_ray.data.augmentation.augment import augment
from nfnet_ray.data.augmentation.image_operations import OPERATIONS
from nfnet_ray.data.augmentation.mixing import cutmix_boxes, mix, mixup_ratios, mixup_rows, symmetric_beta
from nfnet_ray.data.augmentation.randaugment import (
    IMAGENET_POLICY,
    NOTHING,
    autoaugment,
    autoaugment_choices,
    distortion,
    randaugment,
    randaugment_choices,
)
from nfnet_ray.data.batch import Batch, TrainBatch
from nfnet_ray.data.batching import check_partners
from nfnet_ray.data.draws import Purpose, epoch_order, uniforms
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.data.loading import loader
from nfnet_ray.data.loading.loader import EvalLoader, TrainLoader
from nfnet_ray.data.normalise import CHANNEL_MEAN, CHANNEL_STD, normalise
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe

CPU = torch.device("cpu")
MANY = np.arange(100_000)
NO_MIXING = MixingRecipe(mixup_alpha=None, cutmix_alpha=None)
NO_RANDAUGMENT = RandAugmentRecipe(layers=0)


def pictures(count: int, height: int = 24, width: int = 20, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures, uint8 (count, height, width, 3)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


# --- MixUp and CutMix -----------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_ratios_have_the_beta_distribution(alpha: float) -> None:
    ratios = symmetric_beta(uniforms(1, 2, Purpose.MIXUP, MANY, 4), alpha)
    distance = stats.kstest(ratios, stats.beta(alpha, alpha).cdf).statistic
    assert distance < 1.63 / np.sqrt(len(MANY))  # 1% of true samples are farther away; 0.0052


def test_no_draw_gives_anything_but_a_ratio() -> None:
    corners = np.array(np.meshgrid(*4 * [[0.0, 0.25, 0.5, 1 - 2.0**-53]])).reshape(4, -1).T
    for alpha in (1e-3, 0.2, 1.0, 100.0):
        ratios = symmetric_beta(corners, alpha)
        assert ((ratios >= 0) & (ratios <= 1)).all()


def test_cutmix_boxes_are_the_official_ones() -> None:
    """Official cutmix_padding in plain Python, for the same numbers."""
    height, width = 24, 37
    draws = uniforms(3, 4, Purpose.CUTMIX, MANY[:500], 6)
    for box, draw in zip(cutmix_boxes(3, 4, MANY[:500], 1.0, height, width), draws, strict=True):
        proportion = float(symmetric_beta(draw[None, :4], 1.0)[0])
        row, column = int(draw[4] * height), int(draw[5] * width)
        box_height, box_width = (int((1 - proportion) ** 0.5 * side) for side in (height, width))
        assert box.tolist() == [
            max(row - box_height // 2, 0),
            max(column - box_width // 2, 0),
            min(row + box_height // 2, height),
            min(column + box_width // 2, width),
        ]


def test_cutmix_areas_are_uniform_before_they_are_cut_off() -> None:
    side = 4000
    boxes = cutmix_boxes(0, 0, MANY, 1.0, side, side)
    top, left, bottom, right = boxes.T
    whole = (top > 0) & (left > 0) & (bottom < side) & (right < side)
    assert 0.15 < whole.mean() < 0.18  # a box of side s lies inside with probability (1 - s)^2: 1/6
    areas = ((bottom - top) * (right - left))[whole] / side**2
    # The density of the areas of whole boxes is 6 (1 - sqrt(area))^2.
    distance = stats.kstest(areas, lambda a: 6 * a - 8 * a**1.5 + 3 * a**2).statistic
    assert distance < 1.63 / np.sqrt(whole.sum())


def test_both_kinds_take_every_other_pair() -> None:
    both, positions = MixingRecipe(mixup_alpha=0.2, cutmix_alpha=1.0), np.arange(8)
    assert mixup_rows(positions, both).tolist() == [True, True, False, False] * 2
    assert mixup_rows(positions, MixingRecipe(cutmix_alpha=None)).all()
    assert not mixup_rows(positions, MixingRecipe(mixup_alpha=None)).any()


@pytest.mark.parametrize("alphas", [(0.2, 1.0), (0.2, None), (None, 1.0)])
def test_mixed_pixels_and_label_shares(alphas: tuple[float | None, float | None]) -> None:
    recipe = MixingRecipe(mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    images, partners = pictures(16), pictures(16, seed=1)
    indices, positions = np.arange(50, 66), np.arange(16)
    mixed, share = mix(images, partners, indices, positions, recipe, seed=1, epoch=2)
    assert mixed.dtype == (torch.uint8 if alphas[0] is None else torch.float32)
    boxes = cutmix_boxes(1, 2, indices, 1.0, 24, 20)
    for row in range(16):
        a, b = images[row].float(), partners[row].float()
        if alphas[1] is None or (alphas[0] is not None and positions[row] // 2 % 2 == 0):
            ratio = float(mixup_ratios(1, 2, indices[row : row + 1], 0.2)[0])
            assert share[row] == ratio
            torch.testing.assert_close(mixed[row], ratio * a + (1 - ratio) * b, rtol=0, atol=1e-4)
        else:
            top, left, bottom, right = boxes[row]
            expected = b.clone()
            expected[top:bottom, left:right] = a[top:bottom, left:right]
            assert torch.equal(mixed[row].float(), expected)
            assert share[row] == pytest.approx((bottom - top) * (right - left) / (24 * 20), abs=1e-7)


def test_a_share_that_does_not_fall_into_pairs_is_said_early() -> None:
    recipe = DataRecipe(mixing=MixingRecipe(partners="batch"))
    check_partners(recipe, 12, 2)
    with pytest.raises(UserError, match=r"batch_size 12 .*multiple of 8 .*partners=separate"):
        check_partners(recipe, 12, 4)
    check_partners(DataRecipe(), 12, 4)
    check_partners(DataRecipe(mixing=MixingRecipe(None, None, "batch")), 12, 4)


# --- RandAugment and AutoAugment ------------------------------------------------------------------


def test_operations_signs_and_centres_are_uniform_and_independent() -> None:
    names, signs, centres = randaugment_choices(MANY, 1, 2, 4, (40, 60))
    assert names.shape == signs.shape == (len(MANY), 4)
    for layer in range(4):
        assert stats.chisquare(np.bincount(names[:, layer], minlength=16)).pvalue > 1e-4
        pairs = np.bincount(16 * names[:, layer] + names[:, (layer + 1) % 4], minlength=256)
        assert stats.chisquare(pairs).pvalue > 1e-4
        assert abs(signs[:, layer].mean()) < 0.015  # standard error 0.0032
        assert abs(np.corrcoef(names[:, layer], signs[:, layer])[0, 1]) < 0.015
        assert stats.chisquare(np.bincount(centres[:, layer, 0], minlength=40)).pvalue > 1e-4
        assert stats.chisquare(np.bincount(centres[:, layer, 1], minlength=60)).pvalue > 1e-4


def test_randaugment_is_its_operations_one_after_the_other() -> None:
    images, indices = pictures(64), np.arange(64)
    names, signs, centres = randaugment_choices(indices, 5, 6, 3, (24, 20))
    expected = []
    for row in range(64):
        image = images[row : row + 1]
        for name, sign, centre in zip(names[row], signs[row], centres[row], strict=True):
            image = distortion(list(OPERATIONS)[name], 7.0, sign)(image, torch.from_numpy(centre[None]))
        expected.append(image)
    assert torch.equal(randaugment(images, indices, 5, 6, layers=3, magnitude=7.0), torch.cat(expected))


def test_autoaugment_takes_a_policy_and_honours_its_probabilities() -> None:
    codes = autoaugment_choices(MANY, 1, 2)
    assert ((codes == NOTHING) | (codes % 4 // 2 == np.arange(2))).all()
    for number, policy in enumerate(IMAGENET_POLICY):
        for layer, (_, probability, _) in enumerate(policy):
            chosen = codes[:, layer][codes[:, layer] // 4 == number]
            expected = probability / len(IMAGENET_POLICY)
            assert abs(len(chosen) / len(MANY) - expected) <= 5 * np.sqrt(expected / len(MANY))
            assert abs((chosen % 2).mean() - 0.5) < 0.05 if len(chosen) else probability == 0
    both = (codes != NOTHING).all(axis=1)
    joint = np.mean([policy[0][1] * policy[1][1] for policy in IMAGENET_POLICY])
    assert abs(both.mean() - joint) < 0.01  # the two operations are drawn apart; standard error 0.0016


# --- all together ---------------------------------------------------------------------------------

RECIPES: dict[str, dict[str, Any]] = {
    "randaugment": {"randaugment": RandAugmentRecipe(layers=4, magnitude=3.0)},
    "autoaugment": {"autoaugment": True},
    "mixing": {"randaugment": NO_RANDAUGMENT},
}


def augmented(rows: slice, recipe: DataRecipe, seed: int = 1, epoch: int = 2) -> torch.Tensor:
    """Some rows of a batch of 32 with separate partners."""
    images, labels, indices = pictures(64), torch.arange(64), np.arange(64) * 7
    own = Batch(images[:32][rows], labels[:32][rows], indices[:32][rows])
    partners = Batch(images[32:][rows], labels[32:][rows], indices[32:][rows])
    result = augment(own, np.arange(32)[rows], partners, recipe, seed, epoch)
    assert result.partner_labels is not None
    assert torch.equal(result.partner_labels, partners.labels)
    return result.images


@pytest.mark.parametrize("extras", RECIPES.values(), ids=RECIPES.keys())
def test_what_happens_to_an_image_does_not_depend_on_its_neighbours(extras: dict[str, Any]) -> None:
    recipe = DataRecipe(crop="padded", **extras)
    whole = augmented(slice(None), recipe)
    assert torch.equal(augmented(slice(4, 8), recipe), whole[4:8])
    assert torch.equal(augmented(slice(31, 32), recipe), whole[31:32])
    for other in (augmented(slice(None), recipe, seed=2), augmented(slice(None), recipe, epoch=3)):
        different = (other != whole).flatten(1).any(dim=1)
        assert different.float().mean() > 0.9


def test_mixing_comes_before_randaugment_and_is_cut_off_to_bytes() -> None:
    mixing = MixingRecipe(mixup_alpha=0.2, cutmix_alpha=None)
    mixed = augmented(slice(None), DataRecipe(crop="whole", mixing=mixing, randaugment=NO_RANDAUGMENT))
    assert (mixed != mixed.floor()).any()
    both = augmented(
        slice(None), DataRecipe(crop="whole", mixing=mixing, randaugment=RandAugmentRecipe(4, 10.0))
    )
    expected = randaugment(mixed.to(torch.uint8), np.arange(32) * 7, 1, 2, layers=4, magnitude=10.0)
    assert torch.equal(both, expected)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            r"uint8 \(N, H, W, 3\), and not torch.uint8 \(2, 3, 32, 32\)",
        ),
        (torch.zeros(2, 32, 32, 3), r"and not torch.float32 \(2, 32, 32, 3\)"),
        (torch.zeros(3, 32, 32, 3, dtype=torch.uint8), "there are 3 images and 2 sample indices"),
    ],
)
def test_images_of_another_layout_are_refused(images: torch.Tensor, complaint: str) -> None:
    """They would be augmented into something that is no picture, or be left out."""
    indices = np.arange(2)
    with pytest.raises(ValueError, match=complaint):
        randaugment(images, indices, 1, 2, layers=2, magnitude=5.0)
    with pytest.raises(ValueError, match=complaint):
        autoaugment(images, indices, 1, 2)
    with pytest.raises(ValueError, match=complaint):
        augment(Batch(images, torch.zeros(2), indices), np.arange(2), None, DataRecipe(crop="padded"), 1, 2)


def test_what_cannot_be_augmented_alone_is_said() -> None:
    batch, mixed = Batch(pictures(3), torch.arange(3), np.arange(3)), DataRecipe(randaugment=NO_RANDAUGMENT)
    with pytest.raises(ValueError, match="3 images fall into no pairs"):
        augment(batch, np.arange(3), None, mixed, 1, 2)
    with pytest.raises(ValueError, match=r"randaugment.magnitude is missing; models.published.resolve"):
        augment(batch, np.arange(3), None, DataRecipe(mixing=NO_MIXING), 1, 2)


def test_the_neighbour_is_the_partner_within_a_batch() -> None:
    recipe = DataRecipe(
        crop="padded", mixing=MixingRecipe(0.2, 1.0, partners="batch"), randaugment=NO_RANDAUGMENT
    )
    batch, positions = Batch(pictures(8), torch.arange(8), np.arange(8)), np.arange(8)
    plain = augment(
        batch, positions, None, DataRecipe(crop="padded", mixing=NO_MIXING, randaugment=NO_RANDAUGMENT), 1, 2
    )
    assert plain.partner_labels is None
    assert plain.label_share is None
    result = augment(batch, positions, None, recipe, 1, 2)
    expected, share = mix(
        plain.images, plain.images[[1, 0, 3, 2, 5, 4, 7, 6]], batch.indices, positions, recipe.mixing, 1, 2
    )
    assert torch.equal(result.images, expected)
    assert result.label_share is not None
    assert torch.equal(result.label_share, share)
    assert result.partner_labels is not None
    assert result.partner_labels.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_normalise_takes_bytes_and_fractions_and_leaves_them_alone() -> None:
    images = pictures(4)
    as_floats = images.float()
    expected = (images.double() - torch.tensor(CHANNEL_MEAN).double()) / torch.tensor(CHANNEL_STD).double()
    for given in (images, as_floats):
        torch.testing.assert_close(normalise(given).permute(0, 2, 3, 1).double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(as_floats, images.float())


# --- from files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, photograph: Image.Image) -> Dataset:
    """40 cuts of a photograph of many sizes, some of them 48 x 48."""
    folder, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(40):
        width, height = generator.integers(30, 200, size=2).tolist() if number % 4 else (48, 48)
        left, top = generator.integers(0, 200, size=2).tolist()
        path = folder / "source" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + width, top + height)).save(path)
    arguments = ["--holdout", "0.4"]
    assert data_prep(["convert", str(folder / "source"), str(folder / "out"), *arguments]) == 0
    return open_dataset(folder / "out")


def training_batches(dataset: Dataset, recipe: DataRecipe) -> list[TrainBatch]:
    batches = TrainLoader(
        dataset.train, recipe, batch_size=8, seed=1, rank=0, world_size=1, device=CPU, threads=2
    )
    return list(batches.epoch(4))


def outside_boxes_differ(dataset: Dataset, **values: Any) -> tuple[list[TrainBatch], float]:
    """Batches with CutMix alone, and in which share of them what is outside the box is another picture's."""
    recipe = DataRecipe(image_size=40, eval_size=40, randaugment=NO_RANDAUGMENT, **values)
    mixed = training_batches(dataset, dataclasses.replace(recipe, mixing=MixingRecipe(mixup_alpha=None)))
    plain = training_batches(dataset, dataclasses.replace(recipe, mixing=NO_MIXING))
    different = []
    for batch, own in zip(mixed, plain, strict=True):
        assert np.array_equal(batch.indices, own.indices)
        boxes = cutmix_boxes(1, 4, batch.indices, 1.0, 40, 40)
        for row, (top, left, bottom, right) in enumerate(boxes):
            inside = torch.zeros(40, 40, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert torch.equal(batch.images[row][inside], own.images[row][inside])
            different.append(not torch.equal(batch.images[row][~inside], own.images[row][~inside]))
    return mixed, float(np.mean(different))


@pytest.mark.parametrize("crop", ["random_resized", "padded"])
def test_separate_partners_are_other_images(photographs: Dataset, crop: str) -> None:
    """CutMix alone shows both: what is outside the box is the partner's."""
    mixed, different = outside_boxes_differ(photographs, crop=crop)
    assert different > 0.9
    labels = torch.tensor(photographs.train.beton.labels)
    partners = torch.cat([batch.partner_labels for batch in mixed if batch.partner_labels is not None])
    assert not torch.equal(partners, torch.cat([labels[batch.indices] for batch in mixed]))


@pytest.mark.parametrize(
    ("crop", "flip", "least", "most"),
    [("random_resized", False, 0.9, 1.0), ("padded", False, 0.9, 1.0), ("whole", True, 0.2, 0.8)],
)
def test_a_partner_has_a_crop_a_shift_and_a_flip_of_its_own(
    photographs: Dataset, monkeypatch: pytest.MonkeyPatch, crop: str, flip: bool, least: float, most: float
) -> None:
    """With itself for a partner, an image differs from it by these alone."""
    monkeypatch.setattr(loader, "epoch_order", lambda seed, epoch, count, *_: epoch_order(seed, epoch, count))
    _, different = outside_boxes_differ(photographs, crop=crop, flip=flip)
    assert least <= different <= most


def test_magnitude_must_be_known_before_images_are_read(photographs: Dataset) -> None:
    with pytest.raises(ValueError, match=r"magnitude"):
        training_batches(photographs, DataRecipe(image_size=40, eval_size=40))
    assert training_batches(photographs, DataRecipe(image_size=40, eval_size=40, autoaugment=True))


def evaluation_images(dataset: Dataset, **values: Any) -> torch.Tensor:
    batches = EvalLoader(
        dataset.validation,
        DataRecipe(image_size=48, eval_size=48, **values),
        batch_size=5,
        rank=0,
        world_size=1,
        device=CPU,
        threads=3,
    )
    return torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize("resident", ["always", "never"])
def test_squash_is_pillows_bicubic_to_32_more_and_the_centre(photographs: Dataset, resident: str) -> None:
    images = evaluation_images(photographs, eval_crop="squash", resident=resident)
    beton = photographs.validation.beton
    whole = 0
    for index, got in enumerate(images.numpy()):
        image = np.empty((beton.heights[index], beton.widths[index], 3), np.uint8)
        beton.decode(index, image)
        expected = image
        if image.shape != (48, 48, 3):
            resized = Image.fromarray(image).resize((80, 80), Image.Resampling.BICUBIC)
            expected = np.asarray(resized.crop((16, 16, 64, 64)))
        whole += image.shape == (48, 48, 3)
        assert np.array_equal(got, expected)
    assert 0 < whole < len(images)


@pytest.mark.parametrize("resident", ["always", "never"])
def test_whole_images_are_evaluated_as_they_are_trained(photographs: Dataset, resident: str) -> None:
    values: dict[str, Any] = {"resident": resident, "flip": False}
    images = evaluation_images(photographs, eval_crop="whole", **values)
    batches = TrainLoader(
        photographs.validation,
        DataRecipe(
            image_size=48, eval_size=48, crop="whole", **values, mixing=NO_MIXING, randaugment=NO_RANDAUGMENT
        ),
        batch_size=len(images),
        seed=0,
        epochs=1,
        rank=0,
        world_size=1,
        device=CPU,
        threads=1,
    )
    (batch,) = batches.epoch(0)
    assert torch.equal(batch.images, images[batch.indices])


def test_the_crops_differ_and_are_kept_apart_in_memory(photographs: Dataset) -> None:
    squashed = evaluation_images(photographs, eval_crop="squash", resident="always")
    central = evaluation_images(photographs, eval_crop="central", resident="always")
    assert torch.equal(central, evaluation_images(photographs, eval_crop="central", resident="never"))
    beton = photographs.validation.beton
    whole = torch.tensor((beton.heights == 48) & (beton.widths == 48))
    all_of_it = evaluation_images(photographs, eval_crop="whole", resident="always")
    for one, other in itertools.combinations((squashed, central, all_of_it), 2):
        assert torch.equal((one == other).flatten(1).all(dim=1), whole)


def test_the_sheet_shows_every_operation(tmp_path: Path, photograph: Image.Image) -> None:
    path = tmp_path / "sheet.png"
    photograph.save(tmp_path / "picture.png")
    assert data(["sheet", str(path), str(tmp_path / "picture.png")]) == 0
    with Image.open(path) as sheet:
        assert sheet.width > 500
        assert len(sheet.getcolors(maxcolors=1 << 24) or []) > 100
    assert data(["sheet", str(path), str(tmp_path / "missing.png")]) == 2


def test_normalising_does_not_depend_on_what_ran_before_in_the_process() -> None:
    """The channels' constants are kept for the whole process, whatever was set when they were first asked for."""
    normalise_module._constants.cache_clear()
    images = torch.full((2, 3, 3, 3), 100.0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            normalise(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert normalise(images).dtype == torch.float32
    normalise(images.requires_grad_()).sum().backward()
    assert images.grad is not None
