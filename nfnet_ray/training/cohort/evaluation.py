"""Accuracy of all lanes on the validation images, in one pass over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nfnet_ray.data.batch import Batch
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.cohort.network import LaneNetwork
from nfnet_ray.training.context import Context
from nfnet_ray.training.evaluation import Evaluation, Tally, autocast, pixels_of
from nfnet_ray.training.gradient import DTYPES


@torch.no_grad()
def evaluate_lanes(
    network: LaneNetwork,
    weights: Sequence[Mapping[str, Tensor]],
    batches: Iterable[Batch],
    images: int,
    recipe: Recipe,
    context: Context,
) -> list[list[Evaluation]]:
    """Evaluates several sets of weights, {name: (lanes, ...)} each. Returns, for each set, the evaluation of each lane.

    The evaluations are those that :func:`nfnet_ray.training.evaluation.evaluate` would compute lane by lane, except for
    rounding. Leaves the network in evaluation mode.
    """
    network.eval()
    tallies = [[Tally(images, context) for _ in range(lanes_of(one))] for one in weights]
    for batch in batches:
        pixels = pixels_of(batch, recipe)
        for one, of_lanes in zip(weights, tallies, strict=True):
            with autocast(recipe, context):
                logits_LNK = network(one, pixels).to(DTYPES[recipe.precision])
            for tally, logits in zip(of_lanes, logits_LNK, strict=True):
                tally.add(logits, batch)
    return [[tally.result() for tally in of_lanes] for of_lanes in tallies]


def lanes_of(weights: Mapping[str, Tensor]) -> int:
    """The number of lanes in a set of weights."""
    return len(next(iter(weights.values())))
