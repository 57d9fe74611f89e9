"""Adaptive gradient clipping, unit by unit (Brock et al. 2021, section 4; official ``optim.py``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable

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


@torch.no_grad()
def clip_gradients_adaptively(
    parameters: Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3
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
        clip_factor: :math:`\lambda`; the paper's recipe for batch 4096 has 0.01.
        eps: :math:`\epsilon`, so that parameters that start at zero can move; official value 1e-3.

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
    groups: defaultdict[Hashable, list[Tensor]] = defaultdict(list)
    for number, parameter in enumerate(parameters):
        if parameter.grad is not None:
            alone = number if parameter.numel() > LARGEST_STACKED_VALUES else None
            groups[as_units(parameter).shape, parameter.dtype, alone].append(parameter)
    if not groups:
        return torch.zeros(())

    gradients = [[as_units(_gradient(parameter)) for parameter in group] for group in groups.values()]
    stacks = [_stacked(group) for group in gradients]  # each (tensors, units, values)
    parameter_norms = [_norms(_stacked([as_units(p) for p in group])) for group in groups.values()]
    gradient_norms = [_norms(stack) for stack in stacks]

    # All units of the network in one vector: a few kernels, however many tensors there are.
    gradient_norm = torch.cat([norms.flatten() for norms in gradient_norms])
    largest_norm = torch.cat([norms.flatten() for norms in parameter_norms]).clamp_(min=eps).mul_(clip_factor)
    too_large = gradient_norm > largest_norm
    scale = torch.where(too_large, largest_norm / gradient_norm.clamp_(min=SMALLEST_GRADIENT_NORM), 1.0)

    scales = scale.split([norms.numel() for norms in gradient_norms])
    for group, stack, norms, own in zip(gradients, stacks, gradient_norms, scales, strict=True):
        stack.mul_(own.view_as(norms).unsqueeze(-1))
        if len(group) > 1:  # a stack of one is a view of its gradient
            torch._foreach_copy_(group, list(stack.unbind()))
    return too_large.float().mean()


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
