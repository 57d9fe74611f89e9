"""Weights that are standardised for many layers at once, or kept, are those of the formula, to the bit.

The formula, ``ScaledWSConv2d.standardized_weight`` with autograd's derivative, is the reference here; parity with the
official code is in ``tests/parity/test_models.py``. Takes three seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from nfnet_ray.data.batch import Batch, TrainBatch
from nfnet_ray.models import create_model, standardisation
from nfnet_ray.models.layers import ScaledWSConv2d
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.evaluation import evaluate
from nfnet_ray.training.gradient import Gradient

PIXELS, CLASSES = 16, 10


@pytest.fixture(autouse=True)
def threads_of_the_process() -> Iterator[None]:
    """Other tests find as many as before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def network(quick: Recipe) -> nn.Module:
    """A small one with gains that are not all 1, and one unit whose weights are nearly equal: below the floor."""
    return new_network(quick)


def new_network(recipe: Recipe) -> nn.Module:
    """See ``network``."""
    torch.manual_seed(3)
    model = create_model("nfnet_pico", CLASSES, overrides=recipe.model.overrides.chosen())
    for name, parameter in model.named_parameters():
        if name.endswith("gain"):
            nn.init.normal_(parameter, 1.0, 0.2)
    layer = next(layer for layer in model.modules() if isinstance(layer, ScaledWSConv2d))
    with torch.no_grad():
        layer.weight[0].mul_(1e-4).add_(0.3)
    return model


def by_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns what is tested here off."""
    monkeypatch.setattr(standardisation, "_is_possible", lambda _: False)


def outcome(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits, and the gradient of each parameter that is trained."""
    model.zero_grad()
    logits = model(images, torch.arange(len(images)))
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize(
    ("dtype", "memory_format", "threads"),
    [
        (torch.float32, torch.contiguous_format, 1),
        (torch.float32, torch.contiguous_format, 2),
        (torch.float32, torch.channels_last, 1),
        (torch.float64, torch.channels_last, 2),
    ],
    ids=str,
)
def test_logits_and_gradients_are_those_of_the_formula(
    network: nn.Module,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(threads)
    network.to(dtype).to(memory_format=memory_format)
    images = torch.randn(6, 3, PIXELS, PIXELS, dtype=dtype).contiguous(memory_format=memory_format)
    found = outcome(network, images)
    by_formula(monkeypatch)
    assert_same_bits(found, outcome(network, images))
    assert len(found) == 1 + len(list(network.parameters()))


def test_several_groups_give_what_one_gives(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, quick: Recipe
) -> None:
    images = torch.randn(6, 3, PIXELS, PIXELS)
    expected = outcome(network, images)
    monkeypatch.setattr(standardisation, "VALUES_TOGETHER", 2000)
    in_groups = new_network(quick)
    assert len(in_groups.standardisation._groups) > 3
    assert_same_bits(outcome(in_groups, images), expected)


@pytest.mark.parametrize("trained", ["classifier", "gain", "weight"])
def test_what_is_not_trained_has_no_gradient(
    network: nn.Module, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trained in name)
    images = torch.randn(4, 3, PIXELS, PIXELS)
    found = outcome(network, images)
    assert len(found) == 1 + sum(trained in name for name, _ in network.named_parameters())
    by_formula(monkeypatch)
    assert_same_bits(found, outcome(network, images))


def test_large_layers_are_standardised_as_exactly_by_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the rounding of float32 of what float64 gives; the parts are cut between units."""
    weight = torch.randn(23, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05
    expected = torch.var_mean(weight.double(), dim=(1, 2, 3), correction=71)
    for values_of_a_part in (1, 200, 1 << 20):
        monkeypatch.setattr(standardisation, "LARGEST_IN_ONE_PASS", 100)
        monkeypatch.setattr(standardisation, "VALUES_OF_A_PART", values_of_a_part)
        found = standardisation.sums_of_squares_and_means(weight)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=6e-8, atol=0.0)


def test_a_network_under_torch_func_sees_the_formula(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, parameters = torch.randn(2, 3, PIXELS, PIXELS), dict(network.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        total: Tensor = functional_call(network.eval(), values, (images,)).square().sum()
        return total

    found = grad(loss)({name: parameter.detach() for name, parameter in parameters.items()})
    by_formula(monkeypatch)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.filterwarnings("ignore")  # the paddings of this image size become constants, as in any network
def test_a_network_can_be_traced(network: nn.Module) -> None:
    """For torch.jit and ONNX's older exporter, also where nobody has switched gradients off."""
    images = torch.randn(2, 3, PIXELS, PIXELS)
    traced = torch.jit.trace(network.eval(), images)
    assert torch.equal(traced(images), network(images))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a group of layers is standardised."""
    calls: list[int] = []
    standardised = standardisation._Group.standardised

    def counting(group: standardisation._Group) -> standardisation.Standardised:
        calls.append(1)
        return standardised(group)

    monkeypatch.setattr(standardisation._Group, "standardised", counting)
    return calls


def test_weights_are_standardised_once_in_an_evaluation(
    network: nn.Module, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, size = 12, 4
    pixels = torch.randint(0, 256, (count, PIXELS, PIXELS, 3), dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    batches = [
        Batch(pixels[start : start + size], labels[start : start + size], np.arange(start, start + size))
        for start in range(0, count, size)
    ]
    with monkeypatch.context() as patches:
        by_formula(patches)
        expected = evaluate(network, batches, count, quick, PlainContext())
    calls = counted(monkeypatch)
    assert evaluate(network, batches, count, quick, PlainContext()).metrics == expected.metrics
    assert len(calls) == 1

    # The next evaluation is of the weights that the network has by then.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    again = evaluate(network, batches, count, quick, PlainContext())
    assert len(calls) == 2
    assert again.metrics != expected.metrics
    network.train()
    network(torch.randn(2, 3, PIXELS, PIXELS))
    assert len(calls) == 3


def test_half_precision_is_standardised_by_the_formula(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    network.to(torch.bfloat16)(torch.randn(2, 3, PIXELS, PIXELS, dtype=torch.bfloat16))
    assert not calls


@pytest.mark.parametrize("method", [None, "sam", "esam"])
def test_weights_are_standardised_once_for_all_micro_batches(
    network: nn.Module, quick: Recipe, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick.with_values({"batch_size": 8, "micro_batches": 4})
    if method:
        recipe = recipe.with_values({"optimizer.sam.rho": 0.05, "optimizer.sam.method": method})
    batch = TrainBatch(
        images=torch.randint(0, 256, (8, PIXELS, PIXELS, 3), dtype=torch.uint8),
        labels=torch.arange(8),
        indices=np.arange(8),
        positions=np.arange(8),
        keys=torch.arange(8),
    )

    def gradients() -> list[Tensor]:
        network.zero_grad()
        Gradient(network, recipe, PlainContext()).add(batch, 0)
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    calls = counted(monkeypatch)
    found = gradients()
    # SAM's ascent is at the weights, and its descent at others; ESAM also looks for the sharpest images there.
    assert len(calls) == {None: 1, "sam": 2, "esam": 3}[method]
    by_formula(monkeypatch)
    assert_same_bits(found, gradients())


def test_no_layer_keeps_its_standardised_weight(network: nn.Module) -> None:
    layers = [layer for layer in network.modules() if isinstance(layer, ScaledWSConv2d)]
    given = []
    layers[-1].register_forward_pre_hook(lambda layer, _: given.append(layer.given_weight))
    network(torch.randn(2, 3, PIXELS, PIXELS))
    assert given[0] is not None
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 5, PIXELS, PIXELS))
    assert [layer.given_weight for layer in layers] == [None] * len(layers)
