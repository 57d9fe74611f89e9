"""A Study is a question; its Trials are the points at which the question is asked."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe, decisive_values
from nfnet_ray.tracking.events import HalvingDescription, StudyStarted
from nfnet_ray.tracking.labels import endings, point_label, short_names, value_label
from nfnet_ray.tracking.state import StudyState

TRIALS_FOLDER: Final = "trials"  # in a study's directory; in it each trial has a folder of its name


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving (Li et al. 2020): at ``grace_epochs``, and each time the epochs
    have grown by ``reduction_factor``, a trial continues only if it is among the best 1 / factor so far.

    Trials compete within a stratum alone: with other trials of the same seed and the same values of all
    swept fields but the first. A factor that suits batch 64 must not stop one that suits batch 256.
    """

    grace_epochs: int
    reduction_factor: float = 2.0

    def description(self) -> HalvingDescription:
        """The description in a journal."""
        return {"grace_epochs": self.grace_epochs, "reduction_factor": self.reduction_factor}


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

    ``space`` is {dotted Recipe name: values}. The first name is what is asked about; the others are the
    conditions under which it is asked. With an empty one there is a trial for each seed: a training run.
    """

    name: str
    question: str
    recipe: Recipe
    space: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...] = (0,)
    halving: Halving | None = None
    trial_limit: int | None = None
    """Number of settings to run, the first ones, each with every seed; None: all."""
    chosen: tuple[str, ...] | None = None
    """Names of the trials of a journal that has not every seed of each setting: earlier versions counted trials."""

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
            space={name: tuple(values) for name, values in told["space"].items()},
            seeds=tuple(told["seeds"]),
            halving=Halving(**told["halving"]) if told["halving"] else None,
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
        told |= {f"swept {name}": values for name, values in self.space.items()}
        told |= {"seeds": self.seeds, "halving": self.halving and self.halving.description()}
        told["trials"] = len(self.trials())
        return {name: json.dumps(value) for name, value in told.items()}

    def trials(self) -> list[Trial]:
        """All trials in the order in which they start: seed by seed, condition by condition.

        Raises RecipeError for a value that its field does not take.
        """
        return list(self._trials)

    def waiting_state(self) -> StudyState:
        """The state of this study before anything has happened: all trials wait."""
        return StudyState(trial.name for trial in self.trials())

    def why_stopped(self, trial: str, epoch: int) -> str:
        """Why halving stops a trial after an epoch: ``not in the best half at batch_size 64 after epoch 4``."""
        assert self.halving is not None
        factor = self.halving.reduction_factor
        share = {2.0: "half", 3.0: "third", 4.0: "quarter"}.get(factor, f"1/{factor:g}")
        [point] = [planned.point for planned in self.trials() if planned.name == trial]
        rivals = {name: point[name] for name in list(self.space)[1:]}
        under = f" at {point_label(rivals, short_names(self.space))}" if rivals else ""
        return f"not in the best {share}{under} after epoch {epoch}"

    @functools.cached_property
    def _trials(self) -> list[Trial]:
        if not self.space:
            return [
                Trial(f"seed={seed}", {}, "", self.recipe.with_values({"seed": seed})) for seed in self.seeds
            ]
        names = list(self.space)
        conditions = list(itertools.product(*(self.space[name] for name in names[1:])))
        labels = endings(names)
        settings = list(itertools.product(conditions, self.space[names[0]]))[: self.trial_limit]
        trials = []
        for seed, (condition, asked) in itertools.product(self.seeds, settings):
            point = dict(zip(names, (asked, *condition), strict=True))
            parts = [f"{labels[name]}={_as_file_name(value_label(value))}" for name, value in point.items()]
            if len(self.seeds) > 1:
                parts.append(f"seed={seed}")
            recipe = self.recipe.with_values(point | {"seed": seed})
            trials.append(Trial(",".join(parts), point, ",".join(parts[1:]), recipe))
        if len({trial.name for trial in trials}) != len(trials):
            raise UserError(f"study {self.name}: a value occurs twice in its space; list each value once")
        return [trial for trial in trials if self.chosen is None or trial.name in self.chosen]


def _as_file_name(label: str) -> str:
    """A label that can stand in a file name: ``64 × 128`` as ``64-128``."""
    return re.sub(r"[^A-Za-z0-9.+]+", "-", label).strip("-")
