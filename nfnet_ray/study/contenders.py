"""Trains the contenders with further seeds: the settings that may still be the best according to the first seed.

When all settings have ended with their first seed, the contenders are determined from the journal. An event records
which trials are added for them, and why the other settings are dropped. A study that is resumed therefore trains the
same trials, whatever the order in which trials ended and the number that ran at once. The further trials train all
epochs.
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
"""The least number of contenders for each winner: to call one setting better, a second one needs several seeds, too."""


@dataclass(frozen=True)
class Contenders:
    """The settings that are trained with further seeds, and the reasons why the others are not.

    Attributes:
        points: the points of the contenders.
        dropped: {name of a trial of a setting that is not a contender: the reason, for people}.
    """

    points: Sequence[Mapping[str, Any]]
    dropped: Mapping[str, str]


FindContenders = Callable[[StudyState], Contenders]
"""Determines the contenders among all settings that have finished according to a journal."""


def further_trials(study: Study, state: StudyState, contenders: Contenders) -> ContendersChosen:
    """Returns the event that records which trials are added for the contenders.

    After an extension, a setting may no longer be a contender. Its further trials are kept if they have ended.

    Args:
        study: the study, including the settings that were proposed while it ran.
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
    """Returns (least, most) number of further trials that have not ended; equal once the contenders are known.

    The most assumes that every setting which is trained to the end, according to the planned rungs, is a contender.
    """
    if not study.more_seeds:
        return 0, 0
    if state.has_contenders:
        left = sum(state.trials[name].state not in ENDED_FOR_GOOD for name in state.repeating)
        return left, left
    finalists = sum(group.ladder[-1][1] if group.ladder else len(group.trials) for group in groups(study))
    least = min(finalists, LEAST_CONTENDERS * study.strata)
    return least * len(study.more_seeds), finalists * len(study.more_seeds)
