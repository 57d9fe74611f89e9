"""The signal probe measures the activations, leaves no trace, and its expectation is the design's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.models.signal import BlockSignal, expected_variances, measure_signal, signal_metrics
from nfnet_ray.models.variants import NF_REGNET, get_variant

# The largest departure in ten seeds of the network below was 6%. Channels are only nearly uncorrelated.
TOLERANCE = 0.08


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def linear_network(skip_gain: Callable[[int], float], seed: int = 0) -> NFNet:
    """A network for which the assumptions of the expectation hold: no activation, no pooling, many channels,
    and sides so long that the zeros round an image hardly count."""
    family = replace(NF_REGNET, shortcut="strided_conv", stage_strides=(1, 2, 1, 1))
    variant = replace(
        get_variant("nf_regnet_b0"),
        name="linear",
        family=family,
        activation="identity",
        width=(128, 192, 192, 256),
        depth=(2, 3, 3, 2),
        width_multiplier=1.0,
        group_width=None,
        big_width=(True,) * 4,
        expansion=(0.5,) * 4,
        se_ratio=None,
    )
    torch.manual_seed(seed)
    model = NFNet(variant, 10)
    for index, block in enumerate(model.blocks):
        nn.init.constant_(block.skip_gain, skip_gain(index))
    return model


def noise(count: int = 16, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def photographs() -> Tensor:
    """Four crops of each of scikit-learn's two photographs at half their size, normalised as in training."""
    generator = torch.Generator().manual_seed(1)
    mean, std = (torch.tensor(rgb).view(3, 1, 1) for rgb in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    crops = []
    for image in load_sample_images().images:
        photograph = torch.tensor(image).permute(2, 0, 1)[None] / 255
        half = F.interpolate(photograph, size=(214, 320), mode="bilinear", antialias=True)[0]
        for _ in range(4):
            top, left = (
                int(torch.randint(limit, (), generator=generator)) for limit in (214 - 128, 320 - 128)
            )
            crops.append((half[:, top : top + 128, left : left + 128] - mean) / std)
    return torch.stack(crops)


def departures(signals: list[BlockSignal]) -> list[float]:
    return [abs(signal.variance / signal.expected_variance - 1) for signal in signals]


@pytest.mark.parametrize("skip_gain", [lambda _: 1.0, lambda _: 0.0, lambda index: 0.5 - index % 3])
def test_a_network_as_assumed_has_the_expected_variance(skip_gain: Callable[[int], float]) -> None:
    model = linear_network(skip_gain)
    signals = measure_signal(model, noise())
    assert len(signals) == 12
    assert max(departures(signals)) < TOLERANCE
    for index, block in enumerate(model.blocks):
        scaled = block.plan.beta**2 * signals[index].expected_variance
        # The zeros round the image take some of the 3x3 convolutions' output.
        assert signals[index + 1].branch_variance == pytest.approx(scaled, rel=0.25)
    assert max(signal.squared_mean for signal in signals) < 0.02  # of zero-mean images, without activation


def test_another_alpha_is_noticed() -> None:
    model = linear_network(lambda _: 1.0)
    expected = expected_variances(model)
    for block in model.blocks:
        block.alpha = 0.3
    measured = [signal.variance for signal in measure_signal(model, noise())]
    departures = [abs(variance / e - 1) for variance, e in zip(measured, expected, strict=True)]
    assert max(departures) > 2 * TOLERANCE


@pytest.mark.parametrize("name", ["nfnet_nano", "nf_resnet50", "nf_regnet_b0"])
def test_with_skip_gains_of_one_the_expectation_is_what_beta_was_made_from(name: str) -> None:
    model = create_model(name, 10)
    assert isinstance(model, NFNet)
    for block in model.blocks:
        nn.init.ones_(block.skip_gain)
    for block, expected_input in zip(model.blocks, expected_variances(model), strict=False):
        assert block.plan.beta**2 * expected_input == pytest.approx(1, rel=1e-12)


def test_a_new_network_is_expected_to_be_the_chain_of_its_transitions() -> None:
    model = create_model("nfnet_nano", 10)  # depths 1, 2, 6, 3
    assert isinstance(model, NFNet)
    stages = [1, 1, 1 / 1.04, 1 / 1.04 / 1.08, 1 / 1.04 / 1.08 / 1.24]
    expected = [
        stages[0],
        *(stages[1 + stage] for stage, depth in enumerate((1, 2, 6, 3)) for _ in range(depth)),
    ]
    assert expected_variances(model) == pytest.approx([*expected, expected[-1]], rel=1e-12)


def test_a_real_resnet_is_near_its_expectation() -> None:
    """Figures of docs/methods/signal_propagation.md, as the next one's: with fewer blocks, to be quick."""
    torch.manual_seed(0)
    model = create_model("nf_resnet50", 10, overrides={"depth": [2, 2, 2, 2]})
    for block in model.blocks:
        nn.init.ones_(block.skip_gain)
    assert max(departures(measure_signal(model, noise(4, 128))[1:])) < 0.12


@pytest.mark.parametrize(
    ("images", "shares"), [(partial(noise, 8, 128), (0.18, 0.26)), (photographs, (0.48, 0.8))]
)
def test_average_pooling_leaves_a_part_of_the_variance(
    images: Callable[[], Tensor], shares: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    overrides = {"width": [128, 256, 512, 512], "group_width": [64] * 4, "depth": [1] * 4}
    model = create_model("nfnet_f0", 10, overrides=overrides)
    signals = measure_signal(model, images())[1:5]
    of_expected = [signal.variance / signal.expected_variance for signal in signals]
    for before, after in pairwise(of_expected):
        assert shares[0] < after / before < shares[1]


def test_it_measures_the_activations() -> None:
    torch.manual_seed(0)
    model = create_model("nfnet_pico", 10).double().eval()
    assert isinstance(model, NFNet)
    for block in model.blocks:
        nn.init.constant_(block.skip_gain, 0.7)
    outputs: dict[str, Tensor] = {}
    layers = {"stem": model.stem[3], "final_conv": model.final_conv}
    layers |= {f"block_{index:02d}": block for index, block in enumerate(model.blocks)}
    handles = [
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: outputs.update({name: output}))
        for name, layer in layers.items()
    ]
    model(noise(2, 45).double())
    for handle in handles:
        handle.remove()
    signals = measure_signal(model, noise(2, 45).double())
    assert [signal.name for signal in signals] == [
        "stem",
        *(f"block_{i:02d}" for i in range(5)),
        "final_conv",
    ]
    for signal in signals:
        channels = outputs[signal.name].transpose(0, 1).flatten(1)
        assert signal.variance == pytest.approx(channels.var(1, correction=0).mean().item(), rel=1e-10)
        assert signal.squared_mean == pytest.approx(channels.mean(1).square().mean().item(), rel=1e-10)
        assert signal.mean_square == pytest.approx(channels.square().mean().item(), rel=1e-10)


def test_the_model_is_left_as_it_was() -> None:
    model = create_model("nfnet_pico", 10, dropout=0.5, stochastic_depth=0.5).train()
    assert isinstance(model, NFNet)
    model.blocks[1].eval()
    model(noise(2, 32)).sum().backward()
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recorded: list[bool] = []
    handle = model.stem[0].register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    state = torch.get_rng_state()
    first = measure_signal(model, noise(2, 32))
    assert measure_signal(model, noise(2, 32)) == first  # nothing is dropped by chance
    handle.remove()
    assert recorded == [False, False]  # a graph of all activations would take a training step's memory
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == gradients.keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])
        assert parameter.requires_grad

    with pytest.raises(RuntimeError):
        measure_signal(model, torch.zeros(2, 5, 32, 32))  # five colours
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_bfloat16_follows_float32() -> None:
    torch.manual_seed(0)
    model = create_model("nfnet_pico", 10)
    exact = measure_signal(model, noise(4, 32))
    with torch.autocast("cpu", torch.bfloat16):
        autocast = measure_signal(model, noise(4, 32))
    whole = measure_signal(model.bfloat16(), noise(4, 32).bfloat16())
    for signals in (autocast, whole):
        for rounded, reference in zip(signals, exact, strict=True):
            assert rounded.variance == pytest.approx(reference.variance, rel=0.05)
            assert rounded.mean_square == pytest.approx(reference.mean_square, rel=0.05)


def test_metrics_say_depth_name_and_quantity() -> None:
    signals = measure_signal(create_model("nfnet_pico", 10), noise(1, 32))
    metrics = signal_metrics(signals)
    assert len(metrics) == 3 * 7
    assert metrics["signal/00_stem/variance"] == signals[0].variance
    assert metrics["signal/03_block_02/mean_square"] == signals[3].mean_square
    assert metrics["signal/06_final_conv/expected_variance"] == signals[6].expected_variance
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    many = signal_metrics(signals[:1] * 101)
    assert next(iter(many)) == "signal/000_stem/variance"  # in order also where names are sorted


def test_other_networks_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="signal of a Linear cannot be measured"):
        measure_signal(nn.Linear(3, 3), torch.zeros(1, 3))
