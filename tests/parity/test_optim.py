"""The optimiser against numbers of the official implementation (tests/fixtures/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nfnet_ray.optim import clip_gradients_adaptively, create_sgd, unitwise_norm, warmup_cosine
from nfnet_ray.recipe import OptimizerRecipe

FIXTURES = Path(__file__).parents[1] / "fixtures"
AGC = np.load(FIXTURES / "agc.npz")
OPTIM = np.load(FIXTURES / "optim.npz")
SHAPES = [key.removeprefix("param/") for key in AGC.files if key.startswith("param/")]
CLIP_FACTORS = ["0.01", "0.02", "0.04", "0.08", "0.16"]


def to_torch_layout(array: np.ndarray) -> torch.Tensor:
    """HWIO to OIHW, (in, out) to (out, in); the rest as it is."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T
    return torch.from_numpy(np.ascontiguousarray(array))


def parameter(name: str, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Parameter:
    def prepared(section: str) -> torch.Tensor:
        tensor = to_torch_layout(AGC[f"{section}/{name}"])
        return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor

    result = nn.Parameter(prepared("param"))
    result.grad = prepared("grad")
    return result


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("clip_factor", CLIP_FACTORS)
def test_clipped_gradients_are_the_official_ones(
    clip_factor: str, memory_format: torch.memory_format
) -> None:
    parameters = {name: parameter(name, memory_format) for name in SHAPES}
    clip_gradients_adaptively(parameters.values(), clip_factor=float(clip_factor), eps=1e-3)
    for name, clipped in parameters.items():
        expected = to_torch_layout(AGC[f"clipped_{clip_factor}/{name}"])
        torch.testing.assert_close(clipped.grad, expected, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", SHAPES)
def test_unitwise_norms_are_the_official_ones(name: str) -> None:
    tensor = to_torch_layout(AGC[f"param/{name}"])
    norm, expected = unitwise_norm(tensor), to_torch_layout(AGC[f"param_norm/{name}"])
    torch.testing.assert_close(norm.expand_as(tensor), expected.expand_as(tensor), rtol=1e-6, atol=1e-6)


def test_reports_the_share_of_clipped_units() -> None:
    untouched = nn.Parameter(torch.ones(3, 4))
    untouched.grad = torch.full((3, 4), 1e-9)
    assert clip_gradients_adaptively([untouched], clip_factor=0.01) == 0
    half = nn.Parameter(torch.ones(2, 4))
    half.grad = torch.tensor([[1.0] * 4, [0.0] * 4])
    assert clip_gradients_adaptively([half], clip_factor=0.01) == 0.5


def run_sgd(recipe: OptimizerRecipe, clip_factor: float | None) -> np.ndarray:
    """The parameters after each of the six steps with the fixture's gradients, official layout."""
    weight = nn.Parameter(to_torch_layout(OPTIM["p0"]))
    optimizer = create_sgd([("conv.weight", weight)], recipe)
    track = []
    for gradient in OPTIM["grads"]:
        weight.grad = to_torch_layout(gradient)
        if clip_factor is not None:
            clip_gradients_adaptively([weight], clip_factor)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
        track.append(weight.detach().numpy().transpose(2, 3, 1, 0).copy())
    return np.stack(track)


@pytest.mark.parametrize("case", ["nesterov", "nesterov_wd", "heavyball_wd", "plain"])
def test_sgd_walks_the_official_way(case: str) -> None:
    settings = json.loads(str(OPTIM["meta"]))["cases"][case]
    recipe = OptimizerRecipe(
        momentum=settings.get("momentum", 0.0),
        nesterov=bool(settings.get("nesterov")),
        weight_decay=settings.get("weight_decay", 0.0),
    )
    np.testing.assert_allclose(run_sgd(recipe, None), OPTIM[f"sgd/{case}"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip_factor", ["0.01", "0.16"])
def test_sgd_with_clipping_walks_the_official_way(clip_factor: str) -> None:
    recipe = OptimizerRecipe(momentum=0.9, nesterov=True, weight_decay=0.01)
    np.testing.assert_allclose(
        run_sgd(recipe, float(clip_factor)), OPTIM[f"sgd_agc/{clip_factor}"], rtol=1e-6, atol=1e-6
    )


def test_schedule_is_the_official_one() -> None:
    official = json.loads(str(OPTIM["meta"]))["lr"]
    rates = [
        warmup_cosine(
            int(step),
            peak=official["max_val"],
            warmup_steps=official["warmup_steps"],
            total_steps=official["num_steps"],
        )
        for step in OPTIM["lr/steps"]
    ]
    np.testing.assert_allclose(rates, OPTIM["lr/values"], rtol=1e-5, atol=1e-6)
    short = [warmup_cosine(step, peak=0.8, warmup_steps=4, total_steps=20) for step in range(21)]
    np.testing.assert_allclose(short, OPTIM["lr_short/values"], rtol=1e-5, atol=1e-6)


def test_gains_and_biases_are_not_decayed() -> None:
    recipe = OptimizerRecipe(momentum=0.0, nesterov=False, weight_decay=0.5)
    names = [
        "conv.weight",
        "conv.gain",
        "conv.bias",
        "block.skip_gain",
        "classifier.weight",
        "classifier.bias",
    ]
    parameters = [(name, nn.Parameter(torch.ones(2))) for name in names]
    optimizer = create_sgd(parameters, recipe)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    for _, p in parameters:
        p.grad = torch.zeros(2)
    optimizer.step()
    changed = [name for name, p in parameters if not torch.equal(p, torch.ones(2))]
    assert changed == ["conv.weight", "classifier.weight"]
