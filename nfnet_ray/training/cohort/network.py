"""The unchanged network over lanes: each lane has its own weights and drop rates, and all see the same images."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nfnet_ray.models.layers import Dropout, StochasticDepth
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.weights.pretrained import set_training_mode
from nfnet_ray.recipe import ResolvedModel


class LaneNetwork:
    """A network of the lanes' architecture, called with the weights of all lanes.

    ``models`` are the lanes' networks, alike but for their drop rates; they are read here, and not kept.
    """

    def __init__(self, models: Sequence[nn.Module], recipes: Sequence[ResolvedModel]) -> None:
        self._template = copy.deepcopy(cast(NFNet, models[0]))
        self._template.variant = dataclasses.replace(
            self._template.variant,
            dropout=max(recipe.dropout for recipe in recipes),
            stochastic_depth=max(recipe.stochastic_depth for recipe in recipes),
        )
        self._rates = _with_rates_of_lanes(self._template, models)

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

        def lane(weights: Mapping[str, Tensor], rates: Mapping[str, Tensor]) -> Tensor:
            logits: Tensor = functional_call(self._template, {**weights, **rates}, (x_NCHW, keys_N))
            return logits

        logits_LNK: Tensor = vmap(lane, randomness="error")(dict(weights), self._rates)
        return logits_LNK


class _LaneStochasticDepth(StochasticDepth):
    """Stochastic depth by a rate that is a tensor, as each lane's is within ``vmap``."""

    rate: Tensor

    def __init__(self, largest: float, device: torch.device) -> None:
        super().__init__(largest)
        # As a number is compared with the draws: in their dtype.
        self.register_buffer("rate", torch.tensor(largest, dtype=torch.float32, device=device))

    def forward(self, x: Tensor, uniforms_N: Tensor | None = None) -> Tensor:
        if not self.training or uniforms_N is None:
            return x
        return x * (uniforms_N >= self.rate).view(-1, *[1] * (x.ndim - 1))


class _LaneDropout(Dropout):
    """Dropout by a rate and a scale that are tensors."""

    rate: Tensor
    scale: Tensor

    def __init__(self, largest: float, like: Tensor) -> None:
        super().__init__(largest)
        self.register_buffer("rate", torch.tensor(largest, dtype=torch.float32, device=like.device))
        self.register_buffer("scale", torch.ones((), dtype=like.dtype, device=like.device))

    def forward(self, x_NC: Tensor, uniforms_NC: Tensor | None = None) -> Tensor:
        if not self.training or uniforms_NC is None:
            return x_NC
        return x_NC * (uniforms_NC >= self.rate) * self.scale


def _with_rates_of_lanes(template: NFNet, models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Gives the template layers that drop by tensors; returns {name of a buffer: its value in each lane, (L,)}."""
    weight = template.classifier.weight
    device, rates = weight.device, {}
    for name, layer in list(template.named_modules()):
        layers = [model.get_submodule(name) for model in models]
        if isinstance(layer, StochasticDepth):
            of_lanes = [float(cast(StochasticDepth, one).drop_rate) for one in layers]
            template.set_submodule(name, _LaneStochasticDepth(max(of_lanes), device))
            rates[f"{name}.rate"] = torch.tensor(of_lanes, dtype=torch.float32, device=device)
        elif isinstance(layer, Dropout):
            of_lanes = [float(cast(Dropout, one).p) for one in layers]
            template.set_submodule(name, _LaneDropout(max(of_lanes), weight))
            scales = [1 / (1 - rate) for rate in of_lanes]
            rates[f"{name}.rate"] = torch.tensor(of_lanes, dtype=torch.float32, device=device)
            rates[f"{name}.scale"] = torch.tensor(scales, dtype=weight.dtype, device=device)
    return rates
