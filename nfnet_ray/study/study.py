"""A Study is a question; its Trials are the points at which the question is asked."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe, decisive_values
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.space import (
    Point,
    SameAs,
    Space,
    all_values,
    check_points,
    check_space,
    domain_from_json,
    domain_to_json,
    grid,
    has_range,
    is_listed,
    unconditional,
)
from nfnet_ray.tracking.events import HalvingDescription, StudyStarted
from nfnet_ray.tracking.labels import endings, value_label
from nfnet_ray.tracking.state import StudyState

UNCHANGED: Final = "recipe"  # the name of a trial in which no field is swept
TRIALS_FOLDER: Final = "trials"  # in a study's directory; in it each trial has a folder of its name


@dataclass(frozen=True)
class Trial:
    """One point of a study: ``point`` is {dotted name: value} of what is swept."""

    name: str
    point: Mapping[str, Any]
    stratum: str
    recipe: Recipe


@dataclass(frozen=True)
class Study:
    """A question, the Recipe it starts from, and the space in which the answer is sought.

    ``space`` is {dotted Recipe name: domain}, where a domain is a tuple of values or one of
    :mod:`nfnet_ray.study.space`. The first name is what is asked about; the other fields that have a list of values are
    the conditions under which it is asked. With an empty space there is a trial for each seed: a training run.

    Raises UserError for a space that is wrong, with the field and what to do.
    """

    name: str
    question: str
    recipe: Recipe
    space: Space
    seeds: tuple[int, ...] = (0,)
    halving: Halving | None = None
    trial_limit: int | None = None
    """Number of settings to run, the first ones, each with every seed; None: all."""
    chosen: tuple[str, ...] | None = None
    """Names of the trials of a journal that has not every seed of each setting: earlier versions counted trials."""
    points: tuple[Mapping[str, Any], ...] | None = None
    """A plain list of {dotted name: value} to try, in place of a space. A field that a point leaves out keeps the
    Recipe's value. All points compete with each other."""

    def __post_init__(self) -> None:
        check_space(self.space)
        if self.points is not None:
            check_points(self.points, self.space)

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is not stopped early."""
        return self.recipe.schedule.epochs

    @staticmethod
    def from_event(event: StudyStarted) -> Study:
        """The study that a journal's first line describes."""
        told = event["study"]
        study = Study(
            name=told["name"],
            question=told["question"],
            recipe=Recipe.from_values(told["recipe"]),
            space={name: domain_from_json(described) for name, described in told["space"].items()},
            points=tuple(told["points"]) if "points" in told else None,
            seeds=tuple(told["seeds"]),
            halving=Halving.from_description(told["halving"]) if told["halving"] else None,
            trial_limit=len({json.dumps(plan["point"], sort_keys=True) for plan in event["trials"]}),
        )
        names = tuple(plan["name"] for plan in event["trials"])
        if names == tuple(trial.name for trial in study.trials()):
            return study
        return replace(study, trial_limit=None, chosen=names)

    def differences(self, other: Study) -> list[str]:
        """What keeps this study from being ``other``, each as "FIELD is A, was B"; none if they are the same.

        The data's path and the study's name make no difference; whether the data is the same is
        for its fingerprint to say.
        """
        mine, others = self._recorded(), other._recorded()
        return [
            f"{name} is {mine.get(name, 'not swept')}, was {others.get(name, 'not swept')}"
            for name in {**mine, **others}
            if mine.get(name) != others.get(name)
        ]

    def _recorded(self) -> dict[str, str]:
        """{what a person may set: its value as JSON}, in which a journal's lists and our tuples are equal."""
        told = {"question": self.question} | decisive_values(self.recipe.to_values())
        told |= {f"swept {name}": domain_to_json(domain) for name, domain in self.space.items()}
        told |= {"points": self.points} if self.points is not None else {}
        told |= {"seeds": self.seeds, "halving": self.halving_description()}
        told["trials"] = len(self.trials())
        return {name: json.dumps(value) for name, value in told.items()}

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """Dotted names of the fields that points have: those of the space but for tied ones, or those of the points."""
        if self.points is not None:
            return tuple(dict.fromkeys(name for point in self.points for name in point))
        return tuple(
            name for name, domain in self.space.items() if not isinstance(unconditional(domain), SameAs)
        )

    @functools.cached_property
    def conditions(self) -> tuple[str, ...]:
        """The fields whose values divide the trials into strata: all but the first that have a list of values."""
        if self.points is not None:
            return ()
        return tuple(name for name in self.fields[1:] if is_listed(self.space[name]))

    def trials(self) -> list[Trial]:
        """All trials in the order in which they start: seed by seed, condition by condition.

        Raises RecipeError for a value that its field does not take.
        """
        return list(self._trials)

    def waiting_state(self) -> StudyState:
        """The state of this study before anything has happened: all trials wait."""
        return StudyState(trial.name for trial in self.trials())

    def halving_description(self) -> HalvingDescription | None:
        """The description of the study's early stopping in a journal; None: no trial is stopped early."""
        return self.halving.description(self.recipe.schedule) if self.halving else None

    @functools.cached_property
    def _trials(self) -> list[Trial]:
        points = list(itertools.islice(self._points(), self.trial_limit))
        labels, conditions = endings(self.fields), self.conditions
        trials = []
        for seed, point in itertools.product(self.seeds, points):
            parts = {
                name: f"{labels[name]}={_as_file_name(value_label(value))}" for name, value in point.items()
            }
            own_seed = [f"seed={seed}"] if len(self.seeds) > 1 or not self.fields else []
            rivals = [parts[name] for name in conditions if name in parts]
            recipe = self.recipe.with_values(all_values(self.space, self.recipe, point) | {"seed": seed})
            trials.append(
                Trial(
                    name=",".join([*parts.values(), *own_seed]) or UNCHANGED,
                    point=point,
                    stratum=",".join([*rivals, *own_seed]) if self.fields else "",
                    recipe=recipe,
                )
            )
        if len({trial.name for trial in trials}) != len(trials):
            raise UserError(f"study {self.name}: two of its points have the same name; list each value once")
        return [trial for trial in trials if self.chosen is None or trial.name in self.chosen]

    def _points(self) -> Iterable[Point]:
        """The points in the order in which they start."""
        if self.points is not None:
            return map(dict, self.points)
        if not self.space:
            return [{}]
        if has_range(self.space):
            raise UserError(f"study {self.name}: a range needs a search; list values in its place")
        return grid(self.space, self.recipe)


def _as_file_name(label: str) -> str:
    """A label that can stand in a file name: ``64 × 128`` as ``64-128``."""
    return re.sub(r"[^A-Za-z0-9.+]+", "-", label).strip("-")
