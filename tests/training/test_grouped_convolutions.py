"""Grouped convolutions in slices are the same mathematics, and a slice is a dense convolution."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nfnet_ray.cohorts import why_alone
from nfnet_ray.models.grouped_convolution import SLICED_PASSES
from nfnet_ray.models.layers import BatchNormConv2d, ScaledWSConv2d, slice_grouped_convolutions
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
from nfnet_ray.training.form.compilation import compiled

SLICINGS = [how for how in SLICED_PASSES if how != "whole"]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Passes(TorchDispatchMode):
    """Notes {pass: the numbers of groups with which it is computed} while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, set[int]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::convolution":
            self.groups["forward"].add(args[8])
        if func._schema.name == "aten::convolution_backward":
            for name, is_wanted in zip(("input_gradient", "weight_gradient"), args[10], strict=False):
                if is_wanted:
                    self.groups[name].add(args[9])
        return func(*args, **(kwargs or {}))


def two_convolutions() -> nn.Sequential:
    """Of stride 1 with weight standardisation, and of stride 2, whose padding is uneven, with normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(
        ScaledWSConv2d(8, 12, 3, groups=4, input_scale=1.7), BatchNormConv2d(12, 6, 3, stride=2, groups=2)
    )


def results(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What it gives for ``x``, and the gradients of a weighted sum of that."""
    x = x.detach().requires_grad_()
    y = network(x)
    network.zero_grad()
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    of_parameters = {name: parameter.grad for name, parameter in network.named_parameters()}
    found = {"y": y.detach(), "x": x.grad, **of_parameters}
    return {name: tensor.clone() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", SLICED_PASSES)
def test_slices_are_dense_convolutions_with_the_same_result(how: str, layout: str) -> None:
    x = torch.randn(5, 8, 6, 6, dtype=torch.float64).to(memory_format=LAYOUTS[layout])
    network = two_convolutions().double().to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    whole = results(network, x)
    slice_grouped_convolutions(network, how)
    with Passes() as seen:
        found = results(network, x)
    sliced = SLICED_PASSES[how]
    assert seen.groups == {
        name: {1} if name in sliced else {2, 4} for name in ("forward", "input_gradient", "weight_gradient")
    }
    assert found.keys() == whole.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-13)
        assert found[name].stride() == expected.stride(), name


@pytest.mark.parametrize("how", SLICINGS)
def test_slices_have_the_types_of_autocast(how: str) -> None:
    """What is convolved is bfloat16, and the gradients of weights are float32."""
    x, network = torch.randn(5, 8, 6, 6), two_convolutions()
    found = []
    for slicing in ("whole", how):
        slice_grouped_convolutions(network, slicing)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(results(network, x))
    whole, sliced = found
    for name, expected in whole.items():
        assert sliced[name].dtype == expected.dtype, name
        error = (sliced[name] - expected).double().norm() / expected.double().norm()
        assert error < 2**-7, name  # a few units of bfloat16's last place


def test_frozen_weights_and_images_get_no_gradient() -> None:
    network = two_convolutions()
    slice_grouped_convolutions(network, "sliced_gradients")
    network.requires_grad_(requires_grad=False)
    network[1].weight.requires_grad_()
    with Passes() as seen:
        network(torch.randn(2, 8, 6, 6)).sum().backward()
    assert seen.groups == {"forward": {2, 4}, "weight_gradient": {1}}
    assert network[0].weight.grad is None


@pytest.mark.parametrize("how", SLICINGS)
def test_a_compiled_network_is_sliced_as_well(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfnet_ray.training.form.compilation.backend_of", lambda _recipe: "aot_eager")
    x, network = torch.randn(5, 8, 6, 6, dtype=torch.float64), two_convolutions().double()
    whole = results(network, x)
    slice_grouped_convolutions(network, how)
    with Passes() as seen:
        found = results(compiled(network, Recipe(compile=True)), x)
    assert {name for name, groups in seen.groups.items() if groups == {1}} == SLICED_PASSES[how]
    for name, expected in whole.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}" if "." in name else name], expected)


class Telling(PlainContext):
    """Keeps what the run says of itself."""

    def report(self, metrics: Any, texts: Mapping[str, str]) -> None:
        del metrics
        self.texts = dict(texts)


def test_a_training_in_slices_is_the_same_mathematics(quick: Recipe) -> None:
    """Over steps with SAM, AGC and an average, and its journal says how groups were convolved."""
    recipe = quick.with_values(
        {
            "precision": "float64",
            "memory_format": "channels_last",
            "schedule.epochs": 1,
            "optimizer.sam.rho": 0.05,
            "model.overrides.group_width": [2, 2, 4, 4],
            "data.train_share": 0.5,
        }
    )
    outcomes = []
    for how in ("whole", "sliced"):
        context = Telling(device=torch.device("cpu"), threads=1)
        with Passes() as seen:
            outcomes.append(train(recipe.with_values({"grouped_convolutions": how}), context))
        assert (max(seen.groups["weight_gradient"]) > 1) == (how == "whole")
        assert json.loads(context.texts["conditions"])["grouped_convolutions"] == how
    whole, sliced = (outcome.model.state_dict() for outcome in outcomes)
    for name, weight in whole.items():
        torch.testing.assert_close(sliced[name], weight, rtol=1e-9, atol=1e-11)


def test_a_cohort_has_whole_convolutions() -> None:
    assert why_alone(Recipe(grouped_convolutions="auto")) is None
    assert "those of a cohort are whole" in str(why_alone(Recipe(grouped_convolutions="sliced")))
