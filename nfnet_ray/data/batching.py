"""How a data set falls into batches."""

from __future__ import annotations

import os

from nfnet_ray.errors import UserError


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches of one pass; the images that do not fill the last one are left out of that pass."""
    return images // batch_size


def check_batch_size(batch_size: int, images: int, workers: int, path: str | os.PathLike[str]) -> None:
    """Raises UserError if the training images do not fill one batch, or the workers cannot share it equally."""
    if batches_per_epoch(images, batch_size) == 0:
        raise UserError(
            f"batch_size {batch_size} is larger than the {images:,} training images of {path}: "
            "choose a smaller one with --set batch_size=..."
        )
    if batch_size % workers:
        raise UserError(
            f"batch_size {batch_size} cannot be shared equally by {workers} workers: "
            f"choose a multiple of {workers} with --set batch_size=..."
        )
