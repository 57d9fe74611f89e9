"""Scaled weight standardisation of many layers at once, with its derivative written out.

There are two ways to standardise: ``ScaledWSConv2d.standardized_weight`` is the formula, and what a compiler and
``torch.func`` see; this one is what eager torch runs. Here the arithmetic for each unit is done once for the units of
many layers, and the backward pass goes over weights and gradients as seldom as the same bits allow. Both give the same
bits, but for the large layers of ``LARGEST_IN_ONE_PASS``. ``benchmarks/step/standardisation.py`` measures it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SQUARED_DEVIATIONS_FLOOR = 1e-4
"""The smallest sum of squared deviations that weight standardisation divides by: base.py's epsilon. It is a floor, not
a term that is added: an added 1e-5 on the variance moves the logits of F0 by 1.7e-2."""

VALUES_TOGETHER = 1 << 20
"""Layers with at most this number of weights together share their derivative, for which the gradients of all must be
there: 4 MB, so that in a large network workers still exchange gradients during the backward pass."""
LARGEST_IN_ONE_PASS = 1 << 17
"""On a CPU torch's ``var_mean`` handles one value after the other, in float64. For larger layers two vectorised passes
in float64 are 5 times as fast; their sums have other last bits, few of which are left in float32."""
VALUES_OF_A_PART = 1 << 17
"""For each thread: in float64 a core's cache of 1 MB."""

DIMS = (1, 2, 3)


class Layer(Protocol):
    """What is read of a standardised convolution, and what is written: its standardised weight."""

    weight: nn.Parameter
    gain: nn.Parameter
    input_scale: float
    given_weight: Tensor | None


@dataclass(frozen=True)
class Standardised:
    """Some layers' standardised weights, and what their derivative needs, in vectors over the units of all layers."""

    weights: list[Tensor]
    mean: Tensor
    is_above_floor: Tensor
    """Of the squared deviations."""
    root: Tensor
    """1 / the root of the squared deviations."""
    input_scale: Tensor
    gain: Tensor
    """Times ``input_scale``."""
    scale: Tensor


class JointStandardisation:
    """The standardised convolutions of one network.

    They may be given their weights for one forward pass (:meth:`for_a_pass`), and those may be kept for several
    passes (:meth:`kept`).
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._groups = _groups(layers)
        self._kept: dict[int, Standardised] | None = None

    @contextlib.contextmanager
    def kept(self) -> Generator[None]:
        """In it no weight changes, so that all are standardised once, in the first pass."""
        before, self._kept = self._kept, {}
        try:
            yield
        finally:
            self._kept = before

    @contextlib.contextmanager
    def for_a_pass(self) -> Generator[None]:
        """In it the layers have their standardised weights, or compute them if it has to be by the formula."""
        groups = self._groups if _is_possible(self._groups) else []
        try:
            for number, group in enumerate(groups):
                for layer, weight in zip(group.layers, self._weights(number, group), strict=True):
                    layer.given_weight = weight
            yield
        finally:
            for group in groups:
                for layer in group.layers:
                    layer.given_weight = None

    def _weights(self, number: int, group: _Group) -> Sequence[Tensor]:
        known = None if self._kept is None else self._kept.get(number)
        if known is None:
            known = group.standardised()
            if self._kept is not None:
                self._kept[number] = known
        parameters = group.parameters()
        if not torch.is_grad_enabled() or not any(parameter.requires_grad for parameter in parameters):
            return known.weights
        given: Sequence[Tensor] = _Derivative.apply(known, *parameters)
        return given


class _Group:
    """Layers that share their derivative."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self._input_scale = torch.zeros(0)

    def parameters(self) -> list[nn.Parameter]:
        """All weights, then all gains."""
        return [layer.weight for layer in self.layers] + [layer.gain for layer in self.layers]

    @torch.no_grad()
    def standardised(self) -> Standardised:
        """The weights as they are now, standardised."""
        weights = [layer.weight for layer in self.layers]
        found = [sums_of_squares_and_means(weight) for weight in weights]
        squared_deviations, mean = (torch.cat(of_layers) for of_layers in zip(*found, strict=True))
        input_scale = self._input_scales(mean)
        gain = input_scale * torch.cat([layer.gain for layer in self.layers])
        root = squared_deviations.clamp(min=SQUARED_DEVIATIONS_FLOOR).rsqrt_()
        scale = root * gain
        offsets, scales = _by_layer(weights, mean.neg().mul_(scale), scale)
        return Standardised(
            # (w - mean) * scale with one pass over the weights.
            [torch.addcmul(*of_layer) for of_layer in zip(offsets, weights, scales, strict=True)],
            mean,
            squared_deviations >= SQUARED_DEVIATIONS_FLOOR,
            root,
            input_scale,
            gain,
            scale,
        )

    def _input_scales(self, like: Tensor) -> Tensor:
        """``input_scale`` of each unit, brought to the device once: a step brings it nothing."""
        known = self._input_scale
        if known.shape != like.shape or known.device != like.device or known.dtype != like.dtype:
            values = [layer.input_scale for layer in self.layers for _ in range(len(layer.gain))]
            with torch.inference_mode(False):
                self._input_scale = torch.tensor(values, dtype=like.dtype, device=like.device)
        return self._input_scale


def keeping_standardised_weights(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """In it no weight changes, so that a network that standardises its weights does so once, for all its passes.

    The bits are those of passes that each standardise for themselves.
    """
    joint = getattr(network, "standardisation", None)
    return joint.kept() if isinstance(joint, JointStandardisation) else contextlib.nullcontext()


def _groups(layers: Sequence[Layer]) -> list[_Group]:
    """Neighbours with up to VALUES_TOGETHER weights; a larger layer is alone."""
    groups: list[list[Layer]] = []
    values = 0
    for layer in layers:
        values += layer.weight.numel()
        if not groups or values > VALUES_TOGETHER:
            groups.append([])
            values = layer.weight.numel()
        groups[-1].append(layer)
    return [_Group(group) for group in groups]


def _is_possible(groups: list[_Group]) -> bool:
    """A compiler makes better code of the formula, ``torch.func`` and ``torch.jit.trace`` (ONNX's older exporter, too)
    need it, and half precision rounds in between."""
    if not groups or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch.jit.is_tracing():
        return False
    return groups[0].layers[0].weight.dtype in (torch.float32, torch.float64)


def sums_of_squares_and_means(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of each unit of (units, ...): the sum of the squared deviations from its mean, and the mean; (units,) each."""
    fan_in = weight[0].numel()
    is_slow = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not is_slow or weight.numel() <= LARGEST_IN_ONE_PASS:
        # The divisor of the variance is fan_in - correction = 1: the sum of squared deviations, fan_in * var.
        return torch.var_mean(weight, dim=DIMS, correction=fan_in - 1)
    sums, means = [], []
    for part in weight.split(max(1, VALUES_OF_A_PART * torch.get_num_threads() // fan_in)):
        values = part.double()
        mean = values.sum(DIMS, keepdim=True).div_(fan_in)
        deviations = values.sub_(mean)
        sums.append(deviations.mul_(deviations).sum(DIMS).to(weight.dtype))
        means.append(mean.flatten().to(weight.dtype))
    return torch.cat(sums), torch.cat(means)


def _by_layer(weights: Sequence[Tensor], *vectors: Tensor) -> list[tuple[Tensor, ...]]:
    """Vectors over the units of all layers, as one for each layer, (units, 1, 1, 1)."""
    sizes = [len(weight) for weight in weights]
    return [vector.view(-1, 1, 1, 1).split(sizes) for vector in vectors]


class _Derivative(torch.autograd.Function):
    """Takes weights and gains to the weights that were standardised before.

    The operations of autograd's own derivative of ``standardized_weight``, in an order that gives the same bits.
    """

    @staticmethod
    def forward(ctx: Any, known: Standardised, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.known = known
        ctx.save_for_backward(*parameters[: len(known.weights)])
        ctx.set_materialize_grads(False)
        return tuple(weight.detach() for weight in known.weights)  # each pass has tensors of its own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        known: Standardised = ctx.known
        weights: tuple[Tensor, ...] = ctx.saved_tensors
        # A layer with which nothing was computed has none.
        given = [
            torch.zeros_like(weight) if gradient is None else gradient
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        of_offset = torch.cat([gradient.sum(DIMS) for gradient in given])
        of_scale = torch.cat(
            [(gradient * weight).sum(DIMS) for gradient, weight in zip(given, weights, strict=True)]
        )
        of_scale.add_(of_offset * known.mean.neg())
        of_gain = (of_scale * known.root).mul_(known.input_scale)
        of_root = of_scale.mul_(known.gain)
        of_floored = of_root.mul_(-0.5).mul_(known.root.pow(3))
        of_squares = torch.where(known.is_above_floor, of_floored, 0.0)
        of_mean = of_offset.mul_(known.scale).neg_()

        of_weights = []
        vectors = _by_layer(weights, of_squares.mul_(2.0), of_mean, known.scale)
        for weight, gradient, squares, mean, scale in zip(weights, given, *vectors, strict=True):
            of_weight = weight - weight.mean(DIMS, keepdim=True)
            of_weight.mul_(squares).add_(mean.div_(weight[0].numel())).add_(gradient * scale)
            of_weights.append(of_weight)
        results = [*of_weights, *of_gain.split([len(weight) for weight in weights])]
        is_used = 2 * [gradient is not None for gradient in gradients]
        wanted = [used and needed for used, needed in zip(is_used, ctx.needs_input_grad[1:], strict=True)]
        return None, *(result if given else None for result, given in zip(results, wanted, strict=True))
