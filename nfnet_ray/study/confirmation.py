"""Confirming the winner: it is trained again with fresh seeds before its accuracy is quoted.

The winner is lucky in its seeds, for it is the best of several. Its *reruns* have other seeds and train all epochs.
They are no trials of a setting: no rung and no search sees them, and they choose no setting. When all settings have
ended, the winners are found by what the journal has, and an event says which reruns confirm them. Whoever resumes the
study therefore trains the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nfnet_ray.study.added_trials import reruns_of
from nfnet_ray.study.search.axes import point_key
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import ConfirmationPlanned, confirmation_planned
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD

FindWinners = Callable[[StudyState], Sequence[Mapping[str, Any]]]
"""The points of the winners by what a journal has, one for each stratum that has a comparable setting."""


def planned_reruns(
    study: Study, state: StudyState, winners: Sequence[Mapping[str, Any]]
) -> ConfirmationPlanned:
    """The event that says which reruns confirm the winners.

    Args:
        study: as it has grown.
        winners: their points.
    """
    points = {point_key(trials[0].point): trials[0].point for trials in study.trials_by_setting()}
    reruns = [trial for point in winners for trial in reruns_of(study, points[point_key(point)], state)]
    names = {trial.name for trial in reruns}
    return confirmation_planned(
        [study.plan(trial) for trial in reruns], [name for name in state.reruns if name not in names]
    )


def reruns_to_run(study: Study, state: StudyState) -> int:
    """The number of reruns that have yet to end, planned or not."""
    if not study.confirm:
        return 0
    if not state.has_winners:
        return study.confirm * study.winners
    return sum(state.trials[name].state not in ENDED_FOR_GOOD for name in state.confirming)
