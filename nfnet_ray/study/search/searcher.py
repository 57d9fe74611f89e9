"""Defines the searchers, which draw the points known at a study's start and propose further ones from results."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.splitmix64 import GOLDEN, mixed
from nfnet_ray.study.search.axes import point_key
from nfnet_ray.study.search.model import (
    all_numbers,
    asked_points,
    is_learned_from,
    startup_points,
    told_study,
)
from nfnet_ray.study.search.result import Result
from nfnet_ray.study.search.spread import random_points, sobol_points
from nfnet_ray.study.space import (
    Domain,
    Point,
    Range,
    SameAs,
    Space,
    When,
    domain_to_json,
    grid,
    has_range,
    unconditional,
)

SEARCHES: Final = {
    "grid": "every combination of the listed values",
    "sobol": "evenly spread points",
    "random": "independent points",
    "tpe": "points proposed by Optuna's TPE from the results so far",
    "gp": "points proposed by Optuna's Gaussian process from the results so far, for numbers alone",
}
"""{name: description of the points that the search tries}."""
ADAPTIVE: Final = ("tpe", "gp")
"""The searches whose later points depend on the results of earlier ones."""
_DRAWS: Final = {"sobol": sobol_points, "random": random_points}
"""The functions that draw points without results. An adaptive search begins with Sobol's points; the grid draws
none."""
DEFAULT_SETTINGS: Final = 16
"""The number of settings of a study with a range: a power of two, for which Sobol's points are spread most evenly."""
# A space counts as exhausted when this number of consecutive draws brought no new point.
_DRAWS_WITHOUT_A_NEW_POINT = 1024


@dataclass(frozen=True)
class Searcher:
    """Finds the points of a study. Equal searchers find equal points, in any process and at any time.

    Attributes:
        name: one of :data:`SEARCHES`.
        space: the space that is searched.
        recipe: the study's Recipe, which has the values of the fields that are not swept.
        first_points: points of the space that come before all others; not used by a grid.
    """

    name: str
    space: Space
    recipe: Recipe
    first_points: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_search(self.name, self.space)

    @property
    def is_adaptive(self) -> bool:
        """Whether the searcher's points depend on results."""
        return self.name in ADAPTIVE

    @property
    def key(self) -> int:
        """A 64-bit number that seeds all draws: a hash of the space and of the Recipe's seed.

        Two studies of one space, e.g. on two data sets, therefore try the same points. With another seed they do not.
        """
        space = {name: domain_to_json(self.space[name]) for name in sorted(self.space)}
        text = json.dumps([space, self.recipe.seed], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])

    def planned(self, number: int, known: Sequence[Mapping[str, Any]] = ()) -> list[Point]:
        """Returns the first ``number`` points that need no results; fewer if the space has no more points.

        With an adaptive searcher these are the points with which it begins. The ``known`` points come first. If the
        searcher has drawn them itself, the points that follow continue its sequence.
        """
        if self.name == "grid":
            return list(itertools.islice(grid(self.space, self.recipe), number))
        points = {point_key(point): dict(point) for point in (*known, *self.first_points)}
        drawn = self._drawn()
        while len(points) < number:
            draws = len(known) + _DRAWS_WITHOUT_A_NEW_POINT
            point = _first_new(itertools.islice(drawn, draws), points)
            if point is None:
                break
            points[point_key(point)] = point
        return list(points.values())[:number]

    def propose(self, results: Sequence[Result], lag: int) -> Point | None:
        """Returns the point that follows those of ``results``; None if the space has no other point.

        Proposal number j, counted from 0, follows j results. It uses the results up to number j - ``lag``, and only the
        points of the later ones, so it makes no difference which of the later trials have ended. The proposal depends
        on nothing else except j and the searcher itself.
        """
        number = len(results)
        if not self.is_adaptive or number < len(self.first_points):
            planned = self.planned(number + 1)
            return planned[number] if number < len(planned) else None
        told, earlier = visible(results, lag), {point_key(result.point) for result in results}
        if sum(is_learned_from(self.name, result) for result in told) >= startup_points(self.space):
            seed = mixed(self.key + (number + 1) * GOLDEN) % (1 << 32)
            study = told_study(self.space, self.recipe, self.name, seed, told)
            point = _first_new(asked_points(self.space, self.recipe, study), earlier)
            if point is not None:
                return point
        # With too few results for a model, or if the model proposed nothing new, the next one of Sobol's points is
        # used.
        return _first_new(itertools.islice(self._drawn(), number + _DRAWS_WITHOUT_A_NEW_POINT), earlier)

    def _drawn(self) -> Iterator[Point]:
        draw = _DRAWS["sobol" if self.is_adaptive else self.name]
        return draw(self.space, self.recipe, self.key)


def default_search(space: Space) -> str:
    """Returns ``grid`` if all domains are lists, and ``sobol`` if there is a range."""
    return "sobol" if has_range(space) else "grid"


def check_search(name: str, space: Space) -> None:
    """Raises UserError if there is no searcher of this name, or if it cannot search this space."""
    if name not in SEARCHES:
        raise UserError(f"--search {name} is not known: use one of {', '.join(SEARCHES)}")
    for field, domain in space.items():
        if name == "grid" and isinstance(unconditional(domain), Range):
            raise UserError(
                f"--search grid tries every value, and {field} has a range: list its values, or use --search sobol"
            )
        if name == "gp" and not _is_numeric(domain):
            raise UserError(
                f"--search gp takes only numbers, and {field} is not a number everywhere: use --search tpe"
            )


def visible(results: Sequence[Result], lag: int) -> list[Result]:
    """Returns the results that the proposal after ``results`` may use: only points for the last ``lag`` - 1 settings.

    >>> visible([Result({"a": 1}, "finished", {8: 0.5}), Result({"a": 2}, "finished", {8: 0.6})], lag=2)
    [Result(point={'a': 1}, state='finished', values={8: 0.5}), Result(point={'a': 2}, state='running', values={})]
    """
    known = max(0, len(results) - lag + 1)
    return [*results[:known], *(Result(result.point) for result in results[known:])]


def _first_new(points: Iterator[Point], earlier: Container[str]) -> Point | None:
    return next((point for point in points if point_key(point) not in earlier), None)


def _is_numeric(domain: Domain) -> bool:
    if isinstance(domain, SameAs):
        return True
    if isinstance(domain, When):
        return False
    return not domain.or_none if isinstance(domain, Range) else len(domain) == 1 or all_numbers(domain)
