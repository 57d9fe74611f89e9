"""SGD over a few tensors at a time ends with the bits of torch's own SGD, weights and momentum. Takes a second."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from nfnet_ray.optim import create_optimizer, optimizer
from nfnet_ray.recipe import Recipe

SHAPES = [(7, 5, 3, 3), (7,), (300, 40), (1, 13), (), (2, 2)]


class Network(nn.Module):
    """Weights and biases by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        torch.manual_seed(0)
        for number, shape in enumerate(SHAPES):
            layer = nn.Module()
            setattr(layer, "bias" if number % 2 else "weight", nn.Parameter(torch.randn(shape)))
            self.layers.append(layer)


def fill_gradients(network: nn.Module, step: int) -> None:
    """One of them has none in the first step."""
    torch.manual_seed(step)
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = None if (number, step) == (2, 0) else torch.randn_like(parameter)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("values_of_a_part", [1, 400, 1 << 16])
def test_weights_and_momentum_are_those_of_torch(
    momentum: float, nesterov: bool, values_of_a_part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "VALUES_OF_A_PART", values_of_a_part)
    recipe = Recipe().with_values(
        {
            "optimizer.momentum": momentum,
            "optimizer.nesterov": nesterov,
            "optimizer.weight_decay": 0.01,
        }
    )
    own, torchs = Network(), Network()
    ours = create_optimizer(own, recipe.optimizer)
    names = [name for name, _ in torchs.named_parameters()]
    parameters = dict(torchs.named_parameters())
    theirs = SGD(
        [
            {"params": [parameters[n] for n in names if n.endswith("weight")], "weight_decay": 0.01},
            {"params": [parameters[n] for n in names if n.endswith("bias")], "weight_decay": 0.0},
        ],
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
    )
    for step in range(4):
        for network, used in ((own, ours), (torchs, theirs)):
            fill_gradients(network, step)
            for group in used.param_groups:
                group["lr"] = 0.1 / (1 + step)
            used.step()
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), torchs.parameters(), strict=True))
    saved, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert saved.keys() == expected.keys()
    for number, state in expected.items():
        for name, value in state.items():
            assert value is None or torch.equal(saved[number][name], value)
