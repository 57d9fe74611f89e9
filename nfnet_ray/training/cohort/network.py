"""Runs one network for all lanes. Each lane has its own weights and drop rates, and all lanes see the same images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nfnet_ray.models.layers import Dropout, StochasticDepth
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.weights.pretrained import set_training_mode


class LaneNetwork:
    """A network of the lanes' architecture, called with the weights of all lanes.

    ``models`` are the lanes' networks, which differ only in their weights and drop rates. They are not kept.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._template = _that_drops_as_any_of([cast(NFNet, model) for model in models])
        weight = self._template.classifier.weight
        rates = [cast(NFNet, model).drop_rates() for model in models]
        self._drop_rates = torch.tensor(rates, dtype=weight.dtype, device=weight.device)

    def train(self) -> None:
        """Sets training mode, except for frozen layers."""
        set_training_mode(self._template)

    def eval(self) -> None:
        """Sets evaluation mode."""
        self._template.eval()

    def __call__(self, weights: Mapping[str, Tensor], x_NCHW: Tensor, keys_N: Tensor | None = None) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (L, N, num_classes).

        ``weights`` is {name of a parameter: its values in all lanes, (L, ...)}. ``keys_N`` is that of
        :meth:`NFNet.forward`. Since all lanes have the same samples, they draw the same random numbers.
        """

        def lane(weights: Mapping[str, Tensor], drop_rates: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._template, dict(weights), (x_NCHW, keys_N, drop_rates))
            return logits

        # Drop rates are not read in evaluation, but vmap needs as many of them as there are lanes. There are fewer
        # lanes if the weights are moving averages, which not all lanes have.
        rates = self._drop_rates
        if not self._template.training:
            rates = rates[: len(next(iter(weights.values())))]
        logits_LNK: Tensor = vmap(lane, randomness="error")(dict(weights), rates)
        return logits_LNK


def _that_drops_as_any_of(models: Sequence[NFNet]) -> NFNet:
    """A copy of the first network that has dropout or stochastic depth at each place where one of the networks has."""
    template = copy.deepcopy(models[0])
    template.drops_branches = any(model.drops_branches for model in models)
    for name, layer in template.named_modules():
        if isinstance(layer, (StochasticDepth, Dropout)):
            layer.drops = any(
                cast(StochasticDepth | Dropout, model.get_submodule(name)).drops for model in models
            )
    return template
