"""The networks are the official ones: logits, activations, gradients, initial weights and names.

The reference numbers are those of `tests/fixtures/README.md`.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.costs import count_multiply_adds, count_parameters
from nfnet_ray.models.layers import ACTIVATIONS, StochasticDepth
from nfnet_ray.models.nfnet import NFBlock, NFNet
from nfnet_ray.models.variants import ACTIVATION_GAINS, block_plan, get_variant, list_models
from nfnet_ray.models.weights.deepmind import load_deepmind_weights, to_deepmind_arrays
from tests.parity.official import FIXTURES, max_difference, reference

NETWORKS = ("nfnet_tiny", "nfnet_tiny_edge")
SIZES = [
    ("nfnet_tiny", 64),
    ("nfnet_tiny", 48),
    ("nfnet_tiny", 75),
    ("nfnet_tiny_edge", 64),
    ("nfnet_tiny_edge", 33),
]

Arrays = dict[str, dict[str, np.ndarray]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def section(network: str, name: str) -> Arrays:
    """{module: {parameter: array}} of one section of a reference file, `params` or `grads`."""
    arrays: Arrays = {}
    for key, array in reference(network).items():
        if key.startswith(f"{name}/"):
            module, parameter = key.removeprefix(f"{name}/").rsplit("/", 1)
            arrays.setdefault(module, {})[parameter] = array
    return arrays


def fresh_network(network: str, **settings: Any) -> NFNet:
    meta = json.loads(str(reference(network)["meta"]))
    entry = meta["variant_entry"]
    shape = {key: entry[key] for key in ("width", "depth", "group_width", "expansion") if key in entry}
    model = create_model("nfnet_f0", meta["num_classes"], overrides=shape | meta["kwargs"], **settings)
    assert isinstance(model, NFNet)
    return model


def official_network(network: str, **settings: Any) -> NFNet:
    model = fresh_network(network, **settings)
    load_deepmind_weights(model, section(network, "params"))
    return model


def images(network: str, size: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(reference(network)[f"input_{size}"]).permute(0, 3, 1, 2).contiguous().to(dtype)


@pytest.mark.parametrize(("network", "size"), SIZES)
def test_logits(network: str, size: int) -> None:
    model = official_network(network).eval()
    expected = reference(network)
    assert max_difference(model(images(network, size)), expected[f"logits_{size}"]) < 1e-5
    assert max_difference(model.pooled_features(images(network, size)), expected[f"pool_{size}"]) < 1e-5
    in_float64 = model.double()(images(network, size, torch.float64))
    assert max_difference(in_float64, expected[f"logits_f64_{size}"]) < 1e-10


@pytest.mark.parametrize("network", NETWORKS)
def test_activations_block_by_block(network: str) -> None:
    model = official_network(network).double().eval()
    outputs: dict[str, Tensor] = {}
    layers = {"stem_conv3": model.stem[3], "final_conv": model.final_conv}
    layers |= {f"block_{index:02d}": block for index, block in enumerate(model.blocks)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: outputs.update({name: output}))
    model(images(network, dtype=torch.float64)[:2])

    expected = {
        key.removeprefix("act/"): value for key, value in reference(network).items() if key[:4] == "act/"
    }
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        scale = np.abs(array).max()
        assert max_difference(outputs[name].permute(0, 2, 3, 1), array) < 2e-7 * scale, (
            name
        )  # stored as float32


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("network", NETWORKS)
def test_loss_and_gradients(network: str, memory_format: torch.memory_format) -> None:
    model = official_network(network).double().to(memory_format=memory_format).eval()
    expected = reference(network)
    labels, mix_labels = (
        F.one_hot(torch.from_numpy(expected[key]).long(), 10) for key in ("labels", "mix_labels")
    )
    ratio = torch.from_numpy(expected["ratio"]).double()[:, None]
    targets = ratio * labels + (1 - ratio) * mix_labels

    logits = model(images(network, dtype=torch.float64).to(memory_format=memory_format))
    loss = F.cross_entropy(logits, targets, label_smoothing=0.1)
    loss.backward()

    assert abs(loss.item() - expected["loss_f64"]) < 1e-10
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.data = parameter.grad
    gradients = to_deepmind_arrays(model)
    official_gradients = section(network, "grads")
    assert gradients.keys() == official_gradients.keys()
    for module, parameters in official_gradients.items():
        for name, array in parameters.items():
            # The reference is stored as float32; a vanishing gradient is only as exact as the largest.
            tolerance = 2e-7 * np.abs(array).max() + 1e-12
            assert np.abs(gradients[module][name] - array).max() < tolerance, f"{module}/{name}"


@pytest.mark.parametrize("name", list_models())
def test_parameters_are_as_many_as_the_plan_says(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(
        get_variant(name), 1000
    )
    official_name = name.removeprefix("nfnet_").upper().replace("_PLUS", "+")
    official = json.loads((FIXTURES / "nfnet_structure.json").read_text())["variants"].get(official_name)
    if official:
        names = [name for name, _ in model.named_parameters()]
        assert len(names) == official["num_tensors"]
        assert len({name.rpartition(".")[0] for name in names}) == official["num_modules"]


@pytest.mark.parametrize("size", [32, 45, 75])
def test_multiply_adds_are_those_of_the_layers(size: int) -> None:
    model = create_model("nfnet_pico", 10)
    multiply_adds = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiply_adds
        assert isinstance(layer.weight, Tensor)
        multiply_adds += layer.weight.numel() * output[0, 0].numel()

    for layer in model.modules():
        if hasattr(layer, "weight"):
            layer.register_forward_hook(count)
    model(torch.zeros(1, 3, size, size))
    assert count_multiply_adds(model.variant, size, 10) == multiply_adds


def test_initial_weights_of_f0() -> None:
    torch.manual_seed(0)
    arrays = to_deepmind_arrays(create_model("nfnet_f0"))
    official = json.loads((FIXTURES / "nfnet_f0_init_stats.json").read_text())["stats"]
    ours = {f"{module}/{name}": array for module, params in arrays.items() for name, array in params.items()}
    assert ours.keys() == official.keys()
    for name, stats in official.items():
        array = ours[name].astype(np.float64)
        assert list(array.shape) == stats["shape"], name
        if stats["std"] == 0:  # gains, biases, skip gains
            assert (array == stats["mean"]).all(), name
            continue
        # Both are samples: their means and deviations may differ by six standard errors.
        standard_error = stats["std"] * math.sqrt(2 / array.size)
        assert abs(array.mean() - stats["mean"]) < 6 * standard_error, name
        assert abs(array.std() - stats["std"]) < 6 * standard_error / math.sqrt(2), name
        if "squeeze_excite" in name:  # cut at two standard deviations, which both samples come close to
            assert np.abs(array).max() == pytest.approx(stats["absmax"], rel=1e-2), name
        else:  # not cut: six of a million normal numbers lie beyond 4.5
            assert array.size < 1e6 or np.abs(array).max() > 4.4 * stats["std"], name


def test_activations_have_unit_variance() -> None:
    torch.manual_seed(0)
    x_NCHW = torch.randn(4, 256, 32, 32)
    assert ACTIVATIONS.keys() == ACTIVATION_GAINS.keys()
    for name, gain in ACTIVATION_GAINS.items():
        assert (gain * ACTIVATIONS[name](x_NCHW)).var().item() == pytest.approx(1, rel=0.02), name


def test_parameter_names_tell_optimisers_what_they_hold() -> None:
    names = [name for name, _ in create_model("nfnet_pico", 10).named_parameters()]
    assert {name.rpartition(".")[2] for name in names} == {"weight", "gain", "bias", "skip_gain"}
    assert [name for name in names if name.startswith("classifier")] == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_deepmind_arrays_survive_a_round_trip() -> None:
    weights = section("nfnet_tiny", "params")
    arrays = to_deepmind_arrays(official_network("nfnet_tiny"))
    assert arrays.keys() == weights.keys()
    for module, parameters in weights.items():
        assert arrays[module].keys() == parameters.keys()
        for name, array in parameters.items():
            assert arrays[module][name].dtype == np.float32
            np.testing.assert_array_equal(arrays[module][name], array, strict=True)


def test_deepmind_arrays_are_copies() -> None:
    model = official_network("nfnet_tiny")
    to_deepmind_arrays(model)["NFNet/~/linear"]["b"][:] = 7
    assert not (model.classifier.bias == 7).any()


def test_unfit_weights_are_all_named_and_nothing_is_loaded() -> None:
    weights = section("nfnet_tiny", "params")
    weights["NFNet/~/linear"]["w"] = np.zeros((128, 1000), np.float32)
    weights["NFNet/~/stem_conv0"]["gain"] = np.array(["1"] * 16)
    weights["NFNet/~/nf_block_99"] = {"skip_gain": np.float32(1)}
    del weights["NFNet/~/nf_block"]["skip_gain"]
    del weights["NFNet/~/nf_block_3/~/conv_shortcut"]
    model = fresh_network("nfnet_tiny")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_deepmind_weights(model, weights)
    message = str(error.value)
    assert "\n" not in message
    for words in (
        "NFNet/~/linear/w is (128, 1000), not (128, 10)",
        "NFNet/~/stem_conv0/gain holds <U1",
        "NFNet/~/nf_block_99/skip_gain is not part",
        "NFNet/~/nf_block/skip_gain is missing",
        "NFNet/~/nf_block_3/~/conv_shortcut/w is missing",
        "NFNet/~/nf_block_3/~/conv_shortcut/gain is missing",
        "NFNet/~/nf_block_3/~/conv_shortcut/bias is missing",
    ):
        assert words in message
    assert message.count(";") == 7
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_stochastic_depth_drops_whole_samples_and_does_not_rescale() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 3, 2, 2) + 10
    layer = StochasticDepth(0.25)
    y = layer(x)
    stays = (y == x).flatten(1).all(1)
    assert (y[~stays] == 0).all()
    assert stays.float().mean().item() == pytest.approx(0.75, abs=0.04)  # six standard errors
    assert layer.eval()(x) is x


def test_a_dropped_block_is_its_shortcut() -> None:
    torch.manual_seed(0)
    variant = get_variant("nfnet_pico")
    plan = replace(block_plan(variant)[3], stochastic_depth=0.5)
    assert not plan.is_transition
    block = NFBlock(plan, variant)
    torch.nn.init.ones_(block.skip_gain)
    x_NCHW = torch.randn(64, plan.in_channels, 4, 4)
    y_NCHW = block(x_NCHW)
    dropped = (y_NCHW == x_NCHW).flatten(1).all(1)
    assert 0 < dropped.sum() < 64
    torch.testing.assert_close(y_NCHW[~dropped], block.eval()(x_NCHW)[~dropped])


def test_each_technique_can_be_taken_away() -> None:
    def network(**overrides: bool) -> NFNet:
        torch.manual_seed(0)
        return create_model("nfnet_pico", 10, overrides=overrides).eval()

    def doubled_first_weight(model: NFNet) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits before and after."""
        x_NCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            before = model(x_NCHW)
            model.stem[0].weight *= 2
            return before, model(x_NCHW)

    torch.testing.assert_close(*doubled_first_weight(network()))  # standardised: its scale does not matter
    before, after = doubled_first_weight(network(weight_standardisation=False))
    assert not torch.allclose(before, after, rtol=0.1)

    names = dict(network().named_parameters()).keys()
    without_gain = network(skip_gain=False)
    assert names - dict(without_gain.named_parameters()).keys() == {f"blocks.{i}.skip_gain" for i in range(5)}
    assert all(block.skip_gain == 1 for block in without_gain.blocks)
    without_gate = dict(network(squeeze_excite=False).named_parameters()).keys()
    assert names - without_gate == {name for name in names if "squeeze_excite" in name} != set()


def test_regularisation_is_the_published_one_unless_given() -> None:
    variant = get_variant("nfnet_f0")
    overrides = {"width": [16] * 4, "group_width": [8] * 4}
    published = create_model("nfnet_f0", 10, overrides=overrides)
    assert published.dropout.p == variant.dropout == 0.2
    assert [block.stochastic_depth.drop_rate for block in published.blocks] == [
        0.25 * i / 12 for i in range(12)
    ]
    given = create_model("nfnet_f0", 10, dropout=0.0, stochastic_depth=0.1, overrides=overrides)
    assert given.dropout.p == 0
    assert given.blocks[-1].stochastic_depth.drop_rate == pytest.approx(0.1 * 11 / 12)


def test_bfloat16_autocast_follows_float32() -> None:
    model = official_network("nfnet_tiny", dropout=0.0, stochastic_depth=0.0)
    x_NCHW = images("nfnet_tiny")
    exact = model(x_NCHW)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x_NCHW)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()  # bfloat16 has 8 bits
    rounded.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_network_in_one_type(dtype: torch.dtype) -> None:
    model = create_model("nfnet_pico", 10, dropout=0.5, stochastic_depth=0.5).to(dtype)
    assert model(torch.randn(2, 3, 32, 32, dtype=dtype)).dtype == dtype


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    torch.compiler.reset()  # a second compilation would take sizes for variables, and a minute
    model = create_model("nfnet_pico", 10, dropout=0.5, stochastic_depth=0.5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x_NCHW = torch.randn(2, 3, 32, 32)
    compiled(x_NCHW).sum().backward()
    torch.testing.assert_close(compiled.eval()(x_NCHW), model.eval()(x_NCHW))
