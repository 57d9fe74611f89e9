"""Combines the results of several seeds of one setting for the setting's run, once all its trials have ended."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nfnet_ray.tracking.descriptions import StudyDescription, TrialPlan
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD, TrialProgress


@dataclass(frozen=True)
class SettingResult:
    """The trials of a setting that have all ended, one for each seed, at least two.

    Attributes:
        trials: the names of the trials, in the order of the plan.
        epochs: {epoch: {metric: value}} up to the last epoch that all trials have reached: the mean over the seeds, and
            the lowest and the highest accuracy.
        has_diverged: whether all trials have diverged.
    """

    trials: tuple[str, ...]
    epochs: Mapping[int, Mapping[str, float]]
    has_diverged: bool

    @property
    def key(self) -> str:
        """A key that is equal for the same trials. With further seeds, a setting is another group of trials."""
        return hashlib.sha256("\n".join(self.trials).encode()).hexdigest()[:16]


def has_several_seeds(study: StudyDescription) -> bool:
    """Whether a setting may have several trials."""
    return len(study["seeds"]) > 1 or bool(study.get("more_seeds"))


def study_seeds(state: StudyState) -> str:
    """Lists all seeds of a study's trials so far, including contenders and reruns, such as ``0, 1, 1000``."""
    assert state.started is not None
    outside = state.outside
    plans = {**state.plans, **state.further, **state.reruns}
    own = (plan["recipe"].get("seed") for name, plan in plans.items() if name not in outside)
    seeds = {*state.started["study"]["seeds"], *(seed for seed in own if seed is not None)}
    return ", ".join(map(str, sorted(seeds)))


def ended_setting(state: StudyState, trial: str, metric: str) -> SettingResult | None:
    """Returns a trial's setting if all its trials have ended; None if not, or if there is only one."""
    plans = {**state.plans, **state.further}
    if trial not in plans:
        return None
    setting, outside = _setting(plans[trial]), state.outside
    group = [
        state.trials[name]
        for name, plan in plans.items()
        if name not in outside and _setting(plan) == setting
    ]
    if len(group) < 2 or not all(each.state in ENDED_FOR_GOOD for each in group):
        return None
    return SettingResult(
        tuple(each.name for each in group),
        _together(group, metric),
        all(each.state == "diverged" for each in group),
    )


def _setting(plan: TrialPlan) -> str:
    recipe = {name: value for name, value in plan["recipe"].items() if name != "seed"}
    return json.dumps([plan["point"], recipe], sort_keys=True)


def _together(group: Sequence[TrialProgress], metric: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for epoch in sorted(set.intersection(*(set(trial.epochs) for trial in group))):
        accuracies = [trial.epochs[epoch].get(metric) for trial in group]
        seconds = [trial.epochs[epoch].get("train_seconds") for trial in group]
        values = [value for value in (*accuracies, *seconds) if value is not None and math.isfinite(value)]
        if len(values) < 2 * len(group):
            break
        tops, times = values[: len(group)], values[len(group) :]
        found[epoch] = {
            metric: math.fsum(tops) / len(tops),
            f"{metric}_low": min(tops),
            f"{metric}_high": max(tops),
            "train_seconds": math.fsum(times) / len(times),
        }
    return found
