"""The trials of a study besides those of its plan: further seeds of contenders, reruns of winners, left-out trials."""

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
    """The trials that the study has added by now: further seeds of contenders, and reruns that confirm the winners.

    They have no stratum.
    """
    plans = [state.further[name] for name in state.repeating]
    plans += [state.reruns[name] for name in state.confirming]
    return [_planned_trial(study, plan) for plan in plans]


def left_out_trials(study: Study, state: StudyState) -> list[Trial]:
    """The trials that are no longer part of the study (:attr:`StudyState.outside`). They have no stratum."""
    plans = {**state.plans, **state.further, **state.reruns}
    return [_planned_trial(study, plan) for name, plan in plans.items() if name in state.outside]


def further_trials_of(study: Study, point: Mapping[str, Any], state: StudyState) -> list[Trial]:
    """The trials of a contender with further seeds. Those that are in the journal already keep their names."""
    known = {
        name: plan
        for name, plan in {**state.plans, **state.further}.items()
        if state.trials[name].state != "stopped"  # it would be stopped early once more
    }
    return _trials_with_seeds(study, point, study.more_seeds, "seed", known, state)


def reruns_of(study: Study, point: Mapping[str, Any], state: StudyState) -> list[Trial]:
    """The reruns of a setting with fresh seeds. Those that are in the journal already keep their names.

    Fresh seeds begin 1,000 above the Recipe's own, and leave out those with which any setting has been trained.
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
    """A trial for each seed, with the name of the ``known`` trial that has its Recipe, or else a new name."""
    names = {trial.recipe: trial.name for trial in (_planned_trial(study, plan) for plan in known.values())}
    parts, trials = study.name_parts(point), []
    for seed in seeds:
        recipe = study.recipe.with_values(study.values_at(point) | {"seed": seed})
        new = ",".join([*parts.values(), f"{what}={seed}"])
        name = names.get(recipe) or free_name(new, study.epochs, state.trials)
        trials.append(Trial(name, point, "", recipe))
    return trials


def _planned_trial(study: Study, plan: TrialPlan) -> Trial:
    """A trial that the journal plans, without a stratum."""
    values = {**study.recipe.to_values(), **plan["recipe"], **plan["point"]}
    return Trial(plan["name"], with_tuples(plan["point"]), "", Recipe.from_values(values))
