"""Which Recipes can be trained as one cohort: as the lanes of one program, which share every batch (docs/cohorts.md).

A lane has its own network, optimiser and average. Whatever decides what a batch holds, or the order and the shapes of
the arithmetic, is the same for all lanes: ``seed`` too, from which the order of the images, the augmentation, the masks
of dropout and the initial weights are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe, decisive_values

LANE_FIELDS = (
    "loss.label_smoothing",
    "model.dropout",
    "model.stochastic_depth",
    "optimizer.agc.clip_factor",
    "optimizer.agc.eps",
    "optimizer.ema.decay",
    "optimizer.ema.warmup",
    "optimizer.momentum",
    "optimizer.sam.rho",
    "optimizer.weight_decay",
    "schedule.base_learning_rate",
    "schedule.decay_epochs",
    "schedule.decay_factor",
    "schedule.shape",
    "schedule.warmup_epochs",
)
"""The fields that may differ between the lanes of a cohort."""


def why_alone(recipe: Recipe) -> str | None:
    """Why a Recipe cannot be trained in a cohort; None if it can.

    >>> why_alone(Recipe())
    >>> why_alone(Recipe().with_values({"optimizer.sam.rho": 0.1, "optimizer.sam.method": "esam"}))
    'optimizer.sam.method = esam: of SAM and its relatives cohorts have sam alone'
    """
    sam = recipe.optimizer.sam
    if recipe.model.is_own:
        return f"model.name = {recipe.model.label}: cohorts train the networks of nfnet_ray"
    if not recipe.model.name.startswith("nf") or recipe.model.overrides.batch_norm:
        return f"model.name = {recipe.model.name}: cohorts train networks without normalisation layers"
    if sam.rho is not None and sam.method != "sam":
        return f"optimizer.sam.method = {sam.method}: of SAM and its relatives cohorts have sam alone"
    if recipe.compile:
        return f"compile = {str(recipe.compile).lower()}: the program of a cohort is not compiled"
    if recipe.grouped_convolutions.startswith("sliced"):
        return f"grouped_convolutions = {recipe.grouped_convolutions}: those of a cohort are whole"
    return None


def shared_values(recipe: Recipe) -> dict[str, Any]:
    """{field: value} of all that lanes have in common with this Recipe.

    Whether there is an ascent step of SAM is among it, as ``optimizer.sam.rho``: a second pass cannot be left out for
    some lanes, and the seconds of those would be wrong.
    """
    values = {
        name: value for name, value in decisive_values(recipe.to_values()).items() if name not in LANE_FIELDS
    }
    return {**values, "optimizer.sam.rho": "none" if recipe.optimizer.sam.rho is None else "a number"}


def company_of(recipe: Recipe) -> str | None:
    """The same text for all Recipes that can be lanes of one cohort; None for one that is trained alone."""
    return None if why_alone(recipe) else json.dumps(shared_values(recipe), sort_keys=True)


def check_lanes(recipes: Sequence[Recipe]) -> None:
    """Raises UserError, naming the first field at fault, if Recipes cannot be the lanes of one cohort."""
    for recipe in recipes:
        why = why_alone(recipe)
        if why:
            raise UserError(f"{why}; train it alone")
    shared = [shared_values(recipe) for recipe in recipes]
    for other in shared[1:]:
        differing = _first_difference(shared[0], other)
        if differing:
            raise UserError(
                f"{differing} = {shared[0][differing]} and {other[differing]} cannot be trained in one cohort, whose "
                f"lanes may differ in {', '.join(LANE_FIELDS)}"
            )


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    return next((name for name, value in one.items() if other[name] != value), None)
