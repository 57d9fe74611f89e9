"""Applies ``--set`` and ``--sweep`` to the space of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.space.checks import check_space
from nfnet_ray.study.space.conditions import why_never
from nfnet_ray.study.space.domains import Domain, SameAs, Space, unconditional, with_listed
from nfnet_ray.tracking.labels import short_names


def asked_space(space: Space, recipe: Recipe, settings: Mapping[str, Any], sweep: Space) -> dict[str, Domain]:
    """Returns ``space`` with the domains of ``sweep`` in place of its own or as its last fields, and set fields fixed.

    Args:
        recipe: the Recipe with the set values.
        settings: {dotted name: value} of ``--set``.
        sweep: {dotted name: domain} of ``--sweep``.

    Raises UserError for a field that is both set and swept, and for a sweep whose condition never holds.
    """
    both = [name for name in sweep if name in settings]
    if both:
        raise UserError(f"{both[0]} is both set and swept: give either --set or --sweep")
    values = recipe.to_values()
    asked = {
        name: with_listed(domain, (values[name],)) if name in settings else domain
        for name, domain in {**space, **sweep}.items()
    }
    check_space(asked)
    for name in sweep:
        if why := why_never(asked, recipe, name):
            raise UserError(f"--sweep {name}: {why}")
    return asked


def asked_points(
    points: Sequence[Mapping[str, Any]], recipe: Recipe, settings: Mapping[str, Any], sweep: Space
) -> tuple[Mapping[str, Any], ...]:
    """Returns a plain list of points with the set fields fixed and duplicates removed.

    Raises UserError if a field is to be swept.
    """
    if sweep:
        raise UserError(
            f"--sweep {next(iter(sweep))}: this study has a plain list of points and sweeps no field; "
            "studies/sweep.py sweeps any field"
        )
    values = recipe.to_values()
    fixed = [
        {name: values[name] if name in settings else value for name, value in point.items()}
        for point in points
    ]
    trainings: dict[str, Mapping[str, Any]] = {}
    for point in fixed:
        trainings.setdefault(repr(sorted((values | point).items())), point)
    return tuple(trainings.values())


def question_of(space: Space) -> str:
    """Returns a question for fields that were chosen on the command line.

    >>> question_of({"optimizer.agc.clip_factor": (0.01, 0.02), "batch_size": (64, 256)})
    'Which clip_factor is best, and how does that depend on batch_size?'
    """
    fields = [name for name, domain in space.items() if not isinstance(unconditional(domain), SameAs)]
    names = short_names(fields)
    first, *others = (names[name] for name in fields)
    depends = f", and how does that depend on {' and '.join(others)}" if others else ""
    return f"Which {first} is best{depends}?"
