"""Finds conditions that hold nowhere in a space, so that the field that depends on them is never swept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from nfnet_ray.recipe import Recipe
from nfnet_ray.study.space.domains import (
    Domain,
    Range,
    SameAs,
    Space,
    When,
    domain_text,
    unconditional,
    with_listed,
)
from nfnet_ray.study.space.points import all_values, grid, named_fields
from nfnet_ray.tracking.labels import value_label

# The most combinations of the deciding values that are checked. If there are more, the condition is assumed to hold.
_MOST_COMBINATIONS: Final = 4096


def unswept_sentences(space: Space, recipe: Recipe) -> list[str]:
    """Returns a sentence for each field of a space that is swept nowhere and keeps the Recipe's value everywhere."""
    values = recipe.to_values()
    return [
        f"{name} is {value_label(values[name])} in every trial: {why}."
        for name, domain in space.items()
        if unconditional(domain) != (values[name],) and (why := why_never(space, recipe, name))
    ]


def why_never(space: Space, recipe: Recipe, name: str) -> str | None:
    """Says why a field is swept nowhere in the space, and what to do; None if it is swept somewhere."""
    conditions = list(_conditions(space[name]))
    if not conditions or _hold_somewhere(conditions, space, recipe):
        return None
    at_fault = [one for one in conditions if not _hold_somewhere([one], space, recipe)] or conditions
    fields = list(dict.fromkeys(one.field for one in at_fault))
    since = " and ".join(_taken(space, recipe, field) for field in fields)
    return f"its condition never holds, since {since}; set or sweep {' or '.join(fields)} accordingly"


def _conditions(domain: Domain) -> Iterator[When]:
    while isinstance(domain, When):
        yield domain
        domain = domain.domain


def _taken(space: Space, recipe: Recipe, field: str) -> str:
    if field in space:
        domain = space[field]
        verb = "is" if isinstance(domain, tuple) and len(domain) == 1 else "is swept over"
        return f"{field} {verb} {domain_text(domain)}"
    return f"{field} is {value_label(recipe.to_values()[field])}"


def _hold_somewhere(conditions: list[When], space: Space, recipe: Recipe) -> bool:
    """Whether the space has a point at which all of the conditions hold."""
    deciding = _deciding_fields(space, [one.field for one in conditions])
    values = recipe.to_values()
    if not deciding:
        return all(one.holds(values) for one in conditions)
    combinations = list(itertools.islice(grid(deciding, recipe), _MOST_COMBINATIONS))
    return len(combinations) == _MOST_COMBINATIONS or any(
        all(one.holds({**values, **all_values(deciding, recipe, point)}) for one in conditions)
        for point in combinations
    )


def _deciding_fields(space: Space, fields: list[str]) -> Space:
    """Returns the part of a space on which these fields depend, with the decisive values of each range as a list."""
    deciding: dict[str, Domain] = {}
    to_add = list(fields)
    while to_add:
        name = to_add.pop()
        if name in space and name not in deciding:
            domain = space[name]
            if isinstance(range_ := unconditional(domain), Range):
                domain = with_listed(domain, (*range_.ends(), *_named_between(space, name, range_)))
            deciding[name] = domain
            to_add += named_fields(space[name])
    return deciding


def _named_between(space: Space, name: str, range_: Range) -> list[int]:
    """Returns the whole numbers within an integer range that conditions name, on it or on a field tied to it.

    A range that is not of integers takes such a value with probability zero.
    """
    tied = {other for other, domain in space.items() if unconditional(domain) == SameAs(name)}
    named = (
        value
        for domain in space.values()
        for one in _conditions(domain)
        if one.field in {name, *tied}
        for value in one.among or ()
    )
    return [
        value for value in named if range_.integer and value is not None and range_.low < value < range_.high
    ]
