"""The moving average of the weights against numbers of the official implementation (tests/fixtures/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nfnet_ray.optim.ema import ExponentialMovingAverage, ema_decay
from nfnet_ray.recipe import EMARecipe

OPTIM = np.load(Path(__file__).parents[1] / "fixtures" / "optim.npz")


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(OPTIM["p0"].copy()))


def test_the_decay_is_the_official_one() -> None:
    decays = [ema_decay(int(step), 0.99999) for step in OPTIM["ema/steps"]]
    np.testing.assert_allclose(decays, OPTIM["ema/decays"], rtol=1e-6)
    assert ema_decay(0, 0.99999) == 0.1
    assert ema_decay(899_989, 0.99999) < 0.99999 == ema_decay(899_990, 0.99999)
    assert ema_decay(0, 0.9, warmup=False) == 0.9


def test_the_average_walks_the_official_way() -> None:
    model = OneWeight()
    average = ExponentialMovingAverage(model, EMARecipe())
    for step, gradient in enumerate(OPTIM["grads"]):
        model.weight.data -= 0.1 * torch.from_numpy(gradient)
        average.update(model, step)
        held = average.state_dict()["weight"].numpy()
        np.testing.assert_allclose(held, OPTIM["ema/track"][step], rtol=1e-6, atol=1e-6)


def test_statistics_are_averaged_and_counters_copied() -> None:
    model = nn.BatchNorm1d(2)
    average = ExponentialMovingAverage(model, EMARecipe(decay=0.75, warmup=False))
    model.running_mean = torch.tensor([4.0, 8.0])
    model.num_batches_tracked = torch.tensor(7)
    average.update(model, step=0)
    assert average.state_dict()["running_mean"].tolist() == [1.0, 2.0]
    assert average.state_dict()["num_batches_tracked"] == 7


def test_the_average_is_a_network_of_its_own() -> None:
    model = OneWeight()
    average = ExponentialMovingAverage(model, EMARecipe())
    model.weight.data.zero_()
    assert average.model.weight.abs().max() > 0
    assert not average.model.weight.requires_grad
    with pytest.raises(ValueError, match="no average"):
        ExponentialMovingAverage(model, EMARecipe(decay=None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_that_would_stand_still_is_refused(dtype: torch.dtype) -> None:
    """In bfloat16 it had moved by 0.004 after 1,000 steps at 0.9999, and not by 0.095."""
    model = nn.Linear(2, 2).to(dtype)
    with pytest.raises(ValueError, match=f"weight is {dtype}.*keep the weights in float32"):
        ExponentialMovingAverage(model, EMARecipe())
    ExponentialMovingAverage(model.requires_grad_(False), EMARecipe())  # nothing in it changes


class Wrapper(nn.Module):
    """As torch.compile and DistributedDataParallel make them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = network


def test_the_network_may_be_wrapped_after_the_average_is_made() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = ExponentialMovingAverage(network, EMARecipe())
    for tensor in network.state_dict().values():
        tensor.add_(torch.ones_like(tensor))
    average.take(Wrapper(network), 1.0)
    found = average.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("other", [nn.Linear(2, 2, bias=False), nn.Linear(1, 2)])
def test_a_network_with_other_parameters_is_refused(other: nn.Module) -> None:
    average = ExponentialMovingAverage(nn.Linear(2, 2), EMARecipe())
    with pytest.raises(ValueError, match="other parameters or buffers"):
        average.update(other, step=0)
