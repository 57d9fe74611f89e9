"""Adaptive gradient clipping, unit by unit (Brock et al. 2021, section 4; official ``optim.py``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_GRADIENT_NORM = 1e-6
"""Floor of the gradient norm in the divisor (official ``optim.py``, ``adaptive_grad_clip``)."""

LARGEST_STACKED_VALUES = 1 << 14
"""Above this, copying a tensor into a stack costs more than kernels of its own (benchmarks/clipping.py)."""


def as_units(tensor: Tensor) -> Tensor:
    """A view of shape (units, values of one unit).

    A unit is what AGC takes one norm of, in torch's layouts of the official rule:

    * convolution (O, I, H, W) and linear (O, I): one unit for each output, all the rest is its values;
    * scalars, vectors, and whatever squeezes to at most one dimension (also a 1x1 convolution with one
      input or one output channel): the whole tensor is one unit. So a gain or bias vector is ONE unit;
    * three dimensions: the norm runs over the first one alone (no NFNet has such a parameter).
    """
    if tensor.squeeze().ndim <= 1:
        return tensor.reshape(1, -1)
    if tensor.ndim == 3:
        return tensor.flatten(1).T
    if tensor.ndim == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)  # channels_last: this order is the one that can be viewed
    return tensor.flatten(1)


def unitwise_norm(tensor: Tensor) -> Tensor:
    """L2 norm of each unit, in a shape that broadcasts against ``tensor``.

    (O, I, H, W) gives (O, 1, 1, 1), (O, I) gives (O, 1), and one unit gives 1 in every dimension.

    >>> unitwise_norm(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
    tensor([[ 5.],
            [10.]])
    """
    norms = torch.linalg.vector_norm(as_units(tensor), dim=1)
    if tensor.squeeze().ndim > 1 and tensor.ndim == 3:
        return norms.reshape(1, *tensor.shape[1:])
    return norms.reshape([-1] + [1] * (tensor.ndim - 1) if tensor.ndim else [])


class UnitNorms(NamedTuple):
    """The norms of all units of a network, one tensor's units after the other's."""

    gradient: Tensor
    """(units,)"""
    parameter: Tensor
    """(units,), at least eps: what the gradient is compared with."""
    is_clipped: Tensor | None
    """(units,), bool; None if there is no clipping."""
    tensors: tuple[tuple[int, int], ...]
    """(place among the parameters, number of its units) of each tensor, in the order of the vectors."""


@torch.no_grad()
def clip_gradients_adaptively(
    parameters: Iterable[Tensor],
    clip_factor: float | Tensor = 0.01,
    eps: float | Tensor = 1e-3,
    observe: Callable[[UnitNorms], None] | None = None,
) -> Tensor:
    r"""Clips ``.grad`` of the parameters in place, each unit by its own parameter norm.

    For each unit with parameters :math:`p` and gradient :math:`g`,

    .. math::  g \leftarrow g \, \frac{\lambda P}{\max(G, 10^{-6})} \quad\text{where } G > \lambda P,
               \qquad P = \max(\lVert p \rVert_2, \epsilon), \; G = \lVert g \rVert_2

    and unchanged elsewhere. Call it after gradients are averaged over the global batch (after all-reduce
    and the last micro-batch) and before weight decay is added. Leave the classifier's weight out of
    ``parameters``.

    Small tensors, most of a network's 233 (NFNet-F0), are stacked by shape and share their kernels; large
    ones, where a kernel is worth its launch and a copy is not, are normed and scaled where they are. What
    lies between the norms and the scaling is done once for the units of all tensors
    (``benchmarks/clipping.py``).

    Args:
        parameters: leaf tensors of any float dtype on one device; those without ``.grad`` are left alone.
        clip_factor: :math:`\lambda`; the paper's recipe for batch 4096 has 0.01. It and ``eps`` may be scalars on the
            parameters' device, with the same result to the bit.
        eps: :math:`\epsilon`, so that parameters that start at zero can move; official value 1e-3.
        observe: called with the norms before anything is clipped; it must not change them.

    Returns:
        The share of units that were clipped, a float32 scalar on the parameters' device (no synchronisation).

    Example, with two units of which the second has a gradient that is too large:

    >>> weight = torch.nn.Parameter(torch.ones(2, 4))
    >>> weight.grad = torch.tensor([[0.01] * 4, [1.0] * 4])
    >>> clip_gradients_adaptively([weight], clip_factor=0.02)
    tensor(0.5000)
    >>> weight.grad
    tensor([[0.0100, 0.0100, 0.0100, 0.0100],
            [0.0200, 0.0200, 0.0200, 0.0200]])

    Source: Brock et al. 2021, section 4, equation 3, and official ``optim.py``.
    """
    groups = _grouped(parameters)
    if not groups:
        return torch.zeros(())

    gradients = [[as_units(_gradient(parameter)) for parameter in group.tensors] for group in groups]
    stacks = [_stacked(group) for group in gradients]  # each (tensors, units, values)
    gradient_norms = [_norms(stack) for stack in stacks]

    # All units of the network in one vector: a few kernels, however many tensors there are.
    gradient_norm = _all_units(gradient_norms)
    parameter_norm = _parameter_norm(groups, eps)
    largest_norm = parameter_norm * clip_factor
    too_large = gradient_norm > largest_norm
    if observe is not None:
        observe(UnitNorms(gradient_norm, parameter_norm, too_large, _order(groups)))
    scale = torch.where(too_large, largest_norm / gradient_norm.clamp_(min=SMALLEST_GRADIENT_NORM), 1.0)

    scales = scale.split([norms.numel() for norms in gradient_norms])
    for group, stack, norms, own in zip(gradients, stacks, gradient_norms, scales, strict=True):
        stack.mul_(own.view_as(norms).unsqueeze(-1))
        if len(group) > 1:  # a stack of one is a view of its gradient
            torch._foreach_copy_(group, list(stack.unbind()))
    return too_large.float().mean()


@torch.no_grad()
def unit_norms(parameters: Iterable[Tensor], eps: float | Tensor = 1e-3) -> UnitNorms | None:
    """The norms that :func:`clip_gradients_adaptively` compares; None if no parameter has a gradient."""
    groups = _grouped(parameters)
    if not groups:
        return None
    gradients = [
        _stacked([as_units(_gradient(parameter)) for parameter in group.tensors]) for group in groups
    ]
    gradient_norm = _all_units([_norms(stack) for stack in gradients])
    return UnitNorms(gradient_norm, _parameter_norm(groups, eps), None, _order(groups))


class _Group(NamedTuple):
    """Tensors that are stacked, and the place among the parameters and the number of units of each."""

    tensors: list[Tensor]
    order: list[tuple[int, int]]


def _grouped(parameters: Iterable[Tensor]) -> list[_Group]:
    groups: defaultdict[Hashable, _Group] = defaultdict(lambda: _Group([], []))
    for place, parameter in enumerate(parameters):
        if parameter.grad is not None:
            alone = place if parameter.numel() > LARGEST_STACKED_VALUES else None
            shape = as_units(parameter).shape
            group = groups[shape, parameter.dtype, alone]
            group.tensors.append(parameter)
            group.order.append((place, shape[0]))
    return list(groups.values())


def _parameter_norm(groups: list[_Group], eps: float | Tensor) -> Tensor:
    stacks = [_stacked([as_units(parameter) for parameter in group.tensors]) for group in groups]
    return _all_units([_norms(stack) for stack in stacks]).clamp_(min=eps)


def _all_units(norms: list[Tensor]) -> Tensor:
    return torch.cat([of_group.flatten() for of_group in norms])


def _order(groups: list[_Group]) -> tuple[tuple[int, int], ...]:
    return tuple(one for group in groups for one in group.order)


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _norms(stack: Tensor) -> Tensor:
    """(tensors, units, values) to (tensors, units)."""
    return torch.linalg.vector_norm(stack, dim=-1)


def _gradient(parameter: Tensor) -> Tensor:
    """The gradient in a layout of which :func:`as_units` is a view, so that it can be written through."""
    gradient = parameter.grad
    assert gradient is not None
    dense = gradient.is_contiguous() or (
        gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last)
    )
    if not dense:
        parameter.grad = gradient = gradient.contiguous()
    return gradient
