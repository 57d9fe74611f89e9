"""The trials that a study has besides its plan: further seeds of contenders, reruns of winners, left-out trials."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.study.study_fields import FRESH_SEEDS, with_tuples
from nfnet_ray.study.trial_names import free_name
from nfnet_ray.tracking.descriptions import TrialPlan
from nfnet_ray.tracking.state import StudyState


def added_trials(study: Study, state: StudyState) -> list[Trial]:
    """Returns the trials that the study has added so far: further seeds of contenders, and reruns of the winners.

    These trials belong to no stratum.
    """
    plans = [state.further[name] for name in state.repeating]
    plans += [state.reruns[name] for name in state.confirming]
    return [_planned_trial(study, plan) for plan in plans]


def left_out_trials(study: Study, state: StudyState) -> list[Trial]:
    """Returns the trials that an extension has left out (:attr:`StudyState.outside`). They belong to no stratum."""
    plans = {**state.plans, **state.further, **state.reruns}
    return [_planned_trial(study, plan) for name, plan in plans.items() if name in state.outside]


def further_trials_of(study: Study, point: Mapping[str, Any], state: StudyState) -> list[Trial]:
    """Returns the trials of a contender with further seeds. Trials that are already in the journal keep their names."""
    known = {
        name: plan
        for name, plan in {**state.plans, **state.further}.items()
        if state.trials[name].state != "stopped"  # such a trial would be stopped early again
    }
    return _trials_with_seeds(study, point, study.more_seeds, "seed", known, state)


def reruns_of(study: Study, point: Mapping[str, Any], state: StudyState) -> list[Trial]:
    """Returns the reruns of a setting with fresh seeds. Trials that are already in the journal keep their names.

    Fresh seeds begin 1,000 above the Recipe's own seed and leave out every seed with which a setting has been trained.
    """
    trained = {**state.plans, **state.further}
    used = {plan["recipe"].get("seed") for plan in trained.values()}.union(study.seeds, study.more_seeds)
    fresh = (seed for seed in itertools.count(study.recipe.seed + FRESH_SEEDS) if seed not in used)
    return _trials_with_seeds(
        study, point, itertools.islice(fresh, study.confirm), "rerun", state.reruns, state
    )


def _trials_with_seeds(
    study: Study,
    point: Mapping[str, Any],
    seeds: Iterable[int],
    what: str,
    known: Mapping[str, TrialPlan],
    state: StudyState,
) -> list[Trial]:
    """Returns a trial for each seed. A trial with the Recipe of a ``known`` trial takes that trial's name."""
    names = {trial.recipe: trial.name for trial in (_planned_trial(study, plan) for plan in known.values())}
    parts, trials = study.name_parts(point), []
    for seed in seeds:
        recipe = study.recipe.with_values(study.values_at(point) | {"seed": seed})
        new = ",".join([*parts.values(), f"{what}={seed}"])
        name = names.get(recipe) or free_name(new, study.epochs, state.trials)
        trials.append(Trial(name, point, "", recipe))
    return trials


def _planned_trial(study: Study, plan: TrialPlan) -> Trial:
    """Returns a trial that is planned in the journal, without a stratum."""
    values = {**study.recipe.to_values(), **plan["recipe"], **plan["point"]}
    return Trial(plan["name"], with_tuples(plan["point"]), "", Recipe.from_values(values))
