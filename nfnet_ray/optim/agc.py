"""Adaptive gradient clipping, unit by unit (Brock et al. 2021, section 4; official ``optim.py``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

SMALLEST_GRADIENT_NORM = 1e-6
"""Floor of the gradient norm in the divisor (official ``optim.py``, ``adaptive_grad_clip``)."""

LARGEST_STACKED_VALUES = 1 << 14
"""A tensor with more values is clipped by separate kernels: to copy it into a stack would cost more
(benchmarks/clipping.py)."""

LARGEST_SHARE_OF_ROWS = 1 / 16
"""If more than this share of a tensor's units is clipped, a CPU scales the whole tensor, and otherwise only these
units. Scaling single units takes 0.2 to 0.3 of the time for 5% of the units, and 1.2 to 3 times as long for 25%
(matrices of over 100,000 values, n = 9, one core of an Intel Xeon)."""


def as_units(tensor: Tensor) -> Tensor:
    """Returns a view of shape (units, values of one unit).

    AGC takes one norm of each unit. In torch's layouts the official rule is:

    * convolution (O, I, H, W) and linear (O, I): one unit for each output;
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
    """The norms of all units of a network, tensor after tensor."""

    gradient: Tensor
    """(units,)"""
    parameter: Tensor
    """(units,), at least eps."""
    is_clipped: Tensor | None
    """(units,), bool; None if there is no clipping."""
    tensors: tuple[tuple[int, int], ...]
    """(index among the parameters, number of units) of each tensor, in the order of the vectors."""


class _Group(NamedTuple):
    """Parameters whose units all have the same number of values, so that the units fit into one stack."""

    tensors: list[Tensor]
    views: list[Tensor]
    """The tensors as :func:`as_units`."""
    strides: list[tuple[int, ...] | None]
    """The strides of each parameter; None if its units are a copy, because its layout has no such view."""
    order: list[tuple[int, int]]
    """For each tensor (index among all parameters, number of units)."""


class Units:
    """Parameters together with the way in which they are stacked, which is remembered from step to step.

    The functions of this module accept it in place of the parameters. For a small network, working out the stacks takes
    longer than everything else that these functions do (``benchmarks/clipping.py``). They are worked out again when a
    parameter has moved in memory or when other parameters than before have a gradient. If the units of a parameter are
    a copy, which the next step would find out of date, that happens in every step.
    """

    def __init__(self, parameters: Iterable[Tensor] | Tensor) -> None:
        # A tensor is iterable itself: its rows, which have no gradients.
        self._parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        self._known_for: list[int | None] = []
        self._groups: list[_Group] = []
        self.order: tuple[tuple[int, int], ...] = ()
        """The value of :attr:`UnitNorms.tensors`."""
        self._last_units = torch.zeros(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def device(self) -> torch.device | None:
        """The device of the parameters; None if there are none."""
        return self._parameters[0].device if self._parameters else None

    def groups(self) -> list[_Group]:
        """The parameters that have a gradient, grouped for stacking."""
        here = [None if parameter.grad is None else parameter.data_ptr() for parameter in self._parameters]
        if here != self._known_for:
            self._groups = self._found()
            are_views = all(strides is not None for group in self._groups for strides in group.strides)
            self._known_for = here if are_views else []
            self.order = tuple(one for group in self._groups for one in group.order)
            ends = accumulate(units for _, units in self.order)
            self._last_units = torch.tensor([end - 1 for end in ends], dtype=torch.int64)
        return self._groups

    def _found(self) -> list[_Group]:
        groups: defaultdict[Hashable, _Group] = defaultdict(lambda: _Group([], [], [], []))
        for place, parameter in enumerate(self._parameters):
            if parameter.grad is not None and parameter.numel():
                alone = place if parameter.numel() > LARGEST_STACKED_VALUES else None
                view = as_units(parameter.detach())
                group = groups[view.shape[1], parameter.dtype, alone]
                group.tensors.append(parameter)
                group.views.append(view)
                is_view = view.data_ptr() == parameter.data_ptr()
                group.strides.append(parameter.stride() if is_view else None)
                group.order.append((place, view.shape[0]))
        return list(groups.values())

    def counts(self, is_clipped: Tensor) -> list[int]:
        """The number of clipped units of each tensor, in the order of :attr:`order`. ``is_clipped`` is on a CPU."""
        up_to = is_clipped.cumsum(0)[self._last_units].tolist()
        return [after - before for before, after in pairwise([0, *up_to])]


@torch.no_grad()
def clip_gradients_adaptively(
    parameters: Iterable[Tensor] | Tensor,
    clip_factor: float | Tensor = 0.01,
    eps: float | Tensor = 1e-3,
    observe: Callable[[UnitNorms], None] | None = None,
) -> Tensor:
    r"""Clips the parameters' ``.grad`` in place, each unit by the norm of its parameters.

    For each unit with parameters :math:`p` and gradient :math:`g`,

    .. math::  g \leftarrow g \, \frac{\lambda P}{\max(G, 10^{-6})} \quad\text{where } G > \lambda P,
               \qquad P = \max(\lVert p \rVert_2, \epsilon), \; G = \lVert g \rVert_2

    and unchanged elsewhere. Call it after gradients are averaged over the global batch (after all-reduce
    and the last micro-batch) and before weight decay is added. Leave the classifier's weight out of
    ``parameters``.

    Most of a network's tensors (233 in NFNet-F0) are small. Their units are stacked by their number of values, the
    gradients and the parameters in one stack, and share kernels. A large tensor is not copied; it has separate kernels
    for its norms and for its scaling. Everything between the norms and the scaling is computed once, for the units of
    all tensors (``benchmarks/clipping.py``). On a CPU, where the host reads the norms without waiting, a tensor without
    a clipped unit is not written.

    Args:
        parameters: leaf tensors of any float dtype on one device, or a single tensor. Tensors without ``.grad`` are
            left alone. A training loop passes :class:`Units`, which remembers how they are stacked.
        clip_factor: :math:`\lambda`; the paper's recipe for batch 4096 has 0.01. This and ``eps`` may be scalars on
            the parameters' device. The result is the same to the bit, and the host does not wait for the device.
        eps: :math:`\epsilon`, so that parameters that start at zero can move; the official value is 1e-3.
        observe: a function that is called with the norms before anything is clipped; it must not change them.

    Returns:
        The share of units that were clipped, a float32 scalar on the parameters' device (no synchronisation).

    In this example the gradient of the second of two units is too large:

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

    may_look = groups[0].tensors[0].device.type == "cpu" and not isinstance(clip_factor, Tensor)
    stacks = [_stacked(group, keep=not may_look) for group in groups]
    # All units of the network in one vector: a few kernels, however many tensors there are.
    gradient_norm, parameter_norm = _all_norms(stacks, eps)
    largest_norm = parameter_norm * clip_factor
    too_large = gradient_norm > largest_norm
    if observe is not None:
        observe(UnitNorms(gradient_norm, parameter_norm, too_large, units.order))
    scale = torch.where(too_large, largest_norm / gradient_norm.clamp_(min=SMALLEST_GRADIENT_NORM), 1.0)

    if may_look:
        gradients = [gradient for stack in stacks for gradient in stack.gradients]
        _scale_clipped(gradients, scale, units.counts(too_large))
    else:
        _scale_all(stacks, scale)
    return too_large.float().mean()


@torch.no_grad()
def unit_norms(parameters: Iterable[Tensor] | Tensor, eps: float | Tensor = 1e-3) -> UnitNorms | None:
    """The norms that :func:`clip_gradients_adaptively` compares; None if no parameter has a gradient."""
    units = _units(parameters)
    stacks = [_stacked(group, keep=False) for group in units.groups()]
    if not stacks:
        return None
    return UnitNorms(*_all_norms(stacks, eps), is_clipped=None, tensors=units.order)


class _Stack(NamedTuple):
    """The gradients of a group."""

    gradients: list[Tensor]
    """Views as :func:`as_units`, through which the gradients are written."""
    kept: Tensor | None
    """(units, values): all gradients in one tensor, or the gradient itself if there is only one."""
    gradient_norm: Tensor
    """(units,)"""
    parameter_norm: Tensor
    """(units,)"""


def _stacked(group: _Group, keep: bool) -> _Stack:
    """Stacks a group and takes its norms. Without ``keep`` the memory of the stack is free for the next one, while the
    CPU still has it in its cache."""
    gradients = _gradients(group)
    if len(gradients) == 1:
        return _Stack(gradients, gradients[0], _norms(gradients[0]), _norms(group.views[0]))
    both = torch.cat([*gradients, *group.views])
    units = len(both) // 2
    return _Stack(gradients, both[:units] if keep else None, *_norms(both).split(units))


def _all_norms(stacks: list[_Stack], eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """The norms of gradients and parameters, each (units,), stack after stack. The latter are at least ``eps``."""
    parameter_norm = torch.cat([stack.parameter_norm for stack in stacks])
    return torch.cat([stack.gradient_norm for stack in stacks]), parameter_norm.clamp_(min=eps)


def _norms(stack: Tensor) -> Tensor:
    """(units, values) to (units,)."""
    return torch.linalg.vector_norm(stack, dim=1)


def _scale_clipped(gradients: list[Tensor], scale: Tensor, counts: list[int]) -> None:
    """Scales the gradients that have a clipped unit; ``counts`` has the number of clipped units of each gradient."""
    start = 0
    for gradient, count in zip(gradients, counts, strict=True):
        end = start + len(gradient)
        if count:
            own = scale[start:end]
            if gradient.numel() > LARGEST_STACKED_VALUES and count <= LARGEST_SHARE_OF_ROWS * len(own):
                rows = own.ne(1.0).nonzero().flatten()
                gradient[rows] *= own[rows, None]
            else:
                gradient.mul_(own[:, None])
        start = end


def _scale_all(stacks: list[_Stack], scale: Tensor) -> None:
    """Scales all gradients. The host reads no number, since a GPU may not have computed it yet."""
    of_stacks = scale.split([len(stack.gradient_norm) for stack in stacks])
    for (gradients, stack, *_), own in zip(stacks, of_stacks, strict=True):
        assert stack is not None
        stack.mul_(own[:, None])
        if len(gradients) > 1:
            torch._foreach_copy_(gradients, stack.split([len(gradient) for gradient in gradients]))


def _units(parameters: Iterable[Tensor] | Tensor) -> Units:
    return parameters if isinstance(parameters, Units) else Units(parameters)


def _gradients(group: _Group) -> list[Tensor]:
    """The gradients of a group as views like :func:`as_units`; a gradient whose layout has no such view is copied."""
    gradients = []
    for parameter, view, strides in zip(group.tensors, group.views, group.strides, strict=True):
        gradient = cast(Tensor, parameter.grad)
        if gradient.stride() == strides:  # the usual case: the parameter's view fits
            gradients.append(gradient.as_strided(view.shape, view.stride()))
        else:
            gradients.append(as_units(_dense_gradient(parameter)))
    return gradients


def _dense_gradient(parameter: Tensor) -> Tensor:
    """The parameter's gradient, which is first made dense if :func:`as_units` would be a copy of it."""
    gradient = parameter.grad
    assert gradient is not None
    dense = gradient.is_contiguous() or (
        gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last)
    )
    if not dense:
        parameter.grad = gradient = gradient.contiguous()
    return gradient
