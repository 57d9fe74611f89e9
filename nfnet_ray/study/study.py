"""A Study is a question; its Trials are the points at which the question is asked."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nfnet_ray.command_line.python_arguments import (
    a_dict,
    a_list,
    a_number,
    a_text,
    a_whole_number,
    refusal,
)
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe, decisive_values
from nfnet_ray.settings import LARGEST_WHOLE_NUMBER
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.search.axes import point_key
from nfnet_ray.study.search.first_points import check_first_points, first_points
from nfnet_ray.study.search.model import startup_points
from nfnet_ray.study.search.searcher import (
    ADAPTIVE,
    DEFAULT_SETTINGS,
    SEARCHES,
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
    domain_text,
    domain_to_json,
    grid,
    in_plain_values,
    is_listed,
    unconditional,
)
from nfnet_ray.tracking.descriptions import HalvingDescription, TrialPlan
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import newer_version, not_understood
from nfnet_ray.tracking.labels import endings, value_label
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.wording import as_points

UNCHANGED: Final = "recipe"  # the name of a trial in which no field is swept
MOST_CORNERS: Final = (
    1024  # of a space that are checked: all of them for ten fields with two values or ends each
)
FRESH_SEEDS: Final = (
    1000  # more than any study has, so that a study which is extended by seeds leaves them fresh
)
# Ten times what the driver is measured with (benchmarks/sweep_scale.py). Many more take minutes to be planned.
MOST_SETTINGS: Final = 10_000
_SWEEP: Final = "sweep of "
_MOST_POINTS_SHOWN: Final = 3  # of a list of points, in a message
TRIALS_FOLDER: Final = "trials"  # in a study's folder; each trial has a folder of its name in it


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
    :mod:`nfnet_ray.study.space`. The first field is the one in question; the other fields that have a list of values
    are the conditions under which it is asked. With an empty space there is a trial for each seed: a training run.

    Raises UserError for a space that is wrong, with the field and what to do.
    """

    name: str
    question: str
    recipe: Recipe
    space: Space = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    halving: Halving | None = None
    trial_limit: int | None = None
    """The number of settings to run, from the first, each with every seed; None: all."""
    chosen: tuple[str, ...] | None = None
    """Names of the trials of a journal that lacks some seeds of some settings: earlier versions counted trials."""
    points: tuple[Mapping[str, Any], ...] | None = None
    """A plain list of {dotted name: value} to try, instead of a space. A field that a point leaves out keeps the
    Recipe's value. All points compete with each other."""
    asked: tuple[str, ...] | None = None
    """The fields in question of a plain list of points, by which trials are named; None: all. The other fields go with
    them, such as the published optimiser of each network."""
    search: str | None = None
    """How points of the space are found, one of :data:`nfnet_ray.study.search.searcher.SEARCHES`; None: ``grid`` if
    there are only lists, ``sobol`` if there is a range."""
    first_points: tuple[Mapping[str, Any], ...] = ()
    """Points of the space, such as those of an earlier study, that a search tries first, after the Recipe's own."""
    lag: int = 1
    """A search that learns from results proposes setting number j from the results up to number j - lag."""
    found: tuple[Mapping[str, Any], ...] | None = None
    """The points that a journal has, instead of those that the search would draw now."""
    planned: int | None = None
    """How many of them were planned at the start; None: all."""
    equal_within: float | None = None
    """Settings whose accuracies differ by less are equal in practice, a fraction; None: the analysis' default."""
    holdout: float | None = None
    """The share of the validation images on which the best setting is quoted; it is chosen on the others."""
    more_seeds: tuple[int, ...] = ()
    """Seeds that only the contenders are trained with: settings that ``seeds``, then a single one, cannot exclude."""
    seed_spread: float | None = None
    """The standard deviation between seeds by which contenders are chosen, a fraction; None: the analysis' own."""
    confirm: int = 0
    """The number of fresh seeds with which the winner of each stratum is rerun before its accuracy is quoted."""
    names: Mapping[str, str] = field(default_factory=dict)
    """{:func:`trial_key`: name} of the trials of an extended study: earlier trials keep their names."""
    outside: tuple[str, ...] = ()
    """Names of trials that an extension has left out; no other trial may have them."""

    def __post_init__(self) -> None:
        self._check_types()
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
        check_first_points(self.space, self.recipe, list(map(_with_tuples, self.first_points)))
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

    def _check_types(self) -> None:
        """Raises UserError for a field of the wrong type; lists become tuples, and NumPy's numbers Python's."""
        a_text("name", self.name)
        for name, kind, allowed in (
            ("question", str, "a text"),
            ("recipe", Recipe, "a Recipe, such as published_recipe('nfnet_f0')"),
            ("halving", Halving | None, "a Halving, such as Halving(rule='synchronous'), or None"),
            ("search", str | None, f"one of {', '.join(SEARCHES)}, or None"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise refusal(name, getattr(self, name), allowed)
        space = a_dict("space", self.space, "a dict {dotted name of a field: its values}")
        plain: dict[str, Any] = {name: in_plain_values(domain) for name, domain in space.items()}
        kept: dict[str, Any] = {
            "space": plain,
            "confirm": a_whole_number("confirm", self.confirm, 0, FRESH_SEEDS),
        }
        for name, least in (("seeds", 1), ("more_seeds", 0)):
            allowed = "a list of different whole numbers, such as (0, 1, 2)"
            given = a_list(name, getattr(self, name), allowed)
            seeds = tuple(a_whole_number(f"a seed of {name}", seed, 0) for seed in given)
            if len(seeds) < least or len(set(seeds)) < len(seeds):
                raise refusal(name, given, allowed)
            kept[name] = seeds
        if self.trial_limit is not None:
            kept["trial_limit"] = a_whole_number("trial_limit", self.trial_limit, 1, LARGEST_WHOLE_NUMBER)
        if self.equal_within is not None:
            # run() and --equal-within take points.
            allowed = "a fraction above 0 and below 1: 0.005 is half a point"
            kept["equal_within"] = a_number("equal_within", self.equal_within, allowed, above=0, below=1)
        if self.holdout is not None:
            kept["holdout"] = a_number(
                "holdout", self.holdout, "a number above 0 and below 1", above=0, below=1
            )
        if self.points is not None:
            kept["points"] = _plain_points("points", self.points)
        if self.asked is not None:
            allowed = "a list of dotted names of fields"
            kept["asked"] = tuple(
                a_text("a field of asked", name, allowed) for name in a_list("asked", self.asked, allowed)
            )
        kept["first_points"] = _plain_points("first_points", self.first_points)
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @property
    def epochs(self) -> int:
        """Epochs of a trial that is not stopped early; where trials differ in that, the Recipe's own."""
        return self.recipe.schedule.epochs

    @property
    def has_budgets(self) -> bool:
        """Whether trials train for different numbers of epochs, each with a complete schedule of its own."""
        return "schedule.epochs" in (*self.space, *self.fields)

    @staticmethod
    def from_event(event: StudyStarted, *, any_version: bool = False) -> Study:
        """The study that a journal's first line, with all extensions of it, describes.

        With ``any_version`` it is one to be looked at (:meth:`Recipe.from_any_version`); without, one to be trained.
        Raises UserError for what this version does not understand, as a newer one may have written it.
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

    def differences(self, other: Study) -> list[str]:
        """What keeps this study from being ``other``, each as "FIELD is A, was B"; none if they are the same.

        The data's path and the study's name make no difference; whether the data is the same is
        for its fingerprint to say.
        """
        mine, others = self._recorded(), other._recorded()
        return [
            f"{name} is {_in_words(name, mine)}, was {_in_words(name, others)}"
            for name in {**mine, **others}
            # As JSON, in which a journal's lists and our tuples are equal.
            if json.dumps(mine.get(name)) != json.dumps(others.get(name))
        ]

    def _recorded(self) -> dict[str, Any]:
        """{what a person may set: its value}, of what is set."""
        told = {"question": self.question} | decisive_values(self.recipe.to_values())
        told |= {f"{_SWEEP}{name}": domain_to_json(domain) for name, domain in self.space.items()}
        told |= {
            "points": self.points,
            "asked": self.asked,
            "seeds": self.seeds,
            "more seeds": self.more_seeds,
        }
        told |= {"early stopping": self.halving_description(), "equal within": self.equal_within}
        told |= {"holdout": self.holdout, "confirm": self.confirm}
        if told["early stopping"]:  # the price that money_seconds is made from may have changed since
            kept = told["early stopping"].items()
            told["early stopping"] = {key: value for key, value in kept if key != "money_seconds"}
        if self.draws_points:
            told |= {"search": self.search_name, "first points": self.first_points, "settings": self.settings}
        else:
            told["trials"] = len(self.trials())
        return told

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """Dotted names of the fields that points have: those of the space but for tied ones, or those of the points."""
        if self.asked is not None:
            return self.asked
        if self.points is not None:
            return tuple(dict.fromkeys(name for point in self.points for name in point))
        return tuple(
            name for name, domain in self.space.items() if not isinstance(unconditional(domain), SameAs)
        )

    @functools.cached_property
    def conditions(self) -> tuple[str, ...]:
        """The fields whose values divide the trials into strata: all but the first that have a list of values.

        None where a search learns from results: it looks for the best setting, whatever its conditions.
        """
        if self.points is not None or self.is_adaptive:
            return ()
        return tuple(name for name in self.fields[1:] if is_listed(self.space[name]))

    @functools.cached_property
    def strata(self) -> int:
        """The number of combinations of the conditions, each of which has a winner."""
        return (
            len({json.dumps([point.get(name) for name in self.conditions]) for point in self._settings}) or 1
        )

    @property
    def winners(self) -> int:
        """The number of settings to confirm, one for each combination of the conditions; 0 without ``confirm``."""
        return self.strata if self.confirm else 0

    @property
    def search_name(self) -> str:
        """The name of its search, also if it has none of its own."""
        return self.search or default_search(self.space)

    @property
    def draws_points(self) -> bool:
        """Whether a search draws points of its space, instead of trying every value."""
        return self.points is None and bool(self.space) and self.search_name != "grid"

    @property
    def is_adaptive(self) -> bool:
        """Whether its search learns from results, so that trials are added while it runs."""
        return self.draws_points and self.search_name in ADAPTIVE

    @property
    def settings(self) -> int:
        """The number of settings that a search is asked for; a space of fewer points has fewer."""
        return self.trial_limit or DEFAULT_SETTINGS

    @functools.cached_property
    def searcher(self) -> Searcher:
        """What draws the points of its space."""
        first = first_points(self.space, self.recipe, self.first_points) if self.draws_points else ()
        return Searcher(self.search_name, self.space, self.recipe, first)

    def trials(self) -> list[Trial]:
        """All trials that are known, in the order in which they start: seed by seed, condition by condition.

        Where a search learns from results they are the first ones alone, setting by setting; see :meth:`grown`.

        Raises RecipeError for a value that its field does not take.
        """
        return list(self._trials)

    def trials_by_setting(self) -> list[tuple[Trial, ...]]:
        """The same trials as a tuple for each setting, which has its seeds."""
        return list(self._by_setting)

    def names_to_come(self) -> list[tuple[str, str]]:
        """(stratum, stand-in for a name) of each trial that a search has yet to propose, in that order."""
        if not self.is_adaptive:
            return []
        strata = [self._own_seed(seed) for seed in self.seeds]
        return [
            (stratum, f"proposal {number} {stratum}".rstrip())
            for number in range(len(self._settings), self.settings)
            for stratum in strata
        ]

    def outermost_trials(self) -> list[Trial]:
        """Trials at the ends of all ranges, where a search that learns may propose one while the study runs; else none.

        Whatever no trial could run with is refused there before anything starts. Raises RecipeError as :meth:`trials`.
        """
        if not self.is_adaptive:
            return []
        corners = itertools.islice(grid(self.space, self.recipe), MOST_CORNERS)
        return [self.trials_at(point)[0] for point in corners]

    def grown(self, state: StudyState) -> Study:
        """The study with the settings that were proposed while it ran, once all of their seeds are in the journal."""
        known = len(self._settings)
        if not self.is_adaptive or len(state.proposals) <= len(self.seeds) * (known - self._planned):
            return self
        numbers: dict[int, list[str]] = {}
        for name, number in state.proposals.items():
            if number >= known:
                numbers.setdefault(number, []).append(name)
        proposed = [
            _with_tuples(state.plans[names[0]]["point"])
            for _, names in sorted(numbers.items())
            if len(names) == len(self.seeds)
        ]
        if not proposed:
            return self
        study = replace(self, found=(*self._settings, *proposed), planned=self._planned)
        # A study of a thousand settings grows a thousand times.
        vars(study)["_by_setting"] = [*self._by_setting, *map(study.trials_at, proposed)]
        return study

    def left_out(self, state: StudyState) -> list[Trial]:
        """The trials that are not part of the study any more (:attr:`StudyState.outside`); they have no stratum."""
        plans = {**state.plans, **state.further, **state.reruns}
        return [self._planned_trial(plan) for name, plan in plans.items() if name in state.outside]

    def added_trials(self, state: StudyState) -> list[Trial]:
        """The further trials of contenders, and the reruns that confirm the winners, as far as they are planned.

        They have no stratum.
        """
        plans = [state.further[name] for name in state.repeating]
        plans += [state.reruns[name] for name in state.confirming]
        return [self._planned_trial(plan) for plan in plans]

    def further_trials_of(self, point: Mapping[str, Any], state: StudyState) -> list[Trial]:
        """The trials of a contender with further seeds; those that the journal has already keep their names."""
        known = {
            name: plan
            for name, plan in {**state.plans, **state.further}.items()
            if state.trials[name].state != "stopped"  # it would be stopped early once more
        }
        return self._added_trials(point, self.more_seeds, "seed", known, state)

    def reruns_of(self, point: Mapping[str, Any], state: StudyState) -> list[Trial]:
        """The reruns of a setting with fresh seeds; those that the journal has already keep their names.

        Fresh seeds count from 1,000 above the Recipe's own, without those that any setting has been trained with.
        """
        trained = {**state.plans, **state.further}
        used = {plan["recipe"].get("seed") for plan in trained.values()}.union(self.seeds, self.more_seeds)
        fresh = (seed for seed in itertools.count(self.recipe.seed + FRESH_SEEDS) if seed not in used)
        return self._added_trials(point, itertools.islice(fresh, self.confirm), "rerun", state.reruns, state)

    def _added_trials(
        self,
        point: Mapping[str, Any],
        seeds: Iterable[int],
        what: str,
        known: Mapping[str, TrialPlan],
        state: StudyState,
    ) -> list[Trial]:
        """A trial for each seed, with the name of the ``known`` one that has its Recipe, or with a new one."""
        names = {trial.recipe: trial.name for trial in map(self._planned_trial, known.values())}
        parts, trials = self._parts(point), []
        for seed in seeds:
            recipe = self.recipe.with_values(self._values(point) | {"seed": seed})
            new = ",".join([*parts.values(), f"{what}={seed}"])
            name = names.get(recipe) or free_name(new, self.epochs, state.trials)
            trials.append(Trial(name, point, "", recipe))
        return trials

    def _planned_trial(self, plan: TrialPlan) -> Trial:
        """A trial of the journal that is no trial of a setting."""
        values = {**self.recipe.to_values(), **plan["recipe"], **plan["point"]}
        return Trial(plan["name"], _with_tuples(plan["point"]), "", Recipe.from_values(values))

    def with_points_of(self, state: StudyState) -> Study:
        """The study, which is one that a journal describes, with the points, rungs and names that it has there."""
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

    @property
    def group_size(self) -> int | None:
        """Trials compete in groups of this number; None: all of a stratum.

        Where a search learns from results, trials cannot wait for all others of the study: by default they compete in
        groups in which the best of the first and of the second rung continue, eta squared.
        """
        if self.halving is None or self.halving.group is not None or not self.is_adaptive:
            return self.halving.group if self.halving else None
        return max(2, round(self.halving.eta**2))

    def waiting_state(self) -> StudyState:
        """The state of this study before anything has happened: all trials wait."""
        return StudyState(trial.name for trial in self.trials())

    def halving_description(self) -> HalvingDescription | None:
        """The description of the study's early stopping in a journal; None: no trial is stopped early."""
        if self.halving is None:
            return None
        return replace(self.halving, group=self.group_size).description(self.recipe.schedule)

    def description(self) -> dict[str, Any]:
        """The entries of a journal's description of the study that say what is asked; not data, machines or caps."""
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

    def trials_at(self, point: Mapping[str, Any]) -> tuple[Trial, ...]:
        """The trials of one setting, one for each seed."""
        point = self._asked_part(point)
        parts = self._parts(point)
        rivals = [parts[name] for name in self.conditions if name in parts]
        values = self._values(point)
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

    def _parts(self, point: Mapping[str, Any]) -> dict[str, str]:
        """{dotted name: the part of a trial's name} of each swept field."""
        labels = endings(self.fields)
        return {name: f"{labels[name]}={_as_file_name(value_label(value))}" for name, value in point.items()}

    def plan(self, trial: Trial) -> TrialPlan:
        """What a journal says of a trial."""
        changed = self._values(trial.point) | {"seed": trial.recipe.seed}
        return {"name": trial.name, "point": dict(trial.point), "recipe": changed}

    def _values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the trials of a point change in the study's Recipe."""
        return all_values(self.space, self.recipe, self._whole_points.get(point_key(point), point))

    def _asked_part(self, point: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.asked is None:
            return point
        return {name: point[name] for name in self.asked if name in point}

    @functools.cached_property
    def _whole_points(self) -> dict[str, Mapping[str, Any]]:
        """{:func:`point_key` of what is asked about: the whole point}, where these are not the same."""
        if self.asked is None or self.points is None:
            return {}
        return {point_key(self._asked_part(point)): _with_tuples(point) for point in self.points}

    def _own_seed(self, seed: int) -> str:
        """What names a seed in a trial's name and stratum; nothing where there is one seed."""
        return f"seed={seed}" if len(self.seeds) > 1 or not self.fields else ""

    @functools.cached_property
    def _by_setting(self) -> list[tuple[Trial, ...]]:
        return [self.trials_at(point) for point in self._settings]

    @property
    def _planned(self) -> int:
        """The number of settings that the journal had at the start."""
        return len(self._settings) if self.planned is None else self.planned

    @functools.cached_property
    def _trials(self) -> list[Trial]:
        settings = self._by_setting
        ordered = settings if self.is_adaptive else zip(*settings, strict=True)
        trials = list(itertools.chain.from_iterable(ordered))
        if len({trial.name for trial in trials}) != len(trials):
            raise UserError(f"study {self.name}: two of its points have the same name; list each value once")
        return [trial for trial in trials if self.chosen is None or trial.name in self.chosen]

    @functools.cached_property
    def _settings(self) -> list[Mapping[str, Any]]:
        """The points that are known, in the order in which they start."""
        if self.found is not None:
            return [_with_tuples(point) for point in self.found]
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


def _in_words(name: str, recorded: Mapping[str, Any]) -> str:
    """A value of :meth:`Study._recorded` for people, in the words of the flag that gives it."""
    value = recorded.get(name)
    if name.startswith(_SWEEP):
        return "not swept" if value is None else domain_text(domain_from_json(value))
    if name == "early stopping" and value:
        return Halving.from_description(value).text()
    if name == "equal within" and value is not None:
        return as_points(f"{100 * value:g}")
    if name in ("points", "first points") and value:
        shown_points = [
            ", ".join(f"{field}={value_label(point[field])}" for field in point) for point in value
        ]
        return " / ".join(
            [*shown_points[:_MOST_POINTS_SHOWN], *(["…"] if len(value) > _MOST_POINTS_SHOWN else [])]
        )
    if isinstance(value, str):  # as it is: of a file of weights the end may be what differs
        return value
    return (
        ", ".join(map(value_label, value)) or "none"
        if isinstance(value, list | tuple)
        else value_label(value)
    )


def trial_key(point: Mapping[str, Any], seed: int) -> str:
    """A text that tells the trials of a study apart, the same before and after they have been through a journal."""
    return f"{point_key(point)} {seed}"


def free_name(name: str, epochs: int, taken: Container[str]) -> str:
    """The name of a trial, with an ending if an earlier trial has it: one with other epochs, say."""
    suffixes = itertools.chain(["", f",epochs={epochs}"], (f",{number}" for number in itertools.count(2)))
    return next(free for suffix in suffixes if (free := name + suffix) not in taken)


def _plain_points(name: str, points: Any) -> tuple[dict[str, Any], ...]:
    """Points with tuples for lists and Python's numbers for NumPy's. Raises UserError for what is no list of points."""
    allowed = "a list of points, each a dict {dotted name of a field: value}"
    return tuple(
        {field: in_plain_values(value) for field, value in a_dict(f"one of {name}", point, allowed).items()}
        for point in a_list(name, points, allowed)
    )


def _with_tuples(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point of a journal, which has lists where a Recipe has tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in point.items()}


def _as_file_name(label: str) -> str:
    """A label that can stand in a file name: ``64 × 128`` as ``64-128``."""
    return re.sub(r"[^A-Za-z0-9.+]+", "-", label).strip("-")
