"""An epoch's metrics of its images: their size, if it grows, who made the batches, and the number of damaged ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nfnet_ray.data.loading.loader import EvalLoader, TrainLoader
from nfnet_ray.recipe import DataRecipe
from nfnet_ray.training.collectives import all_of
from nfnet_ray.training.context import Context


def loading_metrics(
    recipe: DataRecipe, train_loader: TrainLoader, eval_loader: EvalLoader, epoch: int, context: Context
) -> dict[str, float]:
    """``image_size`` in pixels if images grow; ``damaged_train_images`` and ``damaged_validation_images`` if skipped.

    ``shared_batches``: the share of the epoch's batches that this worker took from other processes, if there were any.

    The numbers of damaged ones count the different samples that all workers together have met since the run started; a
    sample that two workers met counts once. Collective: every worker calls it.
    """
    metrics: dict[str, float] = {}
    if recipe.progressive.start_size is not None:
        metrics["image_size"] = train_loader.image_size(epoch)
    if train_loader.shared_share is not None:
        metrics["shared_batches"] = train_loader.shared_share
    if recipe.on_damaged == "skip":
        metrics["damaged_train_images"] = _count(train_loader.damaged, context)
        metrics["damaged_validation_images"] = _count(eval_loader.damaged, context)
    return metrics


def damaged_so_far(train_loader: TrainLoader, eval_loader: EvalLoader) -> dict[str, dict[int, str]]:
    """This worker's damaged samples, for a checkpoint."""
    return {"train": train_loader.damaged, "validation": eval_loader.damaged}


def remember_damaged(
    train_loader: TrainLoader, eval_loader: EvalLoader, of_workers: Iterable[Mapping[str, Mapping[int, str]]]
) -> None:
    """Restores :func:`damaged_so_far` of all workers."""
    for damaged in of_workers:
        train_loader.remember_damaged(damaged["train"])
        eval_loader.remember_damaged(damaged["validation"])


def _count(indices: Iterable[int], context: Context) -> int:
    """How many different numbers all workers have together."""
    return len(set().union(*all_of(set(indices), context)))
