"""How a data set is split into batches, and a batch among workers."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import DataRecipe, MixingRecipe, Recipe
from nfnet_ray.wording import count

CHUNKS = (4, 2, 1)  # 4: a pair for MixUp and a pair for CutMix


def images_of_share(images: int, train_share: float) -> int:
    """The number of training images that are used, of ``images`` in the data set (``data.train_share``); at least 1."""
    return max(1, round(images * train_share))


def batches_per_epoch(images: int, batch_size: int) -> int:
    """The number of whole batches in an epoch. Images that do not fill another one are left out of that epoch."""
    return images // batch_size


def positions_of_rank(batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The positions in the global batch that a worker computes, (batch_size / world_size,) int64, ascending.

    The batch is divided into chunks of 4 positions (or of 2 or 1, if 4 does not divide a worker's share), and chunk c
    goes to rank ``c % world_size``. So the first images of every share, which SAM uses for its ascent, are among the
    first of the global batch, while neighbours, which mixing pairs, stay together.
    """
    share = batch_size // world_size
    chunk = next(size for size in CHUNKS if share % size == 0)
    return np.arange(share * world_size, dtype=np.int64).reshape(-1, chunk)[rank::world_size].reshape(-1)


def positions_of_worker(batch_size: int, rank: int, world_size: int, replicas: int) -> NDArray[np.int64]:
    """The positions that a worker computes if ``world_size`` workers replace ``replicas``, int64, ascending.

    The worker computes the shares of the replicas ``rank``, ``rank + world_size`` and so on. If one number divides the
    other, these are the positions that :func:`positions_of_rank` gives it among ``world_size`` workers.
    """
    shares = [
        positions_of_rank(batch_size, replica, replicas) for replica in range(rank, replicas, world_size)
    ]
    return np.sort(np.concatenate(shares))


def mixes(recipe: MixingRecipe) -> bool:
    """Whether training images are mixed at all."""
    return recipe.mixup_alpha is not None or recipe.cutmix_alpha is not None


def check_batch_size(recipe: Recipe, images: int, workers: int, path: str | os.PathLike[str]) -> None:
    """Raises UserError if the Recipe's batches cannot be made of ``images`` training images for ``workers`` workers.

    The images of ``data.train_share`` have to fill a batch. The number of workers has to divide the batch, and the
    number of micro-batches a worker's share. If images are mixed with neighbours, a share has to consist of pairs.
    """
    batch_size, micro_batches = recipe.batch_size, recipe.micro_batches
    check_batches(recipe.data, batch_size, images, workers, path)
    if batch_size % (workers * micro_batches):
        raise UserError(
            f"micro_batches {micro_batches} cannot share equally the {count(batch_size // workers, 'image')} of a "
            "worker: "
            f"choose a divisor of {batch_size // workers} with --set micro_batches=..."
        )


def check_batches(
    recipe: DataRecipe, batch_size: int, images: int, workers: int, path: str | os.PathLike[str]
) -> None:
    """The part of :func:`check_batch_size` that concerns the loader alone. Raises UserError."""
    used = images_of_share(images, recipe.train_share)
    if batches_per_epoch(used, batch_size) == 0:
        taken = f"{count(used, 'training image')} of {path}"
        if used < images:
            taken = f"{count(used, 'image')} that data.train_share {recipe.train_share} takes of {path}"
        raise UserError(
            f"batch_size {batch_size} is larger than the {taken}: choose a smaller one with --set batch_size=..."
        )
    if batch_size % workers:
        raise UserError(
            f"batch_size {batch_size} cannot be shared equally by {count(workers, 'worker')}: "
            f"choose a multiple of {workers} with --set batch_size=..."
        )
    check_partners(recipe, batch_size, workers)


def check_partners(recipe: DataRecipe, batch_size: int, workers: int) -> None:
    """Raises UserError if images are mixed with neighbours in their batch and a share cannot be split into pairs."""
    share = batch_size // workers
    if mixes(recipe.mixing) and recipe.mixing.partners == "batch" and share % 2:
        raise UserError(
            f"batch_size {batch_size} gives a worker an odd number of images ({share}), which fall into no pairs: "
            f"choose a multiple of {2 * workers} with --set batch_size=..., or --set data.mixing.partners=separate"
        )
