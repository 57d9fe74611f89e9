"""Defines Study, a question with a space of settings, and Trial, one training run of a study."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.search.axes import point_key
from nfnet_ray.study.search.first_points import check_first_points, first_points
from nfnet_ray.study.search.model import startup_points
from nfnet_ray.study.search.searcher import (
    ADAPTIVE,
    DEFAULT_SETTINGS,
    Searcher,
    check_search,
    default_search,
)
from nfnet_ray.study.space import (
    SameAs,
    Space,
    all_values,
    check_asked,
    check_points,
    check_space,
    domain_from_json,
    domain_to_json,
    grid,
    is_listed,
    unconditional,
)
from nfnet_ray.study.study_fields import plain_fields, with_tuples
from nfnet_ray.study.trial_names import UNCHANGED, free_name, name_parts, trial_key
from nfnet_ray.tracking.descriptions import HalvingDescription, TrialPlan
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import newer_version, not_understood
from nfnet_ray.tracking.state import StudyState

TRIALS_FOLDER: Final = "trials"
"""The folder within a study's folder that contains one folder for each trial."""
# Ten times the number with which the driver was benchmarked (benchmarks/sweep_scale.py). Planning many more takes
# minutes.
MOST_SETTINGS: Final = 10_000
# The number of corners of a space that are checked. It covers all corners of ten fields with two values or ends each.
MOST_CORNERS: Final = 1024


@dataclass(frozen=True)
class Trial:
    """One training run of a study; ``point`` is {dotted name: value} of the swept fields."""

    name: str
    point: Mapping[str, Any]
    stratum: str
    recipe: Recipe


@dataclass(frozen=True)
class Study:
    """A question, the Recipe that it starts from, and the space in which the answer is sought.

    ``space`` is {dotted Recipe name: domain}, where a domain is a list of values or one of
    :mod:`nfnet_ray.study.space`. The first field is the one in question; the other fields with a list of values are the
    conditions under which the question is asked. With an empty space, the study trains the Recipe once for each seed.

    Raises UserError if the space is invalid, naming the field and what to do.
    """

    name: str
    question: str
    recipe: Recipe
    space: Space = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    halving: Halving | None = None
    trial_limit: int | None = None
    """The number of settings to run, counted from the first one, each with every seed; None: all settings."""
    chosen: tuple[str, ...] | None = None
    """Names of the trials of a journal of an earlier version, whose limit counted trials and so could leave out
    seeds."""
    points: tuple[Mapping[str, Any], ...] | None = None
    """A plain list of points, {dotted name: value}, instead of a space. A field that a point leaves out keeps the
    Recipe's value. All points compete with each other."""
    asked: tuple[str, ...] | None = None
    """The fields in question of a plain list of points, by which trials are named; None: all fields. The values of the
    other fields follow from these, such as the published optimiser of each network."""
    search: str | None = None
    """The search that chooses points of the space, one of :data:`nfnet_ray.study.search.searcher.SEARCHES`; None:
    ``grid`` if all domains are lists, ``sobol`` if there is a range."""
    first_points: tuple[Mapping[str, Any], ...] = ()
    """Points of the space, such as those of an earlier study, that a search tries first, after the Recipe's own
    point."""
    lag: int = 1
    """A search that learns from results proposes setting number j from the results up to number j - lag."""
    found: tuple[Mapping[str, Any], ...] | None = None
    """The points recorded in the journal, which replace those that the search would draw now."""
    planned: int | None = None
    """The number of points in ``found`` that were planned at the start; None: all."""
    equal_within: float | None = None
    """The difference in accuracy, a fraction, below which settings are equal in practice; None: the analysis'
    default."""
    holdout: float | None = None
    """The share of the validation images on which the best setting is quoted. It is chosen on the other images."""
    more_seeds: tuple[int, ...] = ()
    """Seeds with which only the contenders are trained: settings that may be the best after the single seed in
    ``seeds``."""
    seed_spread: float | None = None
    """The standard deviation between seeds, a fraction, that is assumed for choosing contenders; None: the analysis'
    own."""
    confirm: int = 0
    """The number of fresh seeds with which the winner of each stratum is rerun before its accuracy is quoted."""
    names: Mapping[str, str] = field(default_factory=dict)
    """{:func:`trial_key`: name} of the trials of an extended study, so that earlier trials keep their names."""
    outside: tuple[str, ...] = ()
    """Names of trials that an extension has left out. No other trial may have these names."""

    def __post_init__(self) -> None:
        for name, value in plain_fields(self).items():
            object.__setattr__(self, name, value)
        if self.more_seeds and len(self.seeds) != 1:
            raise UserError("more_seeds are for a study whose settings have all one seed: give seeds=(0,)")
        check_space(self.space)
        if self.asked is not None and self.points is None:
            raise UserError("asked is only for a plain list of points; a space names its own fields")
        if self.points is not None:
            check_points(self.points, self.space)
            check_asked(self.points, self.asked)
            if self.search is not None:
                raise UserError(f"--search {self.search} needs a space: a list of points is tried as it is")
        if self.search is not None:
            check_search(self.search, self.space)
        if self.first_points and not self.draws_points:
            raise UserError(
                "--from has no effect if every value is tried: leave it out, or use --search sobol"
            )
        check_first_points(self.space, self.recipe, list(map(with_tuples, self.first_points)))
        if self.halving is not None and self.has_budgets:
            raise UserError(
                "early stopping compares trials of the same number of epochs, and schedule.epochs is swept: "
                "use --early-stopping none"
            )
        if self.halving is not None and self.halving.in_seconds and self.is_adaptive:
            raise UserError(
                f"early stopping: unit={self.halving.unit} is not for --search {self.search_name}, which learns from "
                "accuracies at epochs: use rungs in epochs, or --search sobol"
            )

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is not stopped early; if trials differ in their epochs, those of the Recipe."""
        return self.recipe.schedule.epochs

    @property
    def has_budgets(self) -> bool:
        """Whether trials train for different numbers of epochs, each with its own complete schedule."""
        return "schedule.epochs" in (*self.space, *self.fields)

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """Dotted names of the fields that points have: those of ``points``, or those of the space but for tied ones."""
        if self.asked is not None:
            return self.asked
        if self.points is not None:
            return tuple(dict.fromkeys(name for point in self.points for name in point))
        return tuple(
            name for name, domain in self.space.items() if not isinstance(unconditional(domain), SameAs)
        )

    @functools.cached_property
    def conditions(self) -> tuple[str, ...]:
        """The fields whose values divide the trials into strata.

        These are the fields with a list of values, except the first field. If the search learns from results, there are
        none, because the search looks for the best setting under any condition.
        """
        if self.points is not None or self.is_adaptive:
            return ()
        return tuple(name for name in self.fields[1:] if is_listed(self.space[name]))

    @functools.cached_property
    def strata(self) -> int:
        """The number of combinations of the conditions, each of which has its own winner."""
        return (
            len({json.dumps([point.get(name) for name in self.conditions]) for point in self._settings}) or 1
        )

    @property
    def winners(self) -> int:
        """The number of settings to confirm, one for each combination of the conditions; 0 without ``confirm``."""
        return self.strata if self.confirm else 0

    @property
    def group_size(self) -> int | None:
        """The size of the groups in which trials compete; None: all trials of a stratum compete with each other.

        If the search learns from results, a trial cannot wait for all others of the study. The default then is groups
        of eta squared trials, the best of which continue after the first and the second rung.
        """
        if self.halving is None or self.halving.group is not None or not self.is_adaptive:
            return self.halving.group if self.halving else None
        return max(2, round(self.halving.eta**2))

    @property
    def search_name(self) -> str:
        """The name of the study's search: the given one, or the default for the space."""
        return self.search or default_search(self.space)

    @property
    def draws_points(self) -> bool:
        """Whether a search draws points of the space, instead of trying every value."""
        return self.points is None and bool(self.space) and self.search_name != "grid"

    @property
    def is_adaptive(self) -> bool:
        """Whether the search learns from results, so that trials are added while the study runs."""
        return self.draws_points and self.search_name in ADAPTIVE

    @property
    def settings(self) -> int:
        """The number of settings that a search should try. A small space may have fewer points."""
        return self.trial_limit or DEFAULT_SETTINGS

    @functools.cached_property
    def searcher(self) -> Searcher:
        """The searcher that draws the points of the study's space."""
        first = first_points(self.space, self.recipe, self.first_points) if self.draws_points else ()
        return Searcher(self.search_name, self.space, self.recipe, first)

    def trials(self) -> list[Trial]:
        """Returns all trials that are known, in the order in which they start: seed by seed, condition by condition.

        If the search learns from results, these are only the first trials, setting by setting; see :meth:`grown`.

        Raises RecipeError for a value that is not valid for its field.
        """
        return list(self._trials)

    def trials_by_setting(self) -> list[tuple[Trial, ...]]:
        """Returns the trials of :meth:`trials` as a tuple for each setting, with one trial for each seed."""
        return list(self._by_setting)

    @functools.cached_property
    def _trials(self) -> list[Trial]:
        settings = self._by_setting
        ordered = settings if self.is_adaptive else zip(*settings, strict=True)
        trials = list(itertools.chain.from_iterable(ordered))
        if len({trial.name for trial in trials}) != len(trials):
            raise UserError(f"study {self.name}: two of its points have the same name; list each value once")
        return [trial for trial in trials if self.chosen is None or trial.name in self.chosen]

    @functools.cached_property
    def _by_setting(self) -> list[tuple[Trial, ...]]:
        return [self.trials_at(point) for point in self._settings]

    @functools.cached_property
    def _settings(self) -> list[Mapping[str, Any]]:
        """The points of the settings that are known, in the order in which they start."""
        if self.found is not None:
            return [with_tuples(point) for point in self.found]
        if self.points is not None:
            points: list[Mapping[str, Any]] = [dict(point) for point in self.points]
            return points[: self.trial_limit]
        if not self.space:
            return [{}]
        if not self.draws_points:
            found: list[Mapping[str, Any]] = list(
                itertools.islice(grid(self.space, self.recipe), self.trial_limit or MOST_SETTINGS + 1)
            )
            if not self.trial_limit and len(found) > MOST_SETTINGS:
                raise UserError(
                    f"the space has more than {MOST_SETTINGS:,} settings: list fewer values, draw some of them with "
                    "--search sobol, or run only the first ones with --trials N"
                )
            return found
        known = min(self.settings, startup_points(self.space)) if self.is_adaptive else self.settings
        return list(self.searcher.planned(known))

    def trials_at(self, point: Mapping[str, Any]) -> tuple[Trial, ...]:
        """Returns the trials of one setting, one for each seed."""
        point = self._asked_part(point)
        parts = self.name_parts(point)
        rivals = [parts[name] for name in self.conditions if name in parts]
        values = self.values_at(point)
        trials = []
        for seed in self.seeds:
            own_seed = [part] if (part := self._own_seed(seed)) else []
            name = ",".join([*parts.values(), *own_seed]) or UNCHANGED
            given = self.names.get(trial_key(point, seed)) if self.names else None
            trials.append(
                Trial(
                    name=given or free_name(name, self.epochs, self.outside),
                    point=point,
                    stratum=",".join([*rivals, *own_seed]) if self.fields else "",
                    recipe=self.recipe.with_values(values | {"seed": seed}),
                )
            )
        return tuple(trials)

    def name_parts(self, point: Mapping[str, Any]) -> dict[str, str]:
        """Returns {dotted name of a swept field: the part of a trial's name that contains its value}."""
        return name_parts(self.fields, point)

    def values_at(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Returns {dotted name: value} of all values that a point changes in the study's Recipe."""
        return all_values(self.space, self.recipe, self._whole_points.get(point_key(point), point))

    @functools.cached_property
    def _whole_points(self) -> dict[str, Mapping[str, Any]]:
        """{:func:`point_key` of a point's fields in ``asked``: the whole point}; empty without ``asked``."""
        if self.asked is None or self.points is None:
            return {}
        return {point_key(self._asked_part(point)): with_tuples(point) for point in self.points}

    def _asked_part(self, point: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.asked is None:
            return point
        return {name: point[name] for name in self.asked if name in point}

    def _own_seed(self, seed: int) -> str:
        """Returns the part of a trial's name and stratum that contains its seed; empty if the study has one seed."""
        return f"seed={seed}" if len(self.seeds) > 1 or not self.fields else ""

    def names_to_come(self) -> list[tuple[str, str]]:
        """Returns (stratum, placeholder for a name) of each trial that a search has yet to propose, in that order."""
        if not self.is_adaptive:
            return []
        strata = [self._own_seed(seed) for seed in self.seeds]
        return [
            (stratum, f"proposal {number} {stratum}".rstrip())
            for number in range(len(self._settings), self.settings)
            for stratum in strata
        ]

    def outermost_trials(self) -> list[Trial]:
        """Returns trials at the ends of all ranges if the search learns from results; else an empty list.

        Such a search proposes trials while the study runs. The trials at the ends are checked in their place, so that
        invalid values are refused before anything starts. Raises RecipeError as :meth:`trials` does.
        """
        if not self.is_adaptive:
            return []
        corners = itertools.islice(grid(self.space, self.recipe), MOST_CORNERS)
        return [self.trials_at(point)[0] for point in corners]

    @staticmethod
    def from_event(event: StudyStarted, *, any_version: bool = False) -> Study:
        """Returns the study that a journal's first line describes, with all its extensions.

        With ``any_version`` the study can be shown but not trained (:meth:`Recipe.from_any_version`). Raises UserError
        if this version cannot interpret the description, which a newer version may have written.
        """
        try:
            return Study._from_event(event, any_version)
        except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
            told: Mapping[str, Any] = event["study"]
            versions = [str(told.get("versions", {}).get("nfnet_ray", ""))]
            if isinstance(error, UserError) and newer_version(versions) is None:
                raise
            raise not_understood(f"the journal of {told.get('name')}", versions, repr(error)) from error

    @staticmethod
    def _from_event(event: StudyStarted, any_version: bool) -> Study:
        told = event["study"]
        recipe_of = Recipe.from_any_version if any_version else Recipe.from_values
        study = Study(
            name=told["name"],
            question=told["question"],
            recipe=recipe_of(told["recipe"]),
            space={name: domain_from_json(described) for name, described in told["space"].items()},
            points=tuple(told["points"]) if "points" in told else None,
            asked=tuple(told["asked"]) if "asked" in told else None,
            seeds=tuple(told["seeds"]),
            halving=Halving.from_description(told["halving"]) if told["halving"] else None,
            equal_within=told.get("equal_within"),
            holdout=told.get("holdout"),
            more_seeds=tuple(told.get("more_seeds", ())),
            seed_spread=told.get("seed_spread"),
            confirm=told.get("confirm", 0),
        )
        distinct = {json.dumps(plan["point"], sort_keys=True): plan["point"] for plan in event["trials"]}
        if "search" in told:
            study = replace(
                study,
                search=told["search"]["name"],
                trial_limit=told["search"]["settings"],
                first_points=tuple(told["search"]["first_points"]),
                lag=told["search"].get("lag", 1),
                found=tuple(distinct.values()),
            )
        else:
            study = replace(study, trial_limit=len(distinct))
        if "outside" in told:
            given = {
                trial_key(plan["point"], plan["recipe"]["seed"]): plan["name"] for plan in event["trials"]
            }
            return replace(study, names=given, outside=tuple(told["outside"]))
        names = tuple(plan["name"] for plan in event["trials"])
        if names == tuple(trial.name for trial in study.trials()):
            return study
        return replace(study, trial_limit=None, chosen=names)

    def grown(self, state: StudyState) -> Study:
        """Returns the study with the settings that were proposed while it ran and are in the journal with all seeds."""
        known = len(self._settings)
        if not self.is_adaptive or len(state.proposals) <= len(self.seeds) * (known - self._planned):
            return self
        numbers: dict[int, list[str]] = {}
        for name, number in state.proposals.items():
            if number >= known:
                numbers.setdefault(number, []).append(name)
        proposed = [
            with_tuples(state.plans[names[0]]["point"])
            for _, names in sorted(numbers.items())
            if len(names) == len(self.seeds)
        ]
        if not proposed:
            return self
        study = replace(self, found=(*self._settings, *proposed), planned=self._planned)
        # Extending the cached list, instead of computing it anew, keeps a thousand proposals from taking quadratic
        # time.
        vars(study)["_by_setting"] = [*self._by_setting, *map(study.trials_at, proposed)]
        return study

    @property
    def _planned(self) -> int:
        """The number of settings that were in the journal at the start."""
        return len(self._settings) if self.planned is None else self.planned

    def with_points_of(self, state: StudyState) -> Study:
        """Returns this study with the points, rungs and names that its journal has, from which ``state`` was read."""
        if state.started is None:
            return self
        begun = Study.from_event(state.started)
        study = replace(
            self,
            halving=begun.halving,
            seed_spread=begun.seed_spread,
            names=begun.names,
            outside=begun.outside,
        )
        return replace(study, found=begun.found, lag=begun.lag).grown(state) if self.draws_points else study

    def waiting_state(self) -> StudyState:
        """Returns the state of this study before anything has happened, in which all trials wait."""
        return StudyState(trial.name for trial in self.trials())

    def description(self) -> dict[str, Any]:
        """Returns the part of a journal's description that defines the question, without data, machines and caps."""
        told: dict[str, Any] = {
            "question": self.question,
            "space": {name: domain_to_json(domain) for name, domain in self.space.items()},
            "seeds": list(self.seeds),
            "epochs": self.epochs,
            "halving": self.halving_description(),
            "recipe": self.recipe.to_values(),
        }
        for name in ("equal_within", "holdout", "seed_spread"):
            if getattr(self, name) is not None:
                told[name] = getattr(self, name)
        if self.more_seeds:
            told["more_seeds"] = list(self.more_seeds)
        if self.confirm:
            told["confirm"] = self.confirm
        if self.points is not None:
            told["points"] = [dict(point) for point in self.points]
        if self.asked is not None:
            told["asked"] = list(self.asked)
        if self.draws_points:
            told["search"] = {
                "name": self.search_name,
                "settings": self.settings,
                "first_points": [dict(point) for point in self.first_points],
            }
        if self.is_adaptive:
            told["search"]["lag"] = self.lag
        return told

    def halving_description(self) -> HalvingDescription | None:
        """Returns the description of early stopping for a journal; None: no trial is stopped early."""
        if self.halving is None:
            return None
        return replace(self.halving, group=self.group_size).description(self.recipe.schedule)

    def plan(self, trial: Trial) -> TrialPlan:
        """Returns the description of a trial for a journal."""
        changed = self.values_at(trial.point) | {"seed": trial.recipe.seed}
        return {"name": trial.name, "point": dict(trial.point), "recipe": changed}
