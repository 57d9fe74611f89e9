"""Draws points that need no results: a scrambled Sobol sequence, or random points."""

from __future__ import annotations

from collections.abc import Iterator

from nfnet_ray.recipe import Recipe
from nfnet_ray.splitmix64 import GOLDEN, mixed
from nfnet_ray.study.search.axes import axis_names, point_at
from nfnet_ray.study.space import Point, Space

# Sobol's points are drawn in blocks of a power of two, in which they are spread most evenly.
_BLOCK = 64
# The number of a random number's 64 bits that a float can represent.
_FLOAT_BITS = 53


def sobol_points(space: Space, recipe: Recipe, key: int) -> Iterator[Point]:
    """Yields the points of Sobol's sequence, scrambled by ``key``. Every beginning of the sequence is evenly spread."""
    from scipy.stats import qmc

    names = axis_names(space)
    if not names:
        yield point_at(space, recipe, {})
        return
    sequence = qmc.Sobol(len(names), scramble=True, rng=key)
    while True:
        for row in sequence.random(_BLOCK):
            yield point_at(space, recipe, dict(zip(names, map(float, row), strict=True)))


def random_points(space: Space, recipe: Recipe, key: int) -> Iterator[Point]:
    """Yields points that are drawn independently and uniformly in the space."""
    names, state = axis_names(space), key
    while True:
        place = {}
        for name in names:
            state += GOLDEN
            place[name] = (mixed(state) >> (64 - _FLOAT_BITS)) / (1 << _FLOAT_BITS)
        yield point_at(space, recipe, place)
