"""Checks whether trials that run at once fit into the memory that they share."""

from __future__ import annotations

from collections.abc import Iterable

from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.earlier_runs import MeasuredTrial, kind_of
from nfnet_ray.wording import count, storage_size

# The part of a kind that does not describe the trial itself: workers, and the cores and GPUs of each.
_ANYWHERE = {"workers": 0, "cpus": 0, "gpus": 0.0}
_ABOUT_PLACES = len(_ANYWHERE)


def known_memory(recipes: Iterable[Recipe], earlier: Iterable[MeasuredTrial]) -> float | None:
    """Returns the most bytes that a worker of a similar earlier trial used; None if there was no such trial.

    The share of a GPU that the worker had is ignored.
    """
    kinds = {kind_of(recipe, _ANYWHERE)[:-_ABOUT_PLACES] for recipe in recipes}
    taken = [
        trial.memory_bytes
        for trial in earlier
        if trial.memory_bytes is not None and trial.kind[:-_ABOUT_PLACES] in kinds
    ]
    return max(taken, default=None)


def memory_shortage(sharing: int, bytes_each: float, bytes_there: float, gpu: bool) -> str | None:
    """Says why ``sharing`` workers do not fit into the memory of a GPU or this machine; None if they fit."""
    if sharing * bytes_each <= bytes_there:
        return None
    fitting = int(bytes_there // bytes_each)
    where = "a GPU of" if gpu else "this machine's"
    if not fitting:
        remedy = "a smaller network or batch"
    elif gpu:
        remedy = f"--gpus-per-worker {1 / fitting:.4g}"
    else:
        remedy = f"--trials-at-once {fitting}"
    return (
        f"{count(sharing, 'worker')} of {storage_size(round(bytes_each))} each, as measured before, do not fit into "
        f"{where} {storage_size(round(bytes_there))}: give {remedy}"
    )
