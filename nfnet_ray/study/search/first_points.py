"""Determines the points with which a search begins: the Recipe's own, then the best ones of an earlier study.

Only points are taken over, and no results, even if data and Recipe are the same: all results of a study are in its own
journal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.models.published import with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.search.axes import chosen_point, point_key
from nfnet_ray.study.search.result import Result, result_of
from nfnet_ray.study.space import Point, Range, SameAs, Space, all_values, unconditional
from nfnet_ray.tracking.labels import point_label, short_names
from nfnet_ray.tracking.state import StudyState

# The largest share of a study's settings that comes from an earlier study. Most settings should be new.
EARLIER_SHARE = 1 / 4


def point_within(space: Space, recipe: Recipe, values: Mapping[str, Any]) -> Point | None:
    """Returns the point of the space whose fields have the given ``values``; None if it does not lie in the space.

    Args:
        recipe: the Recipe of the study that is searched.
        values: {dotted name: value} of all fields of a Recipe.
    """
    point = chosen_point(space, recipe, lambda name, _domain: values[name])
    everywhere = all_values(space, recipe, point)
    for name, value in everywhere.items():
        domain = unconditional(space[name])
        if value != values[name] or not (isinstance(domain, SameAs) or _contains(domain, value)):
            return None
    return point


def first_points(
    space: Space, recipe: Recipe, earlier: Sequence[Mapping[str, Any]] = ()
) -> tuple[Point, ...]:
    """Returns the Recipe's own point, if it lies in the space, then the points of ``earlier``, without duplicates.

    A field that the Recipe leaves to the model, such as dropout, has the model's published value.
    """
    own = point_within(space, recipe, recipe.to_values())
    own = own or point_within(space, recipe, with_published_values(recipe).to_values())
    points = {point_key(point): dict(point) for point in ([own] if own else []) + list(earlier)}
    return tuple(points.values())


def check_first_points(space: Space, recipe: Recipe, points: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError if one of the points does not lie in the space."""
    for point in points:
        values = {**recipe.to_values(), **point}
        within = point_within(space, recipe, {**values, **all_values(space, recipe, point)})
        if within is None or point_key(within) != point_key(point):
            words = point_label(point, short_names(point))
            raise UserError(
                f"first_points: {words} does not lie in the space; leave it out, or widen the space"
            )


def best_points(space: Space, recipe: Recipe, settings: int, earlier: StudyState) -> tuple[Point, ...]:
    """Returns the points of the best settings of an earlier study that lie in the space, the best first.

    At most a quarter of the study's ``settings`` are taken over. Fields that the earlier study did not sweep have the
    value of that study's Recipe.
    """
    points: dict[str, Point] = {}
    for values in best_values(earlier):
        point = point_within(space, recipe, values)
        if point is not None:
            points.setdefault(point_key(point), point)
    return tuple(points.values())[: math.ceil(settings * EARLIER_SHARE)]


def best_values(state: StudyState) -> list[dict[str, Any]]:
    """Returns {dotted name: value} of all fields for each setting of a study that has usable results, the best first.

    Finished settings come before those that were given up. Among the latter, those that trained furthest come first.
    """
    assert state.started is not None
    base = state.started["study"]["recipe"]
    settings: dict[str, list[str]] = {}
    outside = state.outside
    for name, plan in state.plans.items():
        if name in outside:
            continue
        settings.setdefault(point_key(plan["point"]), []).append(name)
    ranked: list[tuple[tuple[bool, int, float], dict[str, Any]]] = []
    for names in settings.values():
        plan = state.plans[names[0]]
        result = result_of(plan["point"], [state.trials[name] for name in names])
        if result.state in ("finished", "given up") and result.values:
            # Converted by a Recipe, because a journal has lists where a Recipe has tuples.
            values = Recipe.from_values({**base, **plan["recipe"], **plan["point"]}).to_values()
            ranked.append((_merit(result), values))
    ranked.sort(key=lambda entry: entry[0], reverse=True)
    return [values for _, values in ranked]


def _merit(result: Result) -> tuple[bool, int, float]:
    last = max(result.values)
    return result.state == "finished", last, result.values[last]


def _contains(domain: tuple[Any, ...] | Range, value: Any) -> bool:
    if isinstance(domain, tuple):
        return value in domain
    if value is None:
        return domain.or_none
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return domain.low <= value <= domain.high and (not domain.integer or float(value).is_integer())
