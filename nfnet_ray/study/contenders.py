"""Further seeds for the contenders alone: the settings that one seed could not exclude from being the best.

When all settings have ended with their first seed, the contenders are found by what the journal has, and an event says
which trials they are given and why other settings are dropped. Whoever resumes the study therefore trains the same
ones, whichever trial was the first to end and however many ran at once. The further trials train all epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfnet_ray.study.added_trials import further_trials_of
from nfnet_ray.study.decisions import groups
from nfnet_ray.study.search.axes import point_key
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import ContendersChosen, contenders_chosen
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD

LEAST_CONTENDERS = 2
"""For each winner: without a second setting that has several seeds, none could be called better."""


@dataclass(frozen=True)
class Contenders:
    """The settings that are given further seeds, and those that are not.

    Attributes:
        points: of the contenders.
        dropped: {trial of a setting that is none: why, for people}.
    """

    points: Sequence[Mapping[str, Any]]
    dropped: Mapping[str, str]


FindContenders = Callable[[StudyState], Contenders]
"""Finds the contenders by what a journal has, of all settings that have finished."""


def further_trials(study: Study, state: StudyState, contenders: Contenders) -> ContendersChosen:
    """The event that says which trials the contenders are given.

    Trials of settings that are no contenders any more, since an extension, are kept if they have ended.

    Args:
        study: as it has grown.
    """
    points = {point_key(trials[0].point): trials[0].point for trials in study.trials_by_setting()}
    given = [
        trial
        for point in contenders.points
        for trial in further_trials_of(study, points[point_key(point)], state)
    ]
    names = {trial.name for trial in given}
    ended = [
        plan
        for name, plan in state.further.items()
        if name not in names
        and plan["recipe"].get("seed") in study.more_seeds
        and point_key(plan["point"]) in points
        and state.trials[name].state in ENDED_FOR_GOOD
    ]
    have_more = {point_key(plan["point"]) for plan in ended}
    dropped = {
        name: why
        for name, why in contenders.dropped.items()
        if point_key(state.plans[name]["point"]) not in have_more
    }
    kept = names.union(plan["name"] for plan in ended)
    return contenders_chosen(
        [*map(study.plan, given), *ended],
        dropped,
        [name for name in state.further if name not in kept],
    )


def further_to_run(study: Study, state: StudyState) -> tuple[int, int]:
    """(least, most) number of further trials that have yet to end; both are the same once the contenders are known.

    Most: all settings that are trained to the end, as the rungs are planned.
    """
    if not study.more_seeds:
        return 0, 0
    if state.has_contenders:
        left = sum(state.trials[name].state not in ENDED_FOR_GOOD for name in state.repeating)
        return left, left
    finalists = sum(group.ladder[-1][1] if group.ladder else len(group.trials) for group in groups(study))
    least = min(finalists, LEAST_CONTENDERS * study.strata)
    return least * len(study.more_seeds), finalists * len(study.more_seeds)
