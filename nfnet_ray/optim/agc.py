"""Adaptive gradient clipping, unit by unit (Brock et al. 2021, section 4; official ``optim.py``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

SMALLEST_GRADIENT_NORM = 1e-6
"""Floor of the gradient norm in the divisor (official ``optim.py``, ``adaptive_grad_clip``)."""


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

    The tensors are stacked by shape, so the number of kernels grows with the number of distinct shapes
    (about 30 in NFNet-F0), not of tensors (233).

    Args:
        parameters: leaf tensors of any float dtype on one device; those without ``.grad`` are left alone.
        clip_factor: :math:`\lambda`; the paper's recipe for batch 4096 has 0.01.
        eps: :math:`\epsilon`, so that parameters that start at zero can move; official value 1e-3.

    Returns:
        The share of units that were clipped, a float32 scalar on the parameters' device (no synchronisation).

    Source: Brock et al. 2021, section 4, equation 3, and official ``optim.py``.
    """
    by_shape: defaultdict[tuple[torch.Size, torch.dtype], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape[as_units(parameter).shape, parameter.dtype].append(parameter)
    if not by_shape:
        return torch.zeros(())

    clipped, units = [], 0
    for group in by_shape.values():
        gradients = [as_units(_gradient(parameter)) for parameter in group]
        stacked_gradients = torch.stack(gradients)
        parameter_norms = torch.linalg.vector_norm(torch.stack([as_units(p) for p in group]), dim=-1)
        gradient_norms = torch.linalg.vector_norm(stacked_gradients, dim=-1)
        largest_norms = parameter_norms.clamp_(min=eps).mul_(clip_factor)
        too_large = gradient_norms > largest_norms
        scale = torch.where(too_large, largest_norms / gradient_norms.clamp(min=SMALLEST_GRADIENT_NORM), 1.0)
        torch._foreach_copy_(gradients, list(stacked_gradients.mul_(scale.unsqueeze(-1)).unbind()))
        clipped.append(too_large.sum())
        units += too_large.numel()
    return torch.stack(clipped).sum().float() / units


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
