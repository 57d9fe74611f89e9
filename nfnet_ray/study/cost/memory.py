"""Whether trials that run at once fit into the memory that they share."""

from __future__ import annotations

from collections.abc import Iterable

from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.earlier_runs import MeasuredTrial, kind_of
from nfnet_ray.wording import count, storage_size

# Of a kind, what is not about the trial itself: workers, cores and GPUs of each.
_ANYWHERE = {"workers": 0, "cpus": 0, "gpus": 0.0}
_ABOUT_PLACES = len(_ANYWHERE)


def known_memory(recipes: Iterable[Recipe], earlier: Iterable[MeasuredTrial]) -> float | None:
    """The most bytes that a worker of an earlier trial like one of these took; None if there was none.

    The share of a GPU that it had makes no difference.
    """
    kinds = {kind_of(recipe, _ANYWHERE)[:-_ABOUT_PLACES] for recipe in recipes}
    taken = [
        trial.memory_bytes
        for trial in earlier
        if trial.memory_bytes is not None and trial.kind[:-_ABOUT_PLACES] in kinds
    ]
    return max(taken, default=None)


def memory_shortage(sharing: int, bytes_each: float, bytes_there: float, gpu: bool) -> str | None:
    """Why ``sharing`` workers do not fit into one GPU's memory, or into this machine's, and what to do; or None."""
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
