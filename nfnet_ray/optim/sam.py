"""Sharpness-aware minimisation (SAM) and its relatives ASAM, LookSAM and ESAM, over lists of tensors.

One step of SAM computes the gradient at the weights (the ascent gradient), moves the weights along it, computes the
gradient there (the descent gradient), moves the weights back, and passes the descent gradient to the optimiser. This
module knows neither networks nor batches; ``nfnet_ray/training/gradient.py`` runs the passes. ``docs/methods/sam.md``
lists the choices that the papers leave open.

No function here waits for the device. Operations on all tensors use torch's foreach kernels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nfnet_ray.optim.foreach import add_to_all_
from nfnet_ray.recipe import SAMRecipe
from nfnet_ray.splitmix64 import GOLDEN, mix_tensor_, mixed, signed

LARGEST_NORMED_VALUES = 1 << 16
"""On a CPU the norm of a tensor with more values is computed from the norms of its parts. torch sums squares in a few
float32 accumulators, so the norm would be 1e-4 too small for 4 million values and 7e-4 for 16 million."""

_DRAWN_AT_ONCE = {"cpu": 1 << 15, "other": 1 << 22}
"""The number of entries of ESAM's mask that are hashed together: few enough for a core's cache, enough for a GPU."""


class AscentNumbers(NamedTuple):
    """The numbers of an ascent step, on the host or as scalars on the parameters' device."""

    length: float | Tensor
    """rho; for ``esam``, divided by the share of the weights that are moved."""
    eta: float | Tensor
    """The eta of ``asam``."""
    mask_start: int | Tensor
    """Where the hashes of the mask of ``esam`` start."""
    mask_limit: int | Tensor
    """For ``esam``, weights whose hash is smaller are moved."""


def ascent_numbers(recipe: SAMRecipe, seed: int) -> AscentNumbers:
    """The numbers of the ascent step with this ``seed``; a Recipe without SAM has a length of 0."""
    if recipe.method != "esam":
        return AscentNumbers(recipe.rho or 0.0, recipe.asam_eta, 0, 0)
    share = recipe.esam_weight_share
    # A hash is uniform in -2^63 .. 2^63 - 1.
    limit = min(round(share * 2.0**64), (1 << 64) - 1) - (1 << 63)
    return AscentNumbers((recipe.rho or 0.0) / share, recipe.asam_eta, signed(mixed(seed + GOLDEN)), limit)


@torch.no_grad()
def perturbation(
    parameters: Iterable[Tensor],
    gradients: Iterable[Tensor | None],
    recipe: SAMRecipe,
    *,
    seed: int = 0,
    numbers: AscentNumbers | None = None,
) -> list[Tensor]:
    r"""Computes the ascent step: how each parameter is moved before the descent gradient is computed.

    With all parameters as one vector :math:`w` and the ascent gradient :math:`g`, by ``recipe.method``:

    .. math::
        \text{sam, looksam:} \quad & \epsilon = \rho \, \frac{g}{\lVert g \rVert_2} \\
        \text{asam:} \quad & \epsilon = \rho \, \frac{T^2 g}{\lVert T g \rVert_2}, \qquad
            T_i = |w_i| + \eta \text{ for weights, } 1 \text{ for the rest} \\
        \text{esam:} \quad & \epsilon = \frac{\rho}{\beta} \, m \odot \frac{g}{\lVert g \rVert_2}, \qquad
            m_i \in \{0, 1\}, \; P(m_i = 1) = \beta

    All parameters are moved, also the classifier, gains, skip gains and biases. The norm is over all of them, without
    an epsilon; a gradient of zero gives a perturbation of zero. For ``asam``, weights are the tensors of two dimensions
    or more. The mask of ``esam`` is a hash of ``seed`` and the index of the entry, so it is the same on every worker,
    kind of device and memory format, and after a restart.

    Args:
        parameters: float32 or float64 tensors on one device.
        gradients: the gradient of each parameter, of its shape and dtype; None counts as zero.
        recipe: ``rho`` is not None; ``asam_eta`` is :math:`\eta`, ``esam_weight_share`` :math:`\beta`.
        seed: the seed of the mask of ``esam``, which has to differ from step to step.
        numbers: the numbers on the device; None: they follow from ``recipe`` and ``seed``.

    Returns:
        A new tensor for each parameter, of its shape and dtype. Norms are taken in float32, or float64 if any
        gradient is.

    >>> weight, gradient = torch.zeros(2), torch.tensor([3.0, 4.0])
    >>> perturbation([weight], [gradient], SAMRecipe(rho=0.05), seed=0)
    [tensor([0.0300, 0.0400])]

    Source: Foret et al. 2021, equation 2, and google-research/sam ``flax_training.py``; Kwon et al. 2021, with
    SamsungLabs/ASAM ``asam.py``; Liu et al. 2022, algorithm 1; Du et al. 2022, stochastic weight perturbation.
    """
    if recipe.rho is None:
        raise ValueError("a SAMRecipe without rho asks for no ascent step")
    parameters = list(parameters)
    given = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    if not given:
        return []
    length, eta, mask_start, mask_limit = numbers or ascent_numbers(recipe, seed)
    if recipe.method == "asam":
        sizes = _sizes(parameters, eta)
        scaled = torch._foreach_mul(sizes, given)
        steps = list(torch._foreach_mul(scaled, _divided(length, global_norm(scaled))))
        torch._foreach_mul_(steps, sizes)
        return steps
    steps = list(torch._foreach_mul(given, _divided(length, global_norm(given))))
    if recipe.method == "esam" and recipe.esam_weight_share < 1:
        mask = _mask(sum(step.numel() for step in steps), mask_start, mask_limit, steps[0].device)
        masks = mask.split([step.numel() for step in steps])
        torch._foreach_mul_(steps, [m.view(step.shape) for m, step in zip(masks, steps, strict=True)])
    return steps


@contextlib.contextmanager
def perturbed(parameters: Iterable[Tensor], steps: Iterable[Tensor]) -> Generator[None]:
    """A context in which the parameters are :math:`w + \\epsilon`; afterwards they are :math:`w` again, to the bit.

    The weights are saved and copied back, also after an exception: subtracting :math:`\\epsilon` would leave rounding
    errors that add up over a run. Parameters keep their storage, so DistributedDataParallel and an optimiser may hold
    them. Autograd does not record the change but does notice it, so a forward pass and its backward pass must both be
    inside the context or both outside. Autocast does not notice the change, so the bfloat16 copies of weights that it
    caches are dropped on entering and on leaving.
    """
    parameters = list(parameters)
    kept = [torch.empty_like(parameter) for parameter in parameters]
    with torch.no_grad():
        if kept:
            torch._foreach_copy_(kept, parameters)
    try:
        with torch.no_grad():
            if kept:
                torch._foreach_add_(parameters, list(steps))
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            if kept:
                torch._foreach_copy_(parameters, kept)
        torch.clear_autocast_cache()


def share_of(count: int, share: float) -> int:
    """The number of images in this share of ``count`` images, rounded up."""
    return math.ceil(share * count * (1 - 1e-12))  # 0.55 * 100 = 55.00000000000001 is meant to be whole


@torch.no_grad()
def sharpest(losses_before_N: Tensor, losses_after_N: Tensor, share: float) -> Tensor:
    """Selects ESAM's data: the images whose loss the perturbation raised most.

    These are the :math:`\\lceil \\text{share} \\cdot N \\rceil` of N images with the largest
    :math:`\\ell(w + \\epsilon) - \\ell(w)`; among equals, the earlier ones. Both losses are (N,). Returns the indices,
    int64, in ascending order. Their number depends on N alone, so the host does not wait for the device.

    Source: Du et al. 2022, sharpness-sensitive data selection; the official code rounds down instead.
    """
    rises_N = losses_after_N - losses_before_N
    order_N = torch.sort(rises_N, descending=True, stable=True).indices
    return order_N[: share_of(len(rises_N), share)].sort().values


class LookDirection:
    r"""The direction that LookSAM stores in a step with an ascent, for the steps without one.

    With all parameters as one vector, :math:`g` the ascent gradient and :math:`g_s` the descent gradient,

    .. math::  g_v = g_s - \frac{\langle g, g_s \rangle}{\lVert g \rVert^2} \, g, \qquad\qquad
               g \leftarrow g + \alpha \, \frac{\lVert g \rVert}{\lVert g_v \rVert} \, g_v

    The first equation applies in a step with an ascent (:meth:`remember`), the second in the steps between
    (:meth:`add_to_gradients`). Only the direction of :math:`g_v` is needed and stored, as float tensors of the
    parameters' shapes. It is zero where :math:`g_s` is parallel to :math:`g`.

    Source: Liu et al. 2022, algorithm 1.
    """

    def __init__(self) -> None:
        self._direction: list[Tensor] = []

    @torch.no_grad()
    def remember(self, ascent_gradients: Sequence[Tensor], descent_gradients: Sequence[Tensor]) -> None:
        """Stores the direction of the part of the descent gradient that is orthogonal to the ascent gradient.

        Neither gradient is changed. With unit vectors :math:`u = g / |g|`, :math:`v = g_s / |g_s|` and :math:`d = v -
        u`, :math:`g_v / |g_s| = v - (u v) u = d + (1 - u v) u`, and :math:`1 - u v = |d|^2 / 2`. SAM's two gradients
        are nearly parallel, so computing the inner product would lose digits by cancellation. This form needs only
        norms.
        """
        size, other_size = global_norm(ascent_gradients), global_norm(descent_gradients)
        along = list(torch._foreach_mul(list(ascent_gradients), _divided(1.0, size)))
        direction = list(torch._foreach_mul(list(descent_gradients), _divided(1.0, other_size)))
        torch._foreach_sub_(direction, along)
        # 1 - u v, also where one of the two is zero and not a unit vector.
        missing = 2.0 - (size > 0).to(size.dtype) - (other_size > 0).to(size.dtype)
        torch._foreach_mul_(along, (missing + global_norm(direction).square()) / 2)
        torch._foreach_add_(direction, along)
        left = global_norm(direction)
        # Where the vectors are parallel, the rest is only rounding.
        negligible = 16 * torch.finfo(direction[0].dtype).eps
        torch._foreach_mul_(direction, torch.where(left > negligible, 1.0 / left, 0.0))
        self._keep(direction)

    @torch.no_grad()
    def add_to_gradients(self, parameters: Iterable[Tensor], alpha: float | Tensor) -> None:
        """Adds the stored direction, scaled to ``alpha`` times the norm of the whole gradient, to ``.grad``.

        ``parameters`` are in the order of the gradients of :meth:`remember`; those without ``.grad`` are left alone.
        """
        parameters = list(parameters)
        if len(self._direction) != len(parameters):
            raise RuntimeError(
                f"LookSAM's direction is for {len(self._direction)} parameters, not {len(parameters)}: "
                "an ascent step comes first"
            )
        # A checkpoint's tensors may be on another device.
        self._direction = [d.to(p.device) for d, p in zip(self._direction, parameters, strict=True)]
        pairs = [
            (parameter.grad, direction)
            for parameter, direction in zip(parameters, self._direction, strict=True)
            if parameter.grad is not None
        ]
        if not pairs:
            return
        gradients = [gradient for gradient, _ in pairs]
        added = torch._foreach_mul([direction for _, direction in pairs], alpha * global_norm(gradients))
        torch._foreach_add_(gradients, list(added))

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The state to keep in a checkpoint, for a run that resumes between two ascent steps."""
        return {"direction": list(self._direction)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a :meth:`state_dict`."""
        self._keep(state["direction"])

    @torch.no_grad()
    def allocate(self, parameters: Sequence[Tensor]) -> None:
        """Allocates the direction, which is zero until the first ascent, and keeps these tensors from now on."""
        self._direction = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def _keep(self, direction: Sequence[Tensor]) -> None:
        """Copies a direction into the existing tensors, whose addresses a CUDA graph holds."""
        if not self._direction:
            self._direction = [part.clone() for part in direction]
        elif not direction:
            torch._foreach_zero_(self._direction)
        else:
            for kept, new in zip(self._direction, direction, strict=True):
                kept.copy_(new)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all tensors as one vector: a scalar in float32, or in float64 if any tensor is float64."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    parts = [part for tensor in tensors for part in _parts(tensor)]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts, 2, dtype=dtype)))


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Splits a tensor on a CPU into views of whole rows with at most LARGEST_NORMED_VALUES values."""
    if tensor.numel() <= LARGEST_NORMED_VALUES or tensor.device.type != "cpu":
        return (tensor,)
    return tensor.split(max(1, LARGEST_NORMED_VALUES // tensor[0].numel()))


def _divided(numerator: float | Tensor, norm: Tensor) -> Tensor:
    """``numerator / norm``, and 0 where the norm is 0."""
    # torch divides a float by a tensor in this way, so a numerator on the device gives the same bits.
    return torch.where(norm > 0, norm.reciprocal() * numerator, 0.0)


def _sizes(parameters: Sequence[Tensor], eta: float | Tensor) -> list[Tensor]:
    """The T of ASAM: the absolute value plus eta for weights, and 1 for other parameters."""
    sizes = list(torch._foreach_abs(list(parameters)))
    add_to_all_(sizes, eta)
    others = [size for size in sizes if size.ndim < 2]
    if others:
        torch._foreach_zero_(others)
        torch._foreach_add_(others, 1.0)
    return sizes


def _mask(count: int, start: int | Tensor, limit: int | Tensor, device: torch.device) -> Tensor:
    """(count,) bool: whether the hash of (start, index) is below the limit."""
    mask = torch.empty(count, dtype=torch.bool, device=device)
    at_once = _DRAWN_AT_ONCE.get(device.type, _DRAWN_AT_ONCE["other"])
    for first in range(0, count, at_once):
        state = torch.arange(first, min(first + at_once, count), device=device)
        mix_tensor_(state.mul_(signed(GOLDEN)).add_(start))
        torch.lt(state, limit, out=mask[first : first + at_once])
    return mask
