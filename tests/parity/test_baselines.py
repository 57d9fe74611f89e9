"""The baselines are timm's modules, in TensorFlow's form, and match the table."""

from __future__ import annotations

import functools
import math
import socket
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nfnet_ray.errors import UserError
from nfnet_ray.models import create_model, list_models
from nfnet_ray.models.baselines import BASELINES, Baseline
from nfnet_ray.models.catalogue import count_multiply_adds, count_parameters
from nfnet_ray.models.published import published_recipe
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.step import clipped_parameters

TENSORFLOW_FORM = [name for name in BASELINES if name.startswith("tf_")]


@pytest.fixture(autouse=True)
def nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all of these tests: they build every baseline."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@functools.cache
def on_meta(name: str, num_classes: int = 1000) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, num_classes)


def measured_multiply_adds(model: nn.Module, size: int) -> int:
    """Of the convolutions and linear layers, for one image, counted while it passes."""
    multiply_adds = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiply_adds
        assert isinstance(layer.weight, Tensor)
        multiply_adds += layer.weight.numel() * output[0, 0].numel()

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    return multiply_adds


@pytest.mark.parametrize("name", BASELINES)
def test_table_is_what_timm_builds(name: str) -> None:
    baseline, model = BASELINES[name], on_meta(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == baseline.parameters
    assert model.get_parameter(baseline.classifier_weight).shape == (1000, baseline.features)
    assert measured_multiply_adds(model, baseline.train_size) == baseline.multiply_adds
    assert published_recipe(name).optimizer.agc.exclude == (baseline.classifier_weight,)


@pytest.mark.parametrize("name", ["tf_efficientnet_b2", "tf_efficientnetv2_s", "resnet50"])
def test_costs_with_other_classes_and_sizes(name: str) -> None:
    model = on_meta(name, num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(name, 10)
    baseline = BASELINES[name]
    exact = measured_multiply_adds(model, baseline.train_size)
    assert count_multiply_adds(name, baseline.train_size, 10) == exact
    for size in (64, 128, baseline.test_size):
        estimate = count_multiply_adds(name, size, 10)
        assert estimate == pytest.approx(measured_multiply_adds(model, size), rel=0.13), size


# Parameters and multiply-adds: docs/methods/baselines.md has the papers' rounded ones.
@pytest.mark.parametrize(
    ("name", "parameters_millions", "multiply_adds_billions"),
    [
        ("tf_efficientnet_b0", 5.3, 0.39),
        ("tf_efficientnet_b1", 7.8, 0.70),
        ("tf_efficientnet_b2", 9.2, 1.0),
        ("tf_efficientnet_b3", 12, 1.8),
        ("tf_efficientnet_b4", 19, 4.2),
        ("tf_efficientnet_b5", 30, 9.9),
        ("tf_efficientnet_b6", 43, 19),
        ("tf_efficientnet_b7", 66, 37),
        ("resnet50", 25.6, 4.09),
    ],
)
def test_table_is_near_the_papers(
    name: str, parameters_millions: float, multiply_adds_billions: float
) -> None:
    assert BASELINES[name].parameters / 1e6 == pytest.approx(parameters_millions, rel=0.03)
    assert BASELINES[name].multiply_adds / 1e9 == pytest.approx(multiply_adds_billions, rel=0.05)


def test_second_efficientnets_cost_what_their_authors_say_at_the_test_size() -> None:
    """google/automl efficientnetv2/README.md: 21.5 M and 8.4 B, 54.1 M and 24.7 B."""
    for name, parameters, multiply_adds in (
        ("tf_efficientnetv2_s", 21.5, 8.4),
        ("tf_efficientnetv2_m", 54.1, 24.7),
    ):
        assert BASELINES[name].parameters / 1e6 == pytest.approx(parameters, rel=0.002)
        size = BASELINES[name].test_size
        assert measured_multiply_adds(on_meta(name), size) / 1e9 == pytest.approx(multiply_adds, rel=0.01)


@pytest.mark.parametrize("name", TENSORFLOW_FORM)
def test_normalisation_and_padding_are_tensorflows(name: str) -> None:
    model = on_meta(name)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, round(layer.momentum or 0, 12)) for layer in norms} == {(1e-3, 0.01)}
    strided = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)]
    assert len(strided) == 5
    # 'SAME': half the size rounded up; on even sizes one pixel more is added after than before.
    assert {type(layer).__name__ for layer in strided} == {"Conv2dSame"}
    assert all(layer.padding == (0, 0) for layer in strided)


def test_resnet_keeps_its_own_normalisation() -> None:
    norms = [layer for layer in on_meta("resnet50").modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in norms} == {(1e-5, 0.1)}


def test_stochastic_depth_grows_by_block_and_only_where_a_shortcut_is_the_identity() -> None:
    torch.manual_seed(0)
    model = create_model("tf_efficientnet_b0", 10, dropout=0.0)
    blocks = [block for stage in model.get_submodule("blocks").children() for block in stage.children()]
    assert len(blocks) == 16
    has_identity = [block.in_channels == block.out_channels for block in _Shapes.of(model, blocks)]
    assert sum(has_identity) == 9
    for index, (block, identity) in enumerate(zip(blocks, has_identity, strict=True)):
        rate = 0.2 * index / 16
        assert getattr(block.get_submodule("drop_path"), "drop_prob", 0.0) == pytest.approx(rate)
        assert block.has_skip == identity

    # The last block with an identity: each sample's branch is there, divided by the share that stays, or not.
    index = max(index for index, identity in enumerate(has_identity) if identity)
    block, channels = blocks[index].eval(), _Shapes.of(model, blocks)[index].in_channels
    x_NCHW = torch.randn(64, channels, 4, 4)
    branch_NCHW = block(x_NCHW) - x_NCHW
    block.get_submodule("drop_path").train()
    dropped_NCHW = block(x_NCHW) - x_NCHW
    kept_N = dropped_NCHW.flatten(1).abs().amax(1) > 0
    assert 0 < kept_N.sum() < 64
    expected_NCHW = branch_NCHW[kept_N] / (1 - 0.2 * index / 16)
    torch.testing.assert_close(dropped_NCHW[kept_N], expected_NCHW, rtol=1e-4, atol=1e-5)

    # Where the shape changes nothing is dropped.
    last = blocks[15].eval()
    x_NCHW = torch.randn(8, _Shapes.of(model, blocks)[15].in_channels, 4, 4)
    expected_NCHW = last(x_NCHW)
    last.get_submodule("drop_path").train()
    assert torch.equal(last(x_NCHW), expected_NCHW)


class _Shapes:
    """Channels that go into a block and come out, and whether both and the size are the same."""

    def __init__(self, in_shape: torch.Size, out_shape: torch.Size) -> None:
        self.in_channels = in_shape[1]
        self.out_channels = out_shape[1] if in_shape[2:] == out_shape[2:] else 0

    @staticmethod
    def of(model: nn.Module, blocks: list[nn.Module]) -> list[_Shapes]:
        shapes: list[_Shapes] = []
        hooks = [
            block.register_forward_hook(lambda _b, x, y: shapes.append(_Shapes(x[0].shape, y.shape)))
            for block in blocks
        ]
        with torch.no_grad():
            model(torch.zeros(2, 3, 64, 64))
        for hook in hooks:
            hook.remove()
        return shapes


def test_initial_weights_are_drawn_as_in_tensorflow() -> None:
    """tensorflow/tpu efficientnet_model.py: N(0, 2 / fan_out), where a depthwise kernel has one output.

    The classifier is uniform, and its range depends on the classes alone.
    """
    torch.manual_seed(0)
    model = create_model("tf_efficientnet_b0", 100)
    deviations = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            scaled = layer.weight.detach() / math.sqrt(2 / fan_out)
            deviations.append((float(scaled.std()) - 1) * math.sqrt(2 * scaled.numel()))
            assert layer.bias is None or not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
    # In units of their own standard error the deviations are standard normal.
    assert len(deviations) == 81
    assert np.abs(deviations).max() < 4.5
    assert 0.7 < np.std(deviations) < 1.3
    classifier = model.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    assert 0.099 < float(classifier.weight.detach().abs().max()) <= 0.1  # 1 / sqrt(classes)
    assert not classifier.bias.any()


def test_dropout_is_on_the_pooled_vector() -> None:
    torch.manual_seed(0)
    model = create_model("tf_efficientnet_b0", 10, dropout=0.5, stochastic_depth=0.0).eval()
    seen: list[Tensor] = []
    model.get_submodule("classifier").register_forward_pre_hook(lambda _layer, x: seen.append(x[0]))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model(image)
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        model(image)
    whole, dropped = seen
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_a_step_of_training_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = create_model("tf_efficientnet_b0", 10)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 10)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_baselines_come_after_the_normaliser_free() -> None:
    names = list_models()
    assert names[-len(BASELINES) :] == list(BASELINES)
    assert all(name.startswith("nf") for name in names[: -len(BASELINES)])
    assert len(set(names)) == len(names)


def test_without_timm_a_baseline_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^model resnet50 needs timm, .*install timm, or choose an NFNet$"):
        create_model("resnet50", 10)
    create_model("nfnet_pico", 10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dropout": 1.0}, "dropout=1.0 is not allowed"),
        ({"dropout": "0.2"}, "dropout='0.2' is not allowed"),
        ({"stochastic_depth": -0.1}, "stochastic_depth=-0.1 is not allowed"),
        ({"num_classes": 0}, "num_classes=0 is not allowed"),
        ({"overrides": {"alpha": 0.1}}, "overrides alpha are not possible"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=f"^model resnet50: {words}"):
        create_model("resnet50", **settings)  # type: ignore[arg-type]


class Mine(nn.Module):
    """A network that timm does not know, whose last layer has no bias."""

    def __init__(self, num_classes: int, dropout: float, stochastic_depth: float) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.classifier = nn.Linear(4, num_classes, bias=False)
        self.norm = nn.LayerNorm(num_classes)
        self.rates = (dropout, stochastic_depth)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.norm(self.classifier(self.convolution(x_NCHW).mean((2, 3))))
        return logits


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> str:
    row = Baseline("mine", 32, 32, 0.0, 0.0, 5000, 4, 10**6, builder=f"{__name__}:Mine")
    monkeypatch.setattr("nfnet_ray.models.baselines.BASELINES", {**BASELINES, "mine": row})
    monkeypatch.setattr("nfnet_ray.models.catalogue.BASELINES", {**BASELINES, "mine": row})
    return row.name


def test_a_network_of_ones_own_is_built_by_its_builder(mine: str) -> None:
    network = create_model(mine, 7, dropout=0.1)
    assert isinstance(network, Mine)
    assert network.rates == (0.1, 0.0)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 7)


def test_a_name_that_the_clipping_cannot_leave_out_is_refused_with_the_last_layer(mine: str) -> None:
    recipe = Recipe().with_values({"model.name": mine, "optimizer.agc.exclude": ("fc.weight",)})
    network = create_model(mine, 7)
    with pytest.raises(
        UserError, match=r"names fc\.weight, which mine does not have; its last linear layer is"
    ):
        clipped_parameters(network, recipe)
    network.classifier = nn.Identity()
    with pytest.raises(
        UserError, match=r"it has convolution\.weight, convolution\.bias, norm\.weight, norm\.bias"
    ):
        clipped_parameters(network, recipe)
