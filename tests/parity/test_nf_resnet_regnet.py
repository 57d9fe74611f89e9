"""NF-ResNets and NF-RegNets are the official ones: logits, signal, structure, initial weights and costs.

The reference numbers are those of `tests/fixtures/README.md`; weights and images are drawn by its recipe.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.costs import count_multiply_adds, count_parameters, part_costs
from nfnet_ray.models.layers import SameMaxPool2d
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.signal import measure_signal
from nfnet_ray.models.variants import block_plan, get_variant
from nfnet_ray.models.weights.deepmind import load_deepmind_weights, to_deepmind_arrays
from tests.parity.official import FIXTURES, described, draw, drawn_weight, max_difference, reference

STRUCTURE = json.loads((FIXTURES / "nf_resnet_regnet_structure.json").read_text())["variants"]
# The network that each small one was shrunken from, and what was set for it.
SHRUNKEN_FROM = {"nf_resnet_tiny": "nf_resnet50", "nf_resnet_tiny_edge": "nf_resnet50"} | {
    "nf_regnet_tiny": "nf_regnet_b0"
}
SIZES = [
    ("nf_resnet_tiny", 64),
    ("nf_resnet_tiny", 75),
    ("nf_resnet_tiny_edge", 64),
    ("nf_resnet_tiny_edge", 33),
    ("nf_regnet_tiny", 64),
    ("nf_regnet_tiny", 75),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def meta(network: str) -> dict[str, Any]:
    return json.loads(str(reference(network)["meta"]))


def drawn_weights(network: str) -> dict[str, dict[str, np.ndarray]]:
    """Weights by the recipe, {module: {parameter: array}}, of the names and shapes that haiku made."""
    weights: dict[str, dict[str, np.ndarray]] = {}
    for label, shape in meta(network)["shapes"].items():
        module, parameter = label.rsplit("/", 1)
        weights.setdefault(module, {})[parameter] = drawn_weight(
            meta(network)["seed"], module, parameter, shape
        )
    return weights


def official_network(network: str) -> NFNet:
    entry, kwargs = meta(network)["variant_entry"], meta(network)["kwargs"]
    overrides: dict[str, Any] = {"depth": entry["depth"]}
    if "width" in entry:
        overrides["width"] = entry["width"]
    else:  # nf_resnet.py multiplies by its `width`, 4 for the usual networks
        overrides["width"] = [64 * kwargs["width"] * scale for scale in (1, 2, 4, 8)]
    overrides |= {name: kwargs[name] for name in ("alpha", "activation") if name in kwargs}
    if kwargs.get("use_se"):
        overrides["se_ratio"] = kwargs["se_ratio"]
    model = create_model(SHRUNKEN_FROM[network], kwargs["num_classes"], overrides=overrides)
    assert isinstance(model, NFNet)
    load_deepmind_weights(model, drawn_weights(network))
    return model.eval()


def images(network: str, size: int) -> Tensor:
    x_NHWC = draw(meta(network)["seed"], f"input/{size}", [meta(network)["batch"], size, size, 3])
    return torch.from_numpy(x_NHWC.astype(np.float32)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(("network", "size"), SIZES)
def test_logits(network: str, size: int) -> None:
    model, expected = official_network(network), reference(network)
    x_NCHW = images(network, size)
    assert max_difference(model(x_NCHW), expected[f"logits_{size}"]) < 1e-5
    model, x_NCHW = model.double(), x_NCHW.double()
    assert max_difference(model(x_NCHW), expected[f"logits_f64_{size}"]) < 1e-10
    assert max_difference(model.pooled_features(x_NCHW), expected[f"pool_f64_{size}"]) < 1e-10


@pytest.mark.parametrize(("network", "size"), SIZES)
def test_signal_is_what_the_official_code_reports(network: str, size: int) -> None:
    signals = measure_signal(official_network(network).double(), images(network, size).double())
    expected = reference(network)
    blocks = [signal for signal in signals if signal.name.startswith("block_")]
    through_the_network = [signals[0], *blocks]
    for ours, theirs in (
        ([signal.squared_mean for signal in through_the_network], expected[f"avg_sq_mean_f64_{size}"]),
        ([signal.variance for signal in through_the_network], expected[f"avg_var_f64_{size}"]),
        ([signal.branch_variance for signal in blocks], expected[f"res_avg_var_f64_{size}"]),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("name", STRUCTURE)
def test_costs_are_the_official_ones(name: str) -> None:
    official, variant = STRUCTURE[name], get_variant(name)
    assert count_parameters(variant, 1000) == official["num_params"]
    for size, multiply_adds in official["macs"].items():  # at sizes that no stride rounds
        assert count_multiply_adds(variant, int(size), 1000) == multiply_adds


@pytest.mark.parametrize("name", [name for name in STRUCTURE if "blocks" in STRUCTURE[name]])
def test_variant_is_the_official_one_block_by_block(name: str) -> None:
    variant = get_variant(name)
    for ours, theirs in zip(block_plan(variant), STRUCTURE[name]["blocks"], strict=True):
        assert described(ours, variant) == theirs


@pytest.mark.parametrize("name", [name for name in STRUCTURE if "shapes" in STRUCTURE[name]])
def test_names_and_shapes_are_the_official_ones(name: str) -> None:
    model = create_model(name, 1000)
    assert isinstance(model, NFNet)
    arrays = to_deepmind_arrays(model)
    shapes = {f"{m}/{p}": list(array.shape) for m, params in arrays.items() for p, array in params.items()}
    assert shapes == STRUCTURE[name]["shapes"]


@pytest.mark.parametrize("name", ["nf_resnet50", "nf_regnet_b0", "nfnet_f0"])
def test_costs_of_the_parts_are_those_of_the_modules(name: str) -> None:
    model = create_model(name, 10)
    assert isinstance(model, NFNet)
    multiply_adds: dict[str, int] = {}
    parts = {"stem": model.stem, "final_conv": model.final_conv, "classifier": model.classifier}
    parts |= {f"block_{index:02d}": block for index, block in enumerate(model.blocks)}

    def watch(part: str, layer: nn.Module) -> None:
        def count(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(layer.weight, Tensor)
            pixels = output[0, 0].numel()
            multiply_adds[part] = multiply_adds.get(part, 0) + layer.weight.numel() * pixels

        layer.register_forward_hook(count)

    for part, module in parts.items():
        for layer in module.modules():
            if hasattr(layer, "weight"):
                watch(part, layer)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 69, 69))
    costs = part_costs(model.variant, 69, 10)
    assert {cost.name: cost.multiply_adds for cost in costs} == multiply_adds
    for cost in costs:
        parameters = sum(parameter.numel() for parameter in parts[cost.name].parameters())
        assert cost.parameters == parameters, cost.name


def test_initial_classifier() -> None:
    torch.manual_seed(0)
    regnet, resnet = create_model("nf_regnet_b0", 100), create_model("nf_resnet50", 100)
    assert isinstance(regnet, NFNet)
    assert isinstance(resnet, NFNet)
    assert (regnet.classifier.weight == 0).all()  # nf_regnet.py's fc_init
    weight = resnet.classifier.weight
    assert weight.std().item() == pytest.approx(0.01, rel=6 / math.sqrt(2 * weight.numel()))


@pytest.mark.parametrize("size", [4, 5, 16, 33])
def test_max_pooling_pads_at_the_end_of_an_even_side(size: int) -> None:
    x_NCHW = torch.randn(2, 3, size, size + 1) - 10  # zeros would win
    expected = torch.full((2, 3, (size + 1) // 2, (size + 2) // 2), float("nan"))
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            top = 2 * row - size % 2
            left = 2 * column - (size + 1) % 2
            window = x_NCHW[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
            expected[:, :, row, column] = window.amax((2, 3))
    assert torch.equal(SameMaxPool2d()(x_NCHW), expected)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("nf_resnet50", {"final_conv_mult": 2.0}, ["final_conv_mult=2.0", "no final convolution"]),
        ("nf_resnet50", {"expansion": [0.001, 1, 1, 1]}, ["expansion=", "one channel in stage 1"]),
        ("nf_resnet50", {"width_multiplier": 0.001}, ["width_multiplier=0.001", "every stage"]),
        ("nf_resnet50", {"width": [2, 8, 8, 8]}, ["width=(2, 8, 8, 8)", "larger first entry"]),
        ("nf_regnet_b0", {"group_width": [8, 82, 8, 8]}, ["at most 81 in stage 2"]),
        ("nf_regnet_b0", {"big_width": [True, True, False, 1]}, ["big_width=", "four of true or false"]),
        ("nf_regnet_b0", {"use_two_convs": 1}, ["use_two_convs=1", "true or false"]),
        ("nf_regnet_b0", {"se_ratio": 0}, ["se_ratio=0", "above 0, or None"]),
    ],
)
def test_a_wrong_architecture_is_named(name: str, overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        get_variant(name, overrides)
    assert [word for word in words if word not in str(error.value)] == []
