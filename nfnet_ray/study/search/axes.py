"""Maps the free fields of a space to axes from 0 to 1, so that each place in the unit cube is a point of the space.

A field that is tied to another one, or that has a single value, has no axis. A conditional field has an axis, too;
where the field does not exist, its coordinate is not used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from nfnet_ray.recipe import Recipe
from nfnet_ray.study.space import Point, Range, SameAs, Space, build_point, unconditional

# The share of draws in which a range with ``or_none`` is none. One of six, as in the paper's ablation of clip factors
# (Brock et al. 2021, section 4.1), which compares five factors and no clipping.
NONE_SHARE = 1 / 6

Chooser = Callable[[str, tuple[Any, ...] | Range], Any]
"""A function ``choose(field, its values or range)`` that returns the field's value."""


def axis_names(space: Space) -> list[str]:
    """Returns the fields that are free to vary, in alphabetical order."""
    return sorted(name for name, domain in space.items() if _is_free(unconditional(domain)))


def point_key(point: Mapping[str, Any]) -> str:
    """Returns a text that is the same for equal points, even after a round trip through a journal or a table."""
    return value_key({name: point[name] for name in sorted(point)})


def value_key(value: Any) -> str:
    """Returns a text that is the same for equal values of a field: 0 and 0.0, or a list and a tuple.

    >>> value_key((0.0, 0.5)) == value_key([0, 0.5]), value_key(True) == value_key(1)
    (True, False)
    """
    return json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def chosen_point(space: Space, recipe: Recipe, choose: Chooser) -> Point:
    """Returns the point whose free fields have the values that ``choose`` returns.

    A field is chosen after the fields that decide whether it exists, otherwise in alphabetical order. The order of the
    fields in the space therefore changes no proposal, only the order in which a point lists its fields.
    """
    alphabetical = {name: space[name] for name in sorted(space)}

    def choose_or_take(name: str, domain: tuple[Any, ...] | Range) -> Any:
        return choose(name, domain) if _is_free(domain) else domain[0]  # pyrefly: ignore[bad-index]

    point = build_point(alphabetical, recipe, choose_or_take)
    return {name: point[name] for name in space if name in point}


def point_at(space: Space, recipe: Recipe, place: Mapping[str, float]) -> Point:
    """Returns the point at a place of the unit cube, {axis: number from 0 to below 1}."""
    return chosen_point(space, recipe, lambda name, domain: _value_at(domain, place[name]))


def _is_free(domain: tuple[Any, ...] | Range | SameAs) -> bool:
    return not isinstance(domain, SameAs) and not (isinstance(domain, tuple) and len(domain) == 1)


def _value_at(domain: tuple[Any, ...] | Range, number: float) -> Any:
    if isinstance(domain, tuple):
        return domain[int(number * len(domain))]
    if domain.or_none:
        if number < NONE_SHARE:
            return None
        number = (number - NONE_SHARE) / (1 - NONE_SHARE)
    # Each whole number gets the interval from half below it to half above it.
    margin = 0.5 if domain.integer else 0.0
    return domain.rounded(_between(domain.low - margin, domain.high + margin, number, domain.log))


def _between(low: float, high: float, number: float, log: bool) -> float:
    if log:
        return math.exp(math.log(low) + number * (math.log(high) - math.log(low)))
    return low + number * (high - low)
