"""Defines the result of one setting, as a searcher sees it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.trial_progress import TrialProgress

ResultState = Literal["finished", "given up", "diverged", "failed", "running"]

# {final state of a trial: the state of its setting}, the worst first: a setting counts as diverged if one of its seeds
# diverged.
_WORST_FIRST: dict[str, ResultState] = {
    "diverged": "diverged",
    "failed": "failed",
    "stopped": "given up",
    "finished": "finished",
}


@dataclass(frozen=True)
class Result:
    """The result of one setting, over all of its seeds.

    Attributes:
        point: {dotted name: value} of the fields that are swept.
        state: ``running`` until all seeds have ended, even if no trial has started yet.
        values: {epoch: validation top-1 from 0 to 1, the mean over all seeds} of the epochs that all seeds have
            reached.
    """

    point: Mapping[str, Any]
    state: ResultState = "running"
    values: Mapping[int, float] = field(default_factory=dict)


def result_of(point: Mapping[str, Any], trials: Sequence[TrialProgress]) -> Result:
    """Returns the result of a setting whose seeds are ``trials``."""
    states = [trial.state for trial in trials]
    if not trials or not all(state in _WORST_FIRST for state in states):
        return Result(point)
    state = next(meaning for ended, meaning in _WORST_FIRST.items() if ended in states)
    return Result(point, state, _means(trials))


def result_at(point: Mapping[str, Any], trials: Sequence[TrialProgress], rung: int) -> Result | None:
    """Returns the result that a setting had when its trials were at an epoch, whatever happened to them later.

    Returns None if one of the trials has not reached the epoch yet. Trials that have reached it count as ``given up``,
    because their later results must not be used.
    """
    reached = [_was_at(trial, rung) for trial in trials]
    if all(reached):
        return Result(point, "given up", _means(trials, rung))
    if not all(there or trial.state in _WORST_FIRST for there, trial in zip(reached, trials, strict=True)):
        return None
    ended = [trial.state for there, trial in zip(reached, trials, strict=True) if not there]
    state = next(meaning for end, meaning in _WORST_FIRST.items() if end in ended)
    return Result(point, state, _means(trials, rung))


def _was_at(trial: TrialProgress, rung: int) -> bool:
    """Whether a trial has left a rung or waits there. A trial that still runs may diverge within that epoch."""
    if trial.epoch > rung or rung in trial.promoted:
        return True
    return rung in trial.epochs and trial.state in ("paused", "stopped", "finished")


def _means(trials: Sequence[TrialProgress], last: int | None = None) -> dict[int, float]:
    common = set.intersection(*(set(trial.epochs) for trial in trials))
    means = {
        epoch: _mean(trial.epochs[epoch].get(METRIC) for trial in trials)
        for epoch in sorted(common)
        if last is None or epoch <= last
    }
    return {epoch: mean for epoch, mean in means.items() if math.isfinite(mean)}


def _mean(values: Iterable[float | None]) -> float:
    numbers = [math.nan if value is None else value for value in values]
    return math.fsum(numbers) / len(numbers)
