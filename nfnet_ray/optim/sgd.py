"""SGD with Nesterov momentum over the two parameter groups of the official recipe."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD

from nfnet_ray.recipe import OptimizerRecipe

UNDECAYED_NAMES = ("gain", "skip_gain", "bias")
"""Last parts of parameter names without weight decay (official ``experiment_nfnets.py``)."""


def decays(name: str) -> bool:
    """Whether weight decay acts on the parameter: on weights, not on gains, skip gains and biases."""
    return name.rsplit(".", 1)[-1] not in UNDECAYED_NAMES


def create_sgd(named_parameters: Iterable[tuple[str, nn.Parameter]], recipe: OptimizerRecipe) -> SGD:
    r"""torch's SGD in two groups, decayed and not; the learning rate is set before each step.

    .. math::  g \leftarrow g + w p, \quad b \leftarrow \mu b + g, \quad
               p \leftarrow p - \eta \, (g + \mu b)

    with weight decay :math:`w`, momentum :math:`\mu` and buffer :math:`b` from 0; without Nesterov the
    last step is :math:`p - \eta b`. Source: official ``optim.py`` (facts of ``experiment_nfnets.py``).
    """
    named = list(named_parameters)
    groups = [
        {"params": [p for n, p in named if decays(n)], "weight_decay": recipe.weight_decay},
        {"params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
    ]
    return SGD(
        groups,
        lr=0.0,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        foreach=True,
    )
