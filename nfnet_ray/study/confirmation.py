"""Confirms the winner of a study by training it again with fresh seeds before its accuracy is quoted.

The measured accuracy of the winner is optimistic, because the winner was chosen as the best of several settings. Its
*reruns* have other seeds and train all epochs. Reruns are no trials of a setting: early stopping and the search ignore
them, and they do not affect which setting wins. When all settings have ended, the winners are determined from the
journal, and an event records which reruns confirm them. A study that is resumed therefore trains the same reruns.
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
"""Returns the points of the winners according to a journal, one for each stratum that has a comparable setting."""


def planned_reruns(
    study: Study, state: StudyState, winners: Sequence[Mapping[str, Any]]
) -> ConfirmationPlanned:
    """Returns the event that records which reruns confirm the winners.

    Args:
        study: the study, including the settings that were proposed while it ran.
        winners: the points of the winners.
    """
    points = {point_key(trials[0].point): trials[0].point for trials in study.trials_by_setting()}
    reruns = [trial for point in winners for trial in reruns_of(study, points[point_key(point)], state)]
    names = {trial.name for trial in reruns}
    return confirmation_planned(
        [study.plan(trial) for trial in reruns], [name for name in state.reruns if name not in names]
    )


def reruns_to_run(study: Study, state: StudyState) -> int:
    """Returns the number of reruns that have not ended yet, whether they have been planned or not."""
    if not study.confirm:
        return 0
    if not state.has_winners:
        return study.confirm * study.winners
    return sum(state.trials[name].state not in ENDED_FOR_GOOD for name in state.confirming)
