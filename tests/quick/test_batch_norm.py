"""The batch-normalised twin of a normaliser-free network, and what is measured on both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.batch_norm import accuracy, dependence, kept_bytes, step_seconds
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.catalogue import count_parameters
from nfnet_ray.models.layers import BatchNormConv2d, ScaledWSConv2d
from nfnet_ray.optim.optimizer import decayed_names
from nfnet_ray.recipe import OptimizerRecipe
from nfnet_ray.study.cost.plan import check_trials
from studies.batch_norm import batch_norm

DIGITS = DatasetSummary(Path("digits"), 1437, 360, tuple("0123456789"), "0", (32, 32))
TWIN = {"batch_norm": True, "skip_gain": False}


@pytest.fixture(scope="module")
def models() -> Mapping[str, nn.Module]:
    """Without skip gains, which start at 0, so that every branch counts."""
    torch.manual_seed(0)
    overrides = {"free": {"skip_gain": False}, "twin": TWIN}
    return {name: create_model("nfnet_pico", 10, overrides=changed) for name, changed in overrides.items()}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_twin_has_the_same_layers_and_parameters(models: Mapping[str, nn.Module]) -> None:
    convolutions = {
        name: [
            type(layer) for layer in model.modules() if isinstance(layer, ScaledWSConv2d | BatchNormConv2d)
        ]
        for name, model in models.items()
    }
    assert set(convolutions["free"]) == {ScaledWSConv2d}
    assert set(convolutions["twin"]) == {BatchNormConv2d}
    assert len(convolutions["free"]) == len(convolutions["twin"])
    learnable = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert learnable["free"] == learnable["twin"]
    assert count_parameters("nfnet_pico", 10, {"batch_norm": True}) == count_parameters("nfnet_pico", 10)


def test_its_convolutions_give_each_channel_the_batchs_mean_and_variance() -> None:
    torch.manual_seed(0)
    layer = BatchNormConv2d(6, 8, 3, stride=2, groups=2, input_scale=1.7)
    out = layer(3 + 2 * torch.randn(16, 6, 9, 9))
    assert out.shape == (16, 8, 5, 5)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3), correction=0), torch.ones(8), atol=1e-3, rtol=0)


def test_what_normalises_is_not_decayed(models: Mapping[str, nn.Module]) -> None:
    assert not [name for name in decayed_names(models["twin"], OptimizerRecipe()) if ".norm." in name]


def test_the_faults_are_those_of_batch_normalisation_alone(
    models: Mapping[str, nn.Module], images: torch.Tensor
) -> None:
    labels = torch.arange(32) % 10
    assert dependence(models["free"], images) == 0
    assert dependence(models["twin"], images) > 0.01
    assert accuracy(models["free"], images, labels, 8) == accuracy(models["free"], images, labels, None)
    assert kept_bytes(models["twin"], images) > 1.1 * kept_bytes(models["free"], images)
    assert set(step_seconds(models, images[:2], labels[:2])) == {"free", "twin"}


def test_both_networks_are_trained_at_each_batch_size() -> None:
    trials = batch_norm(DIGITS).trials()
    clipping = [
        (trial.recipe.model.overrides.batch_norm, trial.recipe.optimizer.agc.clip_factor is None)
        for trial in trials
    ]
    assert clipping == [(False, False), (True, True)] * 4
    assert [trial.recipe.batch_size for trial in trials] == [2, 2, 4, 4, 8, 8, 64, 64]
    check_trials(trials, DIGITS, workers=1)
    one = trials[1].recipe.with_values({"batch_size": 1})
    with pytest.raises(UserError, match="gives a pass a single image"):
        check_trials([type(trials[1])(**{**vars(trials[1]), "recipe": one})], DIGITS, workers=1)
