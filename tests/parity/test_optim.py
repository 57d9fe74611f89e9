"""Optimisers, parameter groups and schedules against numbers of the official implementations.

NFNet's are in tests/fixtures (README.md there); TensorFlow's RMSProp and EfficientNet's learning rates are written
anew in NumPy and plain Python below.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.optim import (
    clip_gradients_adaptively,
    create_optimizer,
    decayed_names,
    learning_rate_at,
    unit_norms,
    unitwise_norm,
    warmup_cosine,
    warmup_staircase,
)
from nfnet_ray.recipe import OptimizerRecipe, ScheduleRecipe

IMAGENET_IMAGES = 1_281_167

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


def test_a_single_parameter_is_clipped_as_a_list_of_it_is() -> None:
    """Iterated over, it would be rows, which have no gradients, and nothing would be clipped."""
    weight = nn.Parameter(torch.ones(2, 4))
    weight.grad = torch.ones(2, 4)
    assert clip_gradients_adaptively(weight, clip_factor=0.02) == 1
    torch.testing.assert_close(weight.grad, torch.full((2, 4), 0.02))
    norms = unit_norms(weight)
    assert norms is not None
    assert norms.tensors == ((0, 2),)


def test_what_has_nothing_to_clip_counts_nothing() -> None:
    empty = nn.Parameter(torch.zeros(0, 4))
    empty.grad = torch.zeros(0, 4)
    assert clip_gradients_adaptively([empty]) == 0
    # On the parameters' device, whichever that is.
    assert clip_gradients_adaptively([nn.Parameter(torch.zeros(2, device="meta"))]).device.type == "meta"


def network(parameters: dict[str, nn.Parameter]) -> nn.Module:
    """A module without a forward pass that has these parameters."""
    root = nn.Module()
    for name, value in parameters.items():
        *path, last = name.split(".")
        module = root
        for step in path:
            if not hasattr(module, step):
                module.add_module(step, nn.Module())
            module = module.get_submodule(step)
        module.register_parameter(last, value)
    return root


def run_sgd(recipe: OptimizerRecipe, clip_factor: float | None) -> np.ndarray:
    """The parameters after each of the six steps with the fixture's gradients, official layout."""
    weight = nn.Parameter(to_torch_layout(OPTIM["p0"]))
    optimizer = create_optimizer(network({"conv.weight": weight}), recipe)
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


def test_recipe_with_a_fraction_of_steps_gives_the_official_learning_rates() -> None:
    """1281167 / 4096 steps in an epoch: the official run's 1563.92 of 112,602."""
    recipe = ScheduleRecipe(epochs=360, warmup_epochs=5.0)
    rates = [
        learning_rate_at(int(step), recipe, peak=1.6, steps_per_epoch=IMAGENET_IMAGES / 4096)
        for step in OPTIM["lr/steps"]
    ]
    np.testing.assert_allclose(rates, OPTIM["lr/values"], rtol=1e-5, atol=1e-6)
    assert learning_rate_at(112_602, recipe, peak=1.6, steps_per_epoch=IMAGENET_IMAGES / 4096) == 0
    # In whole steps too, the last one of all would be the first without learning.
    assert learning_rate_at(14, ScheduleRecipe(epochs=1, warmup_epochs=0), peak=1, steps_per_epoch=14) == 0


def efficientnet_rate(step: int, steps_per_epoch: float) -> float:
    """tensorflow/tpu's build_learning_rate for batch 4096: exponential_decay in stairs, and a warm-up in its place."""
    warmup_steps = int(5 * steps_per_epoch)
    if step < warmup_steps:
        return 0.256 * step / warmup_steps
    return 0.256 * 0.97 ** math.floor(step / (steps_per_epoch * 2.4))


EFFICIENTNET_SCHEDULE = ScheduleRecipe(
    epochs=350,
    warmup_epochs=5,
    base_learning_rate=0.016,
    shape="staircase",
    decay_factor=0.97,
    decay_epochs=2.4,
)


def test_efficientnet_goes_down_its_own_stairs() -> None:
    steps_per_epoch = IMAGENET_IMAGES / 4096
    total_steps = int(350 * steps_per_epoch)

    def rate(step: int) -> float:
        return learning_rate_at(step, EFFICIENTNET_SCHEDULE, peak=0.256, steps_per_epoch=steps_per_epoch)

    for step in [*range(0, total_steps, 97), 1562, 1563, 1564, total_steps - 1]:
        assert rate(step) == pytest.approx(efficientnet_rate(step, steps_per_epoch), rel=1e-12), step
    assert rate(0) == 0
    assert rate(1562) == pytest.approx(0.256 * 1562 / 1563)  # int(1563.92) steps of warm-up
    # Two stairs of 2.4 epochs have passed by then: they are counted from the start, not from the warm-up's end.
    assert rate(1563) == pytest.approx(0.256 * 0.97**2)
    assert rate(total_steps - 1) == pytest.approx(0.256 * 0.97**145)


def test_resnet_is_divided_by_ten_every_thirty_epochs() -> None:
    recipe = ScheduleRecipe(epochs=90, warmup_epochs=0, shape="staircase", decay_factor=0.1, decay_epochs=30)
    epoch = IMAGENET_IMAGES // 256
    rates = [
        learning_rate_at(step, recipe, peak=0.1, steps_per_epoch=epoch)
        for step in (0, 30 * epoch - 1, 30 * epoch, 60 * epoch - 1, 60 * epoch, 90 * epoch - 1)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_a_stair_is_not_lost_to_the_last_bit() -> None:
    assert 1.1 * 50 > 55  # a stair of 1.1 epochs, in steps
    assert warmup_staircase(55, peak=1.0, warmup_steps=0, decay_steps=1.1 * 50, decay_factor=0.5) == 0.5
    assert 0.29 * 100 < 29  # warm-up
    rates = [
        warmup_staircase(step, peak=1.0, warmup_steps=0.29 * 100, decay_steps=1000, decay_factor=0.5)
        for step in (28, 29)
    ]
    assert rates == [28 / 29, 1.0]


# --- RMSProp ------------------------------------------------------------------------------------------------------


def tensorflow_rmsprop(
    parameter: np.ndarray,
    gradients: np.ndarray,
    rates: list[float],
    *,
    rho: float,
    momentum: float,
    epsilon: float,
    weight_decay: float,
) -> np.ndarray:
    """The parameter after each step of TensorFlow's ApplyRMSProp, in float64.

    The loss has weight_decay * l2_loss(parameter) in it.
    """
    ms, mom = np.ones_like(parameter), np.zeros_like(parameter)
    track = []
    for gradient, rate in zip(gradients, rates, strict=True):
        total = gradient + weight_decay * parameter
        ms = ms + (1 - rho) * (total**2 - ms)
        mom = momentum * mom + rate * total / np.sqrt(ms + epsilon)
        parameter = parameter - mom
        track.append(parameter)
    return np.stack(track)


def walk(
    optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradients: np.ndarray, rates: list[float]
) -> np.ndarray:
    """The weight after each step."""
    track = []
    for gradient, rate in zip(gradients, rates, strict=True):
        weight.grad = torch.from_numpy(gradient).to(weight.dtype)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        track.append(weight.detach().double().numpy().copy())
    return np.stack(track)


# The rate changes: TensorFlow's momentum keeps the old ones.
RATES = [0.0, 0.02, 0.05, 0.05, 0.047, 0.03, 0.03, 0.02, 0.01, 0.01]
START = np.random.default_rng(0).normal(size=(4, 3, 2, 2))
GRADIENTS = np.random.default_rng(1).normal(size=(len(RATES), *START.shape))
EFFICIENTNET = OptimizerRecipe(name="rmsprop", nesterov=False, weight_decay=1e-5, decayed="all_but_norm")


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-5, 0.3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_rmsprop_walks_as_tensorflows(momentum: float, weight_decay: float, scale: float) -> None:
    """Gradients of any size: with small ones the first mean square decides, and epsilon's place."""
    recipe = OptimizerRecipe(
        name="rmsprop", momentum=momentum, weight_decay=weight_decay, decayed="all_but_norm"
    )
    weight = nn.Parameter(torch.from_numpy(START).float())
    optimizer = create_optimizer(network({"conv.weight": weight}), recipe)
    expected = tensorflow_rmsprop(
        START,
        scale * GRADIENTS,
        RATES,
        rho=0.9,
        momentum=momentum,
        epsilon=1e-3,
        weight_decay=weight_decay,
    )
    np.testing.assert_allclose(
        walk(optimizer, weight, scale * GRADIENTS, RATES), expected, rtol=1e-6, atol=1e-6
    )


def test_torchs_own_rmsprop_walks_elsewhere() -> None:
    weight = nn.Parameter(torch.from_numpy(START).float())
    others = torch.optim.RMSprop([weight], lr=0.0, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=1e-5)
    expected = tensorflow_rmsprop(
        START, GRADIENTS, RATES, rho=0.9, momentum=0.9, epsilon=1e-3, weight_decay=1e-5
    )
    assert np.abs(walk(others, weight, GRADIENTS, RATES) - expected).max() > 0.1


def test_rmsprop_takes_its_settings_from_the_recipe() -> None:
    recipe = OptimizerRecipe(
        name="rmsprop", momentum=0.5, rmsprop_decay=0.7, rmsprop_eps=0.1, weight_decay=0.2, decayed="weights"
    )
    weight, bias = (nn.Parameter(torch.from_numpy(START).float()) for _ in range(2))
    optimizer = create_optimizer(network({"conv.weight": weight, "conv.bias": bias}), recipe)
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        bias.grad = torch.from_numpy(gradient).float()
        walk(optimizer, weight, gradient[None], [rate])
    for parameter, decay in ((weight, 0.2), (bias, 0.0)):
        expected = tensorflow_rmsprop(
            START, GRADIENTS, RATES, rho=0.7, momentum=0.5, epsilon=0.1, weight_decay=decay
        )[-1]
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recipe", [OptimizerRecipe(), EFFICIENTNET], ids=["sgd", "rmsprop"])
def test_a_saved_state_resumes_to_the_bit(recipe: OptimizerRecipe) -> None:
    through, resumed = (
        network({"conv.weight": nn.Parameter(torch.from_numpy(START).float())}) for _ in range(2)
    )
    optimizer = create_optimizer(through, recipe)
    half = len(RATES) // 2
    walk(optimizer, through.get_parameter("conv.weight"), GRADIENTS[:half], RATES[:half])
    file = io.BytesIO()
    torch.save({"weights": through.state_dict(), "optimizer": optimizer.state_dict()}, file)
    walk(optimizer, through.get_parameter("conv.weight"), GRADIENTS[half:], RATES[half:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved["weights"])
    optimizer = create_optimizer(resumed, recipe)
    optimizer.load_state_dict(saved["optimizer"])
    walk(optimizer, resumed.get_parameter("conv.weight"), GRADIENTS[half:], RATES[half:])
    assert torch.equal(resumed.get_parameter("conv.weight"), through.get_parameter("conv.weight"))


def test_rmsprop_without_timm_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^optimizer\.name = rmsprop needs timm.*install timm$"):
        create_optimizer(nn.Linear(2, 2), EFFICIENTNET)
    create_optimizer(nn.Linear(2, 2), OptimizerRecipe())  # SGD does not need it


# --- what is decayed ----------------------------------------------------------------------------------------------


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
    parameters = {name: nn.Parameter(torch.ones(2)) for name in names}
    optimizer = create_optimizer(network(parameters), recipe)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    for p in parameters.values():
        p.grad = torch.zeros(2)
    optimizer.step()
    changed = [name for name, p in parameters.items() if not torch.equal(p, torch.ones(2))]
    assert changed == ["conv.weight", "classifier.weight"]


def of_a_batch_norm(name: str) -> bool:
    """timm's EfficientNets and ResNets: `bn1`, `bn2`, `bn3`, and the second layer of a ResNet's `downsample`."""
    module = name.rsplit(".", 1)[0]
    return module.rsplit(".", 1)[-1].startswith("bn") or module.endswith("downsample.1")


@pytest.mark.parametrize(
    ("name", "tensors", "weights", "all_but_norm"),
    [
        ("nfnet_pico", 114, 40, 114),
        ("tf_efficientnet_b0", 213, 82, 115),  # 49 batch normalisations have 98 of them
        ("resnet50", 161, 54, 55),  # 53 have 106, and the classifier a bias
    ],
)
def test_groups_by_name(name: str, tensors: int, weights: int, all_but_norm: int) -> None:
    with torch.device("meta"):
        model = create_model(name, 10)
    shapes = {parameter_name: p.ndim for parameter_name, p in model.named_parameters()}
    assert len(shapes) == tensors

    # Whatever is not a convolution's or linear layer's weight is a vector or a scalar.
    expected = [parameter_name for parameter_name, ndim in shapes.items() if ndim >= 2]
    assert decayed_names(model, OptimizerRecipe(decayed="weights")) == expected
    assert len(expected) == weights

    expected = [parameter_name for parameter_name in shapes if not of_a_batch_norm(parameter_name)]
    assert decayed_names(model, OptimizerRecipe(decayed="all_but_norm")) == expected
    assert len(expected) == all_but_norm


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
@pytest.mark.parametrize("decayed", ["weights", "all_but_norm"])
def test_every_parameter_is_in_one_group(name: str, decayed: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    recipe = OptimizerRecipe(name=name, weight_decay=0.25, decayed=decayed)  # type: ignore[arg-type]
    optimizer = create_optimizer(model, recipe)
    grouped = {
        parameter_name: group["weight_decay"]
        for parameter_name, parameter in model.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is other for other in group["params"])
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(grouped) == 6
    expected = ["0.weight", "3.weight"] + (["0.bias", "3.bias"] if decayed == "all_but_norm" else [])
    assert sorted(key for key, decay in grouped.items() if decay == 0.25) == sorted(expected)
    assert {decay for key, decay in grouped.items() if key not in expected} == {0.0}


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm1d(4),
        lambda: nn.SyncBatchNorm(4),
        lambda: nn.InstanceNorm2d(4, affine=True),
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.LayerNorm(4),
        lambda: nn.RMSNorm(4),
    ],
)
@pytest.mark.parametrize("decayed", ["weights", "all_but_norm"])
def test_no_normalisation_is_decayed(norm: Callable[[], nn.Module], decayed: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), norm())
    assert decayed_names(model, OptimizerRecipe(decayed=decayed)) == ["0.weight"]  # type: ignore[arg-type]
