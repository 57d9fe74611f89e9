"""Determines the trials that an adaptive search adds next to a running study, from the journal alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nfnet_ray.study.search.result import Result, result_at, result_of
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.tracking.descriptions import TrialPlan
from nfnet_ray.tracking.events import TrialProposed, trial_proposed
from nfnet_ray.tracking.state import StudyState


@dataclass(frozen=True)
class Proposal:
    """Setting ``number``, counted from 0, with a trial for each seed and the trials whose results the proposal used."""

    number: int
    plans: tuple[TrialPlan, ...]
    after: tuple[str, ...]

    def events(self, state: StudyState) -> list[TrialProposed]:
        """Returns the events that add the proposal's trials to the journal, without those that it already has."""
        return [
            trial_proposed(plan, self.number, self.after)
            for plan in self.plans
            if plan["name"] not in state.trials
        ]


@dataclass(frozen=True)
class Waiting:
    """States that the next proposal needs the results of these trials, which have not ended."""

    trials: tuple[str, ...]


def next_proposal(study: Study, state: StudyState) -> Proposal | Waiting | None:
    """Returns the next setting of a study, or the trials it has to wait for; None if the study has all its settings.

    Args:
        study: the study with the settings proposed so far (:meth:`Study.grown`).

    Call the function again after the proposal's events have been recorded, with the study that has grown by them.
    """
    if not study.is_adaptive:
        return None
    settings = study.trials_by_setting()
    number = len(settings)
    if number >= study.settings:
        return None
    results, missing = [], []
    for index, trials in enumerate(settings):
        result = _visible_result(study, state, trials, number - index)
        if result is None:
            missing += [trial.name for trial in trials]
        else:
            results.append(result)
    if missing:
        return Waiting(tuple(missing))
    point = study.searcher.propose(results, study.lag)
    if point is None:
        return None
    seen = settings[: max(0, number - study.lag + 1)]
    plans = tuple(study.plan(trial) for trial in study.trials_at(point))
    return Proposal(number, plans, tuple(trial.name for trials in seen for trial in trials))


def has_more(study: Study, state: StudyState) -> bool:
    """Whether a study has unfinished trials, would propose one, or has yet to determine contenders or winners."""
    if study.more_seeds and not state.has_contenders:
        return True
    if state.unfinished or (study.confirm and not state.has_winners):
        return True
    return has_proposals(study.grown(state), state)


def has_proposals(study: Study, state: StudyState) -> bool:
    """Whether a study, as it has grown, will propose another setting, now or when other trials have ended."""
    return (
        study.is_adaptive
        and len(study.trials_by_setting()) < study.settings
        and next_proposal(study, state) is not None
    )


def _visible_result(study: Study, state: StudyState, trials: Sequence[Trial], before: int) -> Result | None:
    """Returns the result that the proposal uses of the setting ``before`` positions earlier; None if not known yet.

    With early stopping a trial pauses at its first rung, and whether it continues is certain only when its competitors
    have arrived. Until then its result is that at the rung, as if it had been given up, even if it has trained further.
    """
    progress = [state.trials[trial.name] for trial in trials]
    point = trials[0].point
    if before < study.lag:
        return Result(point)
    if study.halving is None or before >= study.lag + (study.group_size or 0):
        result = result_of(point, progress)
        return None if result.state == "running" else result
    return result_at(point, progress, int(study.halving.first_rung_of(study.recipe.schedule)))
