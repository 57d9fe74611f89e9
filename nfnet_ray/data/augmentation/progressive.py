"""Training images that grow by epoch, and augmentation that grows with them (``data.progressive``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nfnet_ray.recipe import ProgressiveRecipe, ResolvedData


def data_at_epoch(recipe: ResolvedData, epoch: int, epochs: int) -> ResolvedData:
    """The Recipe of epoch ``epoch`` (counted from 0) of ``epochs``, with the size, magnitude and alphas of that epoch.

    The size is ``start_size`` until ``start_epoch`` and ``image_size`` from ``end_epoch`` on. In between it grows
    linearly, rounded to a multiple of ``step`` (FFCV's rn50 recipe, libffcv/ffcv-imagenet ``train_imagenet.py``).
    With ``stages`` the line becomes a staircase of equal height (google/automl ``efficientnetv2/main_tf2.py``).
    """
    growth, size, magnitude = recipe.progressive, recipe.image_size, recipe.randaugment.magnitude
    if growth.start_size is None:
        return recipe
    share = _grown_share(growth, epoch, epochs)
    changes: dict[str, Any] = {
        "image_size": _size(growth, size, share),
        "progressive": ProgressiveRecipe(),
    }
    if growth.start_magnitude is not None and magnitude is not None:
        magnitude = growth.start_magnitude + share * (magnitude - growth.start_magnitude)
        changes["randaugment"] = replace(recipe.randaugment, magnitude=magnitude)
    if growth.mixing_grows:
        mixup, cutmix = recipe.mixing.mixup_alpha, recipe.mixing.cutmix_alpha
        changes["mixing"] = replace(
            recipe.mixing, mixup_alpha=_scaled(mixup, share), cutmix_alpha=_scaled(cutmix, share)
        )
    return replace(recipe, **changes)


def _grown_share(growth: ProgressiveRecipe, epoch: int, epochs: int) -> float:
    """The growth of the images so far: 0 at the start size, 1 at the full size."""
    start, end = growth.start_epoch, growth.full_size_epoch(epochs)
    if epoch >= end:
        return 1.0
    if growth.stages is None:
        return max(0, epoch - start) / (end - start)
    rises = growth.stages - 1  # at whole epochs, and the last one at the end
    return sum(epoch - start >= round(rise * (end - start) / rises) for rise in range(1, rises)) / rises


def _size(growth: ProgressiveRecipe, full_size: int, share: float) -> int:
    if growth.start_size is None or share == 1:
        return full_size
    if share == 0:
        return growth.start_size
    size = growth.start_size + share * (full_size - growth.start_size)
    return min(max(round(size / growth.step) * growth.step, growth.start_size), full_size)


def _scaled(alpha: float | None, share: float) -> float | None:
    return None if alpha is None or share == 0 else alpha * share
