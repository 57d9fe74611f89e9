"""The moving average of a step after which no module is walked through again is the one of all tensors, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nfnet_ray.optim import ExponentialMovingAverage
from nfnet_ray.recipe import EMARecipe

SHARE = 0.125


def new_network() -> nn.Module:
    """With parameters, statistics and a counter."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def change(network: nn.Module) -> None:
    for tensor in network.state_dict().values():
        tensor.add_(torch.ones_like(tensor))


@pytest.mark.parametrize("moves", [False, True])
def test_every_tensor_is_averaged_and_counters_are_copied(*, moves: bool) -> None:
    """Also if a tensor moves in memory, as a network that goes into a cohort does."""
    network = new_network()
    average = ExponentialMovingAverage(network, EMARecipe())
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(3):
        change(network)
        average.take(network, SHARE)
        for name, tensor in network.state_dict().items():
            mean = expected[name]
            expected[name] = torch.lerp(mean, tensor, SHARE) if mean.is_floating_point() else tensor.clone()
        found = average.state_dict()
        assert all(torch.equal(found[name], mean) for name, mean in expected.items())
        if moves:
            for parameter in network.parameters():
                parameter.data = parameter.data.clone()


def test_another_network_can_be_averaged_into_it() -> None:
    average, other = ExponentialMovingAverage(new_network(), EMARecipe()), new_network()
    average.take(other, 1.0)
    assert all(torch.equal(average.state_dict()[name], tensor) for name, tensor in other.state_dict().items())
