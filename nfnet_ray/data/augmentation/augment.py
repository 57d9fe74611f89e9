"""Augmentation of a batch on the device, after decoding: shift, flip, mixing, RandAugment or AutoAugment."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nfnet_ray.data.augmentation.mixing import mix
from nfnet_ray.data.augmentation.randaugment import autoaugment, randaugment
from nfnet_ray.data.batch import Batch, Indices, check_images, on_device
from nfnet_ray.data.batching import mixes
from nfnet_ray.data.draws import Purpose, uniforms
from nfnet_ray.recipe import DataRecipe


class Augmented(NamedTuple):
    """Augmented images (N, H, W, 3), uint8 or float32 in 0..255, with partner labels and label shares if mixed."""

    images: Tensor
    partner_labels: Tensor | None = None
    label_share: Tensor | None = None


def augment(
    batch: Batch,
    positions: Indices,
    partners: Batch | None,
    recipe: DataRecipe,
    seed: int,
    epoch: int,
) -> Augmented:
    """Shifts, flips, mixes with ``partners`` and applies RandAugment or AutoAugment, as the Recipe says.

    The draws for an image depend only on (seed, epoch, sample index). Its position in the global batch decides which
    image it is mixed with, and whether by MixUp or by CutMix. If the Recipe mixes and ``partners`` is None, the partner
    is the neighbour in the batch.

    Raises ValueError for images of another type or shape than in a Batch, for RandAugment without a magnitude, and for
    an odd number of images without ``partners``.
    """
    check_images(batch.images, batch.indices)
    images = shifted_and_flipped(batch, recipe, seed, epoch)
    mixed = Augmented(images)
    if mixes(recipe.mixing):
        if partners is None:
            if len(positions) % 2:
                raise ValueError(
                    f"{len(positions)} images fall into no pairs: give partners, or an even number"
                )
            neighbours = np.arange(len(positions)) ^ 1  # a pair is never split (batching.positions_of_rank)
            rows = on_device(neighbours, images.device)
            partner_images, partner_labels = images[rows], batch.labels[rows]
        else:
            partner_images = shifted_and_flipped(partners, recipe, seed, epoch, as_partners=True)
            partner_labels = partners.labels
        images, share = mix(images, partner_images, batch.indices, positions, recipe.mixing, seed, epoch)
        mixed = Augmented(images, partner_labels, share)
    if recipe.autoaugment:
        return mixed._replace(images=autoaugment(_as_bytes(images), batch.indices, seed, epoch))
    if recipe.randaugment.layers:
        layers, magnitude = recipe.randaugment.layers, recipe.randaugment.magnitude
        if magnitude is None:
            raise ValueError(
                "the Recipe's randaugment.magnitude is missing; models.published.resolve fills it in"
            )
        images = randaugment(
            _as_bytes(images), batch.indices, seed, epoch, layers=layers, magnitude=magnitude
        )
        return mixed._replace(images=images)
    return mixed


def shifted_and_flipped(
    batch: Batch, recipe: DataRecipe, seed: int, epoch: int, *, as_partners: bool = False
) -> Tensor:
    """Shifts (``crop="padded"``) and flips the images of a batch. Partners have separate draws.

    If the Recipe's size differs, because images grow by epoch, they are then resized to it.
    """
    images, device = batch.images, batch.images.device
    if recipe.crop == "padded" and recipe.crop_padding:
        purpose = Purpose.PARTNER_SHIFT if as_partners else Purpose.SHIFT
        shifts = uniforms(seed, epoch, purpose, batch.indices, 2) * (2 * recipe.crop_padding + 1)
        images = _shifted(images, shifts.astype(np.int64), recipe.crop_padding)
    if recipe.flip:
        purpose = Purpose.PARTNER_FLIP if as_partners else Purpose.FLIP
        rows = on_device(np.flatnonzero(uniforms(seed, epoch, purpose, batch.indices)[:, 0] < 0.5), device)
        mirrored = images[rows].flip(2)
        # The original images must not change, since they may be resident images of all trials.
        images = (
            images.index_copy(0, rows, mirrored)
            if images is batch.images
            else images.index_copy_(0, rows, mirrored)
        )
    if recipe.image_size is not None and recipe.image_size != images.shape[1]:
        images = _resized(images, recipe.image_size)
    return images


def _resized(images_NHWC: Tensor, size: int) -> Tensor:
    """Resizes uint8 (N, H, W, 3) to (N, size, size, 3), by torch's antialiased bilinear filter in float32."""
    images_NCHW = images_NHWC.permute(0, 3, 1, 2).float().contiguous()  # CUDA has no such filter for bytes
    resized = F.interpolate(images_NCHW, (size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _shifted(images_NHWC: Tensor, offsets: Indices, padding: int) -> Tensor:
    """Cuts each image's window at its (row, column) offset from the image padded with black."""
    count, height, width, channels = images_NHWC.shape
    padded = F.pad(images_NHWC, (0, 0, padding, padding, padding, padding))
    # A view of all windows of each image, so that a window is copied row by row, and not pixel by pixel.
    to_image, to_row, to_column, to_channel = padded.stride()
    windows = padded.as_strided(
        (count, 2 * padding + 1, 2 * padding + 1, height, width, channels),
        (to_image, to_row, to_column, to_row, to_column, to_channel),
    )
    offset = on_device(offsets, images_NHWC.device)
    return windows[torch.arange(count, device=images_NHWC.device), offset[:, 0], offset[:, 1]]


def _as_bytes(images: Tensor) -> Tensor:
    """Clips to 0..255 and truncates to uint8, as the official ``_augment_image`` does before RandAugment."""
    return images if images.dtype == torch.uint8 else images.clamp(0, 255).to(torch.uint8)
