"""Adaptive gradient clipping, unit by unit (Brock et al. 2021, section 4; official ``optim.py``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

SMALLEST_GRADIENT_NORM = 1e-6
"""Floor of the gradient norm in the divisor (official ``optim.py``, ``adaptive_grad_clip``)."""

LARGEST_STACKED_VALUES = 1 << 14
"""Above this, copying a tensor into a stack costs more than kernels of its own (benchmarks/clipping.py)."""

LARGEST_SHARE_OF_ROWS = 1 / 16
"""Above this share of units, scaling a whole tensor costs less on a CPU than scaling these units alone (n = 9, one core
of an Intel Xeon: with 5% of the units 0.2 to 0.3 of the time for matrices of over 100,000 values, with 25% 1.2 to 3).
"""


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


class _Group(NamedTuple):
    """Parameters that are stacked."""

    tensors: list[Tensor]
    views: list[Tensor]
    """The same, as :func:`as_units`."""
    order: list[tuple[int, int]]
    """The place among all parameters and the number of units of each."""

    @property
    def unit_shape(self) -> torch.Size:
        """(units, values of one unit) of each."""
        return self.views[0].shape


class Units:
    """Parameters of which it is known how they are stacked, for step after step.

    It can be given to the functions of this module in place of the parameters. To find out takes longer than all else
    that they do for a small network (``benchmarks/clipping.py``). It is found out again when a parameter has another
    place in memory, or others than before have a gradient.
    """

    def __init__(self, parameters: Iterable[Tensor] | Tensor) -> None:
        # A tensor is iterable itself: its rows, which have no gradients.
        self._parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        self._known_for: list[int | None] = []
        self._groups: list[_Group] = []
        self.order: tuple[tuple[int, int], ...] = ()
        """That of :attr:`UnitNorms.tensors`."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def device(self) -> torch.device | None:
        """Of the parameters; None if there are none."""
        return self._parameters[0].device if self._parameters else None

    def groups(self) -> list[_Group]:
        """Those that have a gradient, in stacks."""
        here = [None if parameter.grad is None else parameter.data_ptr() for parameter in self._parameters]
        if here != self._known_for:
            self._known_for, self._groups = here, self._found()
            self.order = tuple(one for group in self._groups for one in group.order)
        return self._groups

    def _found(self) -> list[_Group]:
        groups: defaultdict[Hashable, _Group] = defaultdict(lambda: _Group([], [], []))
        for place, parameter in enumerate(self._parameters):
            if parameter.grad is not None and parameter.numel():
                alone = place if parameter.numel() > LARGEST_STACKED_VALUES else None
                view = as_units(parameter.detach())
                group = groups[parameter.shape, parameter.dtype, alone]
                group.tensors.append(parameter)
                group.views.append(view)
                group.order.append((place, view.shape[0]))
        return list(groups.values())


@torch.no_grad()
def clip_gradients_adaptively(
    parameters: Iterable[Tensor] | Tensor,
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
    (``benchmarks/clipping.py``). On a CPU, where the host can look at the norms without waiting, a tensor of
    which no unit is clipped is not written.

    Args:
        parameters: leaf tensors of any float dtype on one device, or one of them; those without ``.grad`` are left
            alone. For step after step :class:`Units` of them.
        clip_factor: :math:`\lambda`; the paper's recipe for batch 4096 has 0.01. It and ``eps`` may be scalars on the
            parameters' device, with the same result to the bit; then the host looks at no value.
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
    units = _units(parameters)
    groups = units.groups()
    if not groups:
        return torch.zeros((), device=units.device)

    gradients = [_gradients(group) for group in groups]
    stacks = [_stacked(of_group, group.unit_shape) for of_group, group in zip(gradients, groups, strict=True)]
    gradient_norms = [_norms(stack) for stack in stacks]

    # All units of the network in one vector: a few kernels, however many tensors there are.
    gradient_norm = _all_units(gradient_norms)
    parameter_norm = _parameter_norm(groups, eps)
    largest_norm = parameter_norm * clip_factor
    too_large = gradient_norm > largest_norm
    if observe is not None:
        observe(UnitNorms(gradient_norm, parameter_norm, too_large, units.order))
    scale = torch.where(too_large, largest_norm / gradient_norm.clamp_(min=SMALLEST_GRADIENT_NORM), 1.0)

    sizes = [norms.numel() for norms in gradient_norms]
    may_look = too_large.device.type == "cpu" and not isinstance(clip_factor, Tensor)
    counts = _counts(too_large, sizes) if may_look else [None] * len(sizes)
    for of_group, stack, own, count in zip(gradients, stacks, scale.split(sizes), counts, strict=True):
        if count == 0:
            continue
        if len(of_group) == 1 and count is not None and count <= LARGEST_SHARE_OF_ROWS * len(own):
            rows = own.ne(1.0).nonzero().flatten()
            stack[0, rows] *= own[rows, None]
            continue
        stack.mul_(own.view(*stack.shape[:-1], 1))
        if len(of_group) > 1:  # a stack of one is a view of its gradient
            torch._foreach_copy_(of_group, stack.view(len(of_group), *of_group[0].shape).unbind())
    return too_large.float().mean()


@torch.no_grad()
def unit_norms(parameters: Iterable[Tensor] | Tensor, eps: float | Tensor = 1e-3) -> UnitNorms | None:
    """The norms that :func:`clip_gradients_adaptively` compares; None if no parameter has a gradient."""
    units = _units(parameters)
    groups = units.groups()
    if not groups:
        return None
    gradient_norm = _all_units([_norms(_stacked(_gradients(group), group.unit_shape)) for group in groups])
    return UnitNorms(gradient_norm, _parameter_norm(groups, eps), None, units.order)


def _parameter_norm(groups: list[_Group], eps: float | Tensor) -> Tensor:
    return _all_units([_norms(_stacked(group.views, group.unit_shape)) for group in groups]).clamp_(min=eps)


def _counts(is_clipped: Tensor, sizes: Sequence[int]) -> list[int]:
    """How many units of each group are clipped."""
    ends = torch.tensor([size - 1 for size in accumulate(sizes)])
    return [after - before for before, after in pairwise([0, *is_clipped.cumsum(0)[ends].tolist()])]


def _all_units(norms: list[Tensor]) -> Tensor:
    return torch.cat([of_group.flatten() for of_group in norms])


def _units(parameters: Iterable[Tensor] | Tensor) -> Units:
    return parameters if isinstance(parameters, Units) else Units(parameters)


def _stacked(tensors: list[Tensor], unit_shape: torch.Size) -> Tensor:
    """(tensors, units, values), a view if there is one tensor."""
    stack = tensors[0] if len(tensors) == 1 else torch.stack(tensors)
    return stack.view(len(tensors), *unit_shape)


def _norms(stack: Tensor) -> Tensor:
    """(tensors, units, values) to (tensors, units)."""
    return torch.linalg.vector_norm(stack, dim=-1)


def _gradients(group: _Group) -> list[Tensor]:
    """The gradients of a group, as they are or as :func:`as_units`: in a layout that can be viewed as units."""
    gradients = [cast(Tensor, parameter.grad) for parameter in group.tensors]
    if gradients[0].ndim != 3 and all(gradient.is_contiguous() for gradient in gradients):
        return gradients
    return [as_units(_dense_gradient(parameter)) for parameter in group.tensors]


def _dense_gradient(parameter: Tensor) -> Tensor:
    """The gradient in a layout of which :func:`as_units` is a view, so that it can be written through."""
    gradient = parameter.grad
    assert gradient is not None
    dense = gradient.is_contiguous() or (
        gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last)
    )
    if not dense:
        parameter.grad = gradient = gradient.contiguous()
    return gradient
