"""MixUp and CutMix of whole batches, with a ratio or a box for each image (official ``dataset.py``).

Zhang et al. 2018 (MixUp), Yun et al. 2019 (CutMix). A is the image, B its partner:

    MixUp   r A + (1 - r) B,  r ~ Beta(alpha, alpha)             label share of A: r
    CutMix  A inside a box, B outside                            label share of A: the box's share of the area
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfnet_ray.data.batch import on_device
from nfnet_ray.data.draws import Purpose, uniforms
from nfnet_ray.recipe import MixingRecipe

Indices = NDArray[np.int64]
_BETA_DRAWS = 4  # uniform numbers from which symmetric_beta makes one number


def mix(
    images_NHWC: Tensor,
    partners_NHWC: Tensor,
    indices: Indices,
    positions: Indices,
    recipe: MixingRecipe,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Mixes each image with its partner; returns the images and the label share of the first image, float32 (N,).

    The images are float32 in 0..255 if MixUp is on, else uint8. The position of an image in the global batch decides
    between MixUp and CutMix; the ratio and the box depend on (seed, epoch, sample index).
    """
    device, (height, width) = images_NHWC.device, images_NHWC.shape[1:3]
    share = np.empty(len(indices), np.float32)
    gets_mixup = mixup_rows(positions, recipe)
    mixed = torch.empty_like(images_NHWC, dtype=torch.uint8 if recipe.mixup_alpha is None else torch.float32)
    if recipe.mixup_alpha is not None:
        mixup = np.flatnonzero(gets_mixup)
        share[mixup] = mixup_ratios(seed, epoch, indices[mixup], recipe.mixup_alpha)
        rows, ratio = on_device(mixup, device), on_device(share[mixup], device)[:, None, None, None]
        own = ratio * images_NHWC[rows]
        mixed.index_copy_(0, rows, own.add_((1.0 - ratio) * partners_NHWC[rows]))
    if recipe.cutmix_alpha is not None:
        cutmix = np.flatnonzero(~gets_mixup)
        boxes = cutmix_boxes(seed, epoch, indices[cutmix], recipe.cutmix_alpha, height, width)
        share[cutmix] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (height * width)
        rows, inside = on_device(cutmix, device), _inside(on_device(boxes, device), height, width)
        pasted = torch.where(inside, images_NHWC[rows], partners_NHWC[rows])
        mixed.index_copy_(0, rows, pasted.to(mixed.dtype))
    return mixed, on_device(share, device)


def _inside(boxes_N4: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W, 1) bool: whether each pixel lies in the box."""
    top, left, bottom, right = boxes_N4[:, :, None].unbind(dim=1)
    row, column = (torch.arange(side, device=boxes_N4.device) for side in (height, width))
    in_rows, in_columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]


def mixup_rows(positions: Indices, recipe: MixingRecipe) -> NDArray[np.bool_]:
    """(N,) bool: whether each image gets MixUp, and not CutMix. With both on, every other pair of the batch does."""
    if recipe.mixup_alpha is None or recipe.cutmix_alpha is None:
        return np.full(len(positions), recipe.mixup_alpha is not None)
    return positions // 2 % 2 == 0


def mixup_ratios(seed: int, epoch: int, indices: Indices, alpha: float) -> NDArray[np.float32]:
    """The share of each image in its mixture, Beta(alpha, alpha), (N,)."""
    return symmetric_beta(uniforms(seed, epoch, Purpose.MIXUP, indices, _BETA_DRAWS), alpha).astype(
        np.float32
    )


def cutmix_boxes(
    seed: int, epoch: int, indices: Indices, alpha: float, height: int, width: int
) -> NDArray[np.int64]:
    """The boxes that the first image fills: (top, left, bottom, right) in pixels, (N, 4).

    With p ~ Beta(alpha, alpha) the sides are ``int(sqrt(1 - p) * side)``. The centre is any pixel, and the box is cut
    off at the edges of the image. Official ``cutmix_padding``: halves are ``side // 2``, so sides are even before the
    cut.
    """
    draws = uniforms(seed, epoch, Purpose.CUTMIX, indices, _BETA_DRAWS + 2)
    ratio = np.sqrt(1 - symmetric_beta(draws[:, :_BETA_DRAWS], alpha))
    edges = []
    for side, draw in ((height, draws[:, -2]), (width, draws[:, -1])):
        centre, half = (draw * side).astype(np.int64), (ratio * side).astype(np.int64) // 2
        edges.append((np.clip(centre - half, 0, side), np.clip(centre + half, 0, side)))
    (top, bottom), (left, right) = edges
    return np.stack([top, left, bottom, right], axis=-1)


def symmetric_beta(uniforms_N4: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Beta(alpha, alpha) from four uniform numbers each, exactly and without rejection, (N,).

    Ulrich's formula (Devroye 1986, chapter IX.3) gives B ~ Beta(a, a) for a > 1/2 from two uniform numbers:

        B = 1/2 + 1/2 sqrt(1 - U^(2 / (2a - 1))) cos(2 pi V)

    It is used with a = alpha + 1. B / (1 - B) is the ratio of two independent Gamma(alpha + 1) numbers, and
    Gamma(alpha + 1) U^(1 / alpha) is Gamma(alpha) (Devroye 1986, chapter IX.3), so

        logit(X) = logit(B) + (log U' - log V') / alpha        is that of X ~ Beta(alpha, alpha).
    """
    u, v, u_small, v_small = 1 - uniforms_N4.T  # in (0, 1], so that logarithms are finite
    offset = np.sqrt(-np.expm1(np.log(u) * 2 / (2 * alpha + 1))) * np.cos(2 * np.pi * v)
    with np.errstate(
        divide="ignore", over="ignore"
    ):  # B = 1, or X below the smallest number: 1 and 0 are right
        logit = np.log1p(offset) - np.log1p(-offset) + (np.log(u_small) - np.log(v_small)) / alpha
        return 1 / (1 + np.exp(-logit))
