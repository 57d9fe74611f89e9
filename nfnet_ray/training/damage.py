"""An epoch's metrics about its images: their size if it grows, the share of shared batches, the damaged ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nfnet_ray.data.loading.loader import EvalLoader, TrainLoader
from nfnet_ray.recipe import DataRecipe
from nfnet_ray.training.collectives import all_of
from nfnet_ray.training.context import Context


def loading_metrics(
    recipe: DataRecipe, train_loader: TrainLoader, eval_loader: EvalLoader, epoch: int, context: Context
) -> dict[str, float]:
    """The metrics of an epoch about its images. Collective: every worker calls it.

    * ``image_size``: in pixels, if images grow;
    * ``shared_batches``: the share of the batches that this worker took from other processes, if there are any;
    * ``damaged_train_images`` and ``damaged_validation_images``, if damaged images are skipped: the number of damaged
      samples that all workers have met since the run started. A sample that two workers met counts once.
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
    """The damaged samples that this worker has met, for a checkpoint."""
    return {"train": train_loader.damaged, "validation": eval_loader.damaged}


def remember_damaged(
    train_loader: TrainLoader, eval_loader: EvalLoader, of_workers: Iterable[Mapping[str, Mapping[int, str]]]
) -> None:
    """Restores the :func:`damaged_so_far` of all workers."""
    for damaged in of_workers:
        train_loader.remember_damaged(damaged["train"])
        eval_loader.remember_damaged(damaged["validation"])


def _count(indices: Iterable[int], context: Context) -> int:
    """The number of different indices that all workers have together."""
    return len(set().union(*all_of(set(indices), context)))
