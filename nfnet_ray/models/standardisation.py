"""Scaled weight standardisation of many layers at once, with an explicit derivative.

There are two implementations. ``ScaledWSConv2d.standardized_weight`` is the formula, and is used by compilers and
``torch.func``. The one in this module is used in eager mode. It computes the arithmetic of the units of many layers at
once, and its backward pass reads weights and gradients as few times as possible without changing a bit of the result.
Both give the same bits, except for layers larger than ``LARGEST_IN_ONE_PASS``. The benchmark is
``benchmarks/step/standardisation.py``.
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
"""The floor of the sum of squared deviations by which weight standardisation divides (base.py's epsilon). It is not
added: adding 1e-5 to the variance instead changes the logits of F0 by 1.7e-2."""

VALUES_TOGETHER = 1 << 20
"""Layers with at most this number of weights in all share a derivative, which needs the gradients of all of them. With
4 MB, the workers of a large network can still exchange gradients during the backward pass."""
LARGEST_IN_ONE_PASS = 1 << 17
"""The number of weights above which a CPU uses two vectorised passes in float64. They are 5 times as fast as torch's
``var_mean``, which handles one value after the other. Their sums differ in the last bits of float64, of which few
remain in float32."""
VALUES_OF_A_PART = 1 << 17
"""The number of values that a thread handles at a time: in float64 they fill a core's 1 MB cache."""

DIMS = (1, 2, 3)


class Layer(Protocol):
    """The attributes of a standardised convolution that are read here, and ``given_weight``, which is written."""

    weight: nn.Parameter
    gain: nn.Parameter
    input_scale: float
    given_weight: Tensor | None


@dataclass(frozen=True)
class Standardised:
    """The standardised weights of some layers, and the vectors over all their units that the derivative needs."""

    weights: list[Tensor]
    mean: Tensor
    is_above_floor: Tensor
    """Whether the sum of squared deviations is above its floor."""
    root: Tensor
    """1 / sqrt(sum of squared deviations)."""
    input_scale: Tensor
    gain: Tensor
    """The gain times ``input_scale``."""
    scale: Tensor


class JointStandardisation:
    """Standardises the weights of all convolutions of a network together.

    :meth:`for_a_pass` sets the standardised weights of the layers for one forward pass, and :meth:`kept` keeps them for
    several passes.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._groups = _groups(layers)
        self._kept: dict[int, Standardised] | None = None

    @contextlib.contextmanager
    def kept(self) -> Generator[None]:
        """A context in which no weight changes, so that weights are standardised once, in the first pass."""
        before, self._kept = self._kept, {}
        try:
            yield
        finally:
            self._kept = before

    @contextlib.contextmanager
    def for_a_pass(self) -> Generator[None]:
        """A context in which the layers have standardised weights, or compute them by the formula."""
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
    """Layers that share a derivative."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self._input_scale = torch.zeros(0)

    def parameters(self) -> list[nn.Parameter]:
        """All weights, then all gains."""
        return [layer.weight for layer in self.layers] + [layer.gain for layer in self.layers]

    @torch.no_grad()
    def standardised(self) -> Standardised:
        """Standardises the current weights."""
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
        """The ``input_scale`` of each unit, which is copied to the device only once."""
        known = self._input_scale
        if known.shape != like.shape or known.device != like.device or known.dtype != like.dtype:
            values = [layer.input_scale for layer in self.layers for _ in range(len(layer.gain))]
            with torch.inference_mode(False):
                self._input_scale = torch.tensor(values, dtype=like.dtype, device=like.device)
        return self._input_scale


def keeping_standardised_weights(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A context in which no weight changes, so that a network standardises its weights once for all passes.

    The results are the same to the bit as if each pass standardised them.
    """
    joint = getattr(network, "standardisation", None)
    return joint.kept() if isinstance(joint, JointStandardisation) else contextlib.nullcontext()


def _groups(layers: Sequence[Layer]) -> list[_Group]:
    """Groups neighbouring layers with at most VALUES_TOGETHER weights; a larger layer is a group by itself."""
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
    """Whether the weights may be standardised here, and not by the formula.

    The formula compiles to better code, and is needed by ``torch.func`` and ``torch.jit.trace`` (and so by ONNX's older
    exporter). In half precision it rounds between its operations, which would have to be imitated.
    """
    if not groups or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch.jit.is_tracing():
        return False
    return groups[0].layers[0].weight.dtype in (torch.float32, torch.float64)


def sums_of_squares_and_means(weight: Tensor) -> tuple[Tensor, Tensor]:
    """For each unit of (units, ...) the sum of squared deviations from its mean, and the mean, (units,) each."""
    fan_in = weight[0].numel()
    is_slow = weight.device.type == "cpu" and weight.dtype == torch.float32
    if not is_slow or weight.numel() <= LARGEST_IN_ONE_PASS:
        # The divisor of the variance is fan_in - correction = 1, which gives the sum of squared deviations.
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
    """Splits vectors over the units of all layers into one for each layer, (units, 1, 1, 1)."""
    sizes = [len(weight) for weight in weights]
    return [vector.view(-1, 1, 1, 1).split(sizes) for vector in vectors]


class _Derivative(torch.autograd.Function):
    """Maps weights and gains to standardised weights that have already been computed, and has their derivative.

    The backward pass has the operations of autograd's derivative of ``standardized_weight``, in an order that gives the
    same bits.
    """

    @staticmethod
    def forward(ctx: Any, known: Standardised, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.known = known
        ctx.save_for_backward(*parameters[: len(known.weights)])
        ctx.set_materialize_grads(False)
        return tuple(weight.detach() for weight in known.weights)  # a new tensor for each pass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        known: Standardised = ctx.known
        weights: tuple[Tensor, ...] = ctx.saved_tensors
        # The gradient is None for a layer whose output was not used.
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
