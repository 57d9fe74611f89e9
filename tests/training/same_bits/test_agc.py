"""AGC over stacks that are found once for all steps clips as AGC tensor by tensor does, to the bit. Takes a second."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nfnet_ray.models import create_model
from nfnet_ray.optim import Units, clip_gradients_adaptively, unit_norms, unitwise_norm
from nfnet_ray.optim.agc import SMALLEST_GRADIENT_NORM
from nfnet_ray.recipe import Recipe

CLIP_FACTOR, EPS = 0.02, 1e-3
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(params=LAYOUTS, ids=str)
def parameters(request: pytest.FixtureRequest, quick: Recipe) -> list[nn.Parameter]:
    """Those of a small network, and one of three dimensions."""
    torch.manual_seed(0)
    model = create_model("nfnet_pico", 10, overrides=quick.model.overrides.chosen())
    three_dimensional = nn.Parameter(torch.randn(3, 4, 5))
    return [*model.to(memory_format=request.param).parameters(), three_dimensional]


def fill_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    """With layouts of their parameters; about half of the units are too large."""
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 0.02 * parameter.detach().abs().mean()


def tensor_by_tensor(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The clipped gradients, by the formula."""
    clipped = []
    for parameter in parameters:
        assert parameter.grad is not None
        largest = unitwise_norm(parameter.detach()).clamp(min=EPS) * CLIP_FACTOR
        norm = unitwise_norm(parameter.grad)
        scale = torch.where(norm > largest, largest / norm.clamp(min=SMALLEST_GRADIENT_NORM), 1.0)
        clipped.append(parameter.grad * scale)
    return clipped


def assert_clips_as_expected(units: Units, parameters: list[nn.Parameter]) -> None:
    expected = tensor_by_tensor(parameters)
    fraction = clip_gradients_adaptively(units, CLIP_FACTOR, EPS)
    assert 0.1 < fraction < 0.9
    for parameter, clipped in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, clipped)


def test_step_after_step_gradients_are_clipped_as_tensor_by_tensor(parameters: list[nn.Parameter]) -> None:
    units = Units(parameters)
    for seed in range(3):
        fill_gradients(parameters, seed)
        assert_clips_as_expected(units, parameters)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_of_another_layout_are_clipped(
    parameters: list[nn.Parameter], layout: torch.memory_format
) -> None:
    units = Units(parameters)
    for seed in range(2):
        fill_gradients(parameters, seed)
        for parameter in parameters[:-1]:
            if parameter.ndim == 4 and parameter.grad is not None:
                parameter.grad = parameter.grad.contiguous(memory_format=layout)
        assert_clips_as_expected(units, parameters)


def test_a_gradient_in_no_order_is_clipped_like_one_in_order(parameters: list[nn.Parameter]) -> None:
    fill_gradients(parameters, 0)
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.contiguous()
    expected = tensor_by_tensor(parameters)
    for parameter in parameters:
        if parameter.ndim == 4 and parameter.grad is not None:
            parameter.grad = parameter.grad.transpose(0, 1).contiguous().transpose(0, 1)
    clip_gradients_adaptively(Units(parameters), CLIP_FACTOR, EPS)
    for parameter, clipped in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, clipped)


def test_parameters_that_move_in_memory_are_found_again(parameters: list[nn.Parameter]) -> None:
    units = Units(parameters)
    fill_gradients(parameters, 0)
    assert_clips_as_expected(units, parameters)
    for parameter in parameters:
        before = parameter.data
        parameter.data = 3 * parameter.data
        before.zero_()
    fill_gradients(parameters, 1)
    assert_clips_as_expected(units, parameters)


def test_a_parameter_without_a_gradient_is_left_out_of_one_step_alone(parameters: list[nn.Parameter]) -> None:
    units = Units(parameters)
    fill_gradients(parameters, 0)
    all_units = unit_norms(units)
    parameters[0].grad = None
    fewer = unit_norms(units)
    fill_gradients(parameters, 0)
    again = unit_norms(units)
    assert all_units is not None
    assert fewer is not None
    assert again is not None
    assert len(fewer.gradient) == len(all_units.gradient) - len(parameters[0])
    assert torch.equal(again.gradient, all_units.gradient)
    assert again.tensors == all_units.tensors
    assert sum(units for _, units in again.tensors) == len(again.gradient)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("too_large", [0, 1, 4, 5, 64])
def test_however_few_units_are_too_large_they_alone_are_written(
    too_large: int, layout: torch.memory_format
) -> None:
    """Of a matrix, of a convolution, of two small tensors in one stack, and of one with a gradient that is infinite."""
    torch.manual_seed(0)
    convolution = torch.randn(64, 40, 3, 3).contiguous(memory_format=layout)
    values = [torch.randn(64, 300), convolution, torch.randn(64, 4), torch.randn(64, 4), torch.randn(64, 301)]
    parameters = [nn.Parameter(value) for value in values]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-4)
        parameter.grad[torch.randperm(64)[:too_large]] = 3.0
    parameters[-1].grad[7, 0] = torch.inf  # type: ignore[index]
    expected = tensor_by_tensor(parameters)
    versions = [parameter.grad._version for parameter in parameters]  # type: ignore[union-attr]
    clip_gradients_adaptively(parameters, CLIP_FACTOR, EPS)
    for parameter, clipped in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, clipped, rtol=0, atol=0, equal_nan=True)
    written = [
        parameter.grad._version != version  # type: ignore[union-attr]
        for parameter, version in zip(parameters, versions, strict=True)
    ]
    assert written == [too_large > 0] * 4 + [True]


def test_a_parameter_whose_units_are_no_view_is_normed_anew_in_every_step() -> None:
    """Of (O, I, H, W) with I outermost in memory the units are a copy, which knows nothing of the next step."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, 2, 2).transpose(0, 1))
    units = Units([weight])
    for seed in range(2):
        fill_gradients([weight], seed)
        assert weight.grad is not None
        expected = weight.grad.clone()
        for gradient, parameter in zip(expected, weight.detach(), strict=True):
            largest = CLIP_FACTOR * max(parameter.norm().item(), EPS)
            gradient *= min(1.0, largest / gradient.norm().item())
        clip_gradients_adaptively(units, CLIP_FACTOR, EPS)
        torch.testing.assert_close(weight.grad, expected)
        with torch.no_grad():
            weight.mul_(3.0)


def test_units_with_equally_many_values_share_a_stack_whatever_their_tensors_shapes() -> None:
    shapes = [(5, 12), (12,), (3, 3, 2, 2), (3, 4, 1, 3), (12,), (2, 13), ()]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    fill_gradients(parameters, 0)
    units = Units(parameters)
    assert [[place for place, _ in group.order] for group in units.groups()] == [[0, 1, 2, 3, 4], [5], [6]]
    assert_clips_as_expected(units, parameters)
