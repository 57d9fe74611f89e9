"""Checks the types of a Study's fields and converts lists, NumPy's numbers and the like to plain Python values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nfnet_ray.command_line.python_arguments import (
    a_dict,
    a_list,
    a_number,
    a_text,
    a_whole_number,
    refusal,
)
from nfnet_ray.recipe import Recipe
from nfnet_ray.settings import LARGEST_WHOLE_NUMBER
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.search.searcher import SEARCHES
from nfnet_ray.study.space import in_plain_values

FRESH_SEEDS: Final = 1000
"""The largest number of seeds of a study and of reruns of a winner.

The seeds of reruns begin this number above the Recipe's own seed, so they stay fresh if an extension adds seeds."""


def plain_fields(study: Any) -> dict[str, Any]:
    """Returns {name of a field: its value as a Study stores it}, with lists as tuples and NumPy's numbers as Python's.

    Raises UserError if a field has the wrong type.
    """
    a_text("name", study.name)
    for name, kind, allowed in (
        ("question", str, "a text"),
        ("recipe", Recipe, "a Recipe, such as published_recipe('nfnet_f0')"),
        ("halving", Halving | None, "a Halving, such as Halving(rule='synchronous'), or None"),
        ("search", str | None, f"one of {', '.join(SEARCHES)}, or None"),
    ):
        if not isinstance(getattr(study, name), kind):
            raise refusal(name, getattr(study, name), allowed)
    space = a_dict("space", study.space, "a dict {dotted name of a field: its values}")
    plain: dict[str, Any] = {name: in_plain_values(domain) for name, domain in space.items()}
    kept: dict[str, Any] = {
        "space": plain,
        "confirm": a_whole_number("confirm", study.confirm, 0, FRESH_SEEDS),
    }
    for name, least in (("seeds", 1), ("more_seeds", 0)):
        allowed = "a list of different whole numbers, such as (0, 1, 2)"
        given = a_list(name, getattr(study, name), allowed)
        seeds = tuple(a_whole_number(f"a seed of {name}", seed, 0) for seed in given)
        if len(seeds) < least or len(set(seeds)) < len(seeds):
            raise refusal(name, given, allowed)
        kept[name] = seeds
    if study.trial_limit is not None:
        kept["trial_limit"] = a_whole_number("trial_limit", study.trial_limit, 1, LARGEST_WHOLE_NUMBER)
    if study.equal_within is not None:
        # run() and --equal-within take percentage points.
        allowed = "a fraction above 0 and below 1: 0.005 is half a point"
        kept["equal_within"] = a_number("equal_within", study.equal_within, allowed, above=0, below=1)
    if study.holdout is not None:
        kept["holdout"] = a_number("holdout", study.holdout, "a number above 0 and below 1", above=0, below=1)
    if study.points is not None:
        kept["points"] = _plain_points("points", study.points)
    if study.asked is not None:
        allowed = "a list of dotted names of fields"
        kept["asked"] = tuple(
            a_text("a field of asked", name, allowed) for name in a_list("asked", study.asked, allowed)
        )
    kept["first_points"] = _plain_points("first_points", study.first_points)
    return kept


def _plain_points(name: str, points: Any) -> tuple[dict[str, Any], ...]:
    """Returns points with tuples for lists and Python's numbers for NumPy's.

    Raises UserError if ``points`` is not a list of points.
    """
    allowed = "a list of points, each a dict {dotted name of a field: value}"
    return tuple(
        {field: in_plain_values(value) for field, value in a_dict(f"one of {name}", point, allowed).items()}
        for point in a_list(name, points, allowed)
    )


def with_tuples(point: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a point of a journal with the lists replaced by tuples, which a Recipe has."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in point.items()}
