"""The unchanged network over lanes: each lane has its own weights and drop rates, and all see the same images."""

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

    ``models`` are the lanes' networks, alike but for their drop rates; they are read here, and not kept.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._template = _that_drops_as_any_of([cast(NFNet, model) for model in models])
        weight = self._template.classifier.weight
        rates = [cast(NFNet, model).drop_rates() for model in models]
        self._drop_rates = torch.tensor(rates, dtype=weight.dtype, device=weight.device)

    def train(self) -> None:
        """Training mode, but for what is frozen."""
        set_training_mode(self._template)

    def eval(self) -> None:
        """Evaluation mode."""
        self._template.eval()

    def __call__(self, weights: Mapping[str, Tensor], x_NCHW: Tensor, keys_N: Tensor | None = None) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (L, N, num_classes).

        ``weights`` are {name of a parameter: its values in each lane, (L, ...)}. ``keys_N`` are those of
        :meth:`NFNet.forward`: the samples are the same in all lanes, and so are the numbers that are drawn for them.
        """

        def lane(weights: Mapping[str, Tensor], drop_rates: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._template, dict(weights), (x_NCHW, keys_N, drop_rates))
            return logits

        # In evaluation no rate is looked at, and there may be fewer lanes: not all have a moving average.
        rates = self._drop_rates
        if not self._template.training:
            rates = rates[: len(next(iter(weights.values())))]
        logits_LNK: Tensor = vmap(lane, randomness="error")(dict(weights), rates)
        return logits_LNK


def _that_drops_as_any_of(models: Sequence[NFNet]) -> NFNet:
    """A copy of the first network that drops wherever one of the networks does: elsewhere rates are not looked at."""
    template = copy.deepcopy(models[0])
    template.drops_branches = any(model.drops_branches for model in models)
    for name, layer in template.named_modules():
        if isinstance(layer, (StochasticDepth, Dropout)):
            layer.drops = any(
                cast(StochasticDepth | Dropout, model.get_submodule(name)).drops for model in models
            )
    return template
