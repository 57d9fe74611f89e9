"""Builds the points of a space: which fields are swept where, and the grid of all points."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.space.domains import Domain, Point, Range, SameAs, Space, When, unconditional


def dependence_order(space: Space) -> list[str]:
    """Returns the fields of a space, each after the fields that its conditions and its tie name.

    Raises UserError for fields that depend on each other in a circle.
    """
    order: list[str] = []
    above: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in above:
            circle = " depends on ".join([*above[above.index(name) :], name])
            raise UserError(f"the space is circular: {circle}; leave out one of these conditions")
        above.append(name)
        for other in named_fields(space[name]):
            if other in space:
                visit(other)
        above.pop()
        order.append(name)

    for name in space:
        visit(name)
    return order


def build_point(space: Space, recipe: Recipe, choose: Callable[[str, tuple[Any, ...] | Range], Any]) -> Point:
    """Builds a point of the space. ``choose(name, domain)`` returns the value of each field that is swept there.

    A field is chosen after the fields that decide whether it is swept.
    """
    values = recipe.to_values()
    chosen: Point = {}
    for name in dependence_order(space):
        if not is_swept(space[name], values):
            continue
        domain = unconditional(space[name])
        if isinstance(domain, SameAs):
            values[name] = values[domain.field]
        else:
            values[name] = chosen[name] = choose(name, domain)
    return {name: chosen[name] for name in space if name in chosen}


def all_values(space: Space, recipe: Recipe, point: Mapping[str, Any]) -> Point:
    """Returns ``point`` and the values of the tied fields, from which the Recipe of a trial is built."""
    values, tied = {**recipe.to_values(), **point}, {}
    for name in dependence_order(space):
        domain = unconditional(space[name])
        if isinstance(domain, SameAs) and is_swept(space[name], values):
            values[name] = tied[name] = values[domain.field]
    return {**point, **tied}


def grid(space: Space, recipe: Recipe) -> Iterator[Point]:
    """Yields each point of a space of lists once: all values of the first field, for each combination of the others.

    A range contributes its ends instead of a list of values.
    """
    lists = {name: _listed(unconditional(domain)) for name, domain in space.items()}
    first, *others = lists
    seen = set()
    for *condition, asked in itertools.product(*(lists[name] for name in others), lists[first]):
        values = dict(zip(lists, (asked, *condition), strict=True))
        point = build_point(space, recipe, lambda name, _domain: values[name])  # noqa: B023 (called at once)
        key = repr(point)
        if key not in seen:
            seen.add(key)
            yield point


def count_settings(
    space: Space, points: Sequence[Mapping[str, Any]] | None, recipe: Recipe, most: int
) -> int:
    """Counts the settings of a plain list of points, or else of a space, up to ``most``."""
    return sum(1 for _ in itertools.islice(grid(space, recipe) if points is None else points, most))


def _listed(domain: tuple[Any, ...] | Range | SameAs) -> tuple[Any, ...]:
    if isinstance(domain, Range):
        return domain.ends()
    return (None,) if isinstance(domain, SameAs) else domain


def is_swept(domain: Domain, values: Mapping[str, Any]) -> bool:
    """Whether all conditions of a domain hold for ``values``, which contain every field of the Recipe."""
    while isinstance(domain, When):
        if not domain.holds(values):
            return False
        domain = domain.domain
    return True


def named_fields(domain: Domain) -> Iterator[str]:
    """Yields the fields that a domain's conditions and its tie name."""
    while isinstance(domain, When):
        yield domain.field
        domain = domain.domain
    if isinstance(domain, SameAs):
        yield domain.field
