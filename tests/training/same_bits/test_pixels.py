"""Shifts, flips and normalisation in few passes give the bytes and bits of the plain formulas. Takes a second."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nfnet_ray.data.augmentation.augment import augment, shifted_and_flipped
from nfnet_ray.data.batch import Batch
from nfnet_ray.data.draws import Purpose, uniforms
from nfnet_ray.data.normalise import CHANNEL_MEAN, CHANNEL_STD, normalise
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe

PLAIN = DataRecipe(mixing=MixingRecipe(None, None), randaugment=RandAugmentRecipe(0))
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def batch_of(count: int, height: int, width: int) -> Batch:
    """Random pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.arange(count), np.arange(100, 100 + count))


@pytest.mark.parametrize("shape", [(5, 8, 8), (3, 7, 12), (1, 1, 1), (0, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_normalise_is_the_formula_and_leaves_its_images_alone(
    shape: tuple[int, int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    images = batch_of(*shape).images.to(dtype)
    if dtype == torch.float32:
        images *= 0.917
    before = images.clone()
    plain = (images.to(torch.float32) - torch.tensor(CHANNEL_MEAN)) / torch.tensor(CHANNEL_STD)
    expected = plain.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    found = normalise(images, memory_format)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)


def plainly_shifted_and_flipped(
    batch: Batch, padding: int, seed: int, epoch: int, *, flips: bool, as_partners: bool
) -> Tensor:
    """One image after the other."""
    shift = Purpose.PARTNER_SHIFT if as_partners else Purpose.SHIFT
    flip = Purpose.PARTNER_FLIP if as_partners else Purpose.FLIP
    offsets = (uniforms(seed, epoch, shift, batch.indices, 2) * (2 * padding + 1)).astype(np.int64)
    flipped = uniforms(seed, epoch, flip, batch.indices)[:, 0] < 0.5
    _, height, width, _ = batch.images.shape
    images = []
    for image, (row, column), mirrors in zip(batch.images, offsets, flipped, strict=True):
        padded = F.pad(image, (0, 0, padding, padding, padding, padding))
        window = padded[row : row + height, column : column + width]
        images.append(window.flip(1) if flips and mirrors else window)
    return torch.stack(images)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("as_partners", [False, True])
def test_shifts_and_flips_are_those_of_one_image_after_the_other(
    flips: bool, padding: int, as_partners: bool
) -> None:
    recipe = DataRecipe(
        crop="padded", crop_padding=padding, flip=flips, mixing=PLAIN.mixing, randaugment=PLAIN.randaugment
    )
    batch = batch_of(40, 6, 9)
    before = batch.images.clone()
    expected = plainly_shifted_and_flipped(batch, padding, 3, 5, flips=flips, as_partners=as_partners)
    assert torch.equal(shifted_and_flipped(batch, recipe, seed=3, epoch=5, as_partners=as_partners), expected)
    assert torch.equal(batch.images, before)


def test_flips_alone_leave_the_resident_images_alone() -> None:
    batch = batch_of(40, 6, 9)
    before = batch.images.clone()
    images = augment(batch, np.arange(40), None, PLAIN, seed=0, epoch=0).images
    changed = (images != before).flatten(1).any(dim=1)
    assert 5 < changed.sum() < 35
    assert torch.equal(images[changed], before[changed].flip(2))
    assert torch.equal(batch.images, before)
