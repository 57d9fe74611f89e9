"""Adaptive gradient clipping of all lanes, each by its own clip factor, and the counts of what it clips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nfnet_ray.optim.agc import SMALLEST_GRADIENT_NORM
from nfnet_ray.recipe import AGCRecipe
from nfnet_ray.training.cohort.weights import Layout
from nfnet_ray.training.measurement.clipping import ClippingCounts, LaneClippingCounts


class LaneClipping:
    """Clips rows of gradients as :func:`nfnet_ray.optim.agc.clip_gradients_adaptively` does those of one network.

    ``counts`` are the lanes' own; what is counted here is counted there.
    """

    def __init__(
        self, layout: Layout, recipes: Sequence[AGCRecipe], counts: Sequence[ClippingCounts], like: Tensor
    ) -> None:
        self._groups = layout.clipped
        order = tuple(one for group in self._groups for one in group.order)
        self._counts = LaneClippingCounts(counts, order) if order else None
        # Without clipping nothing is too large. A tensor of inf, and no branch: the lanes are one program.
        factors = [math.inf if recipe.clip_factor is None else recipe.clip_factor for recipe in recipes]
        self._factor_L1 = like.new_tensor(factors)[:, None]
        self._eps_L1 = like.new_tensor([recipe.eps for recipe in recipes])[:, None]
        self._clips_L = like.new_tensor(
            [recipe.clip_factor is not None for recipe in recipes], dtype=torch.bool
        )

    def tensors(self) -> list[Tensor]:
        """The counts, which a call changes."""
        return self._counts.tensors() if self._counts else []

    @torch.no_grad()
    def __call__(self, gradients_LP: Tensor, weights_LP: Tensor, counts_all: Tensor) -> Tensor:
        """Clips in place; returns the share of the units of each lane that were clipped, float32 (L,).

        ``counts_all``, a scalar: lanes without clipping count the norms of this step, too.
        """
        if self._counts is None:
            return torch.zeros(len(gradients_LP), device=gradients_LP.device)
        units = [
            (gradients_LP[:, group.columns].unflatten(1, (-1, group.values)), group) for group in self._groups
        ]
        gradient_LU = torch.cat([torch.linalg.vector_norm(unit, dim=-1) for unit, _ in units], dim=1)
        weight_LU = torch.cat(
            [
                torch.linalg.vector_norm(
                    weights_LP[:, group.columns].unflatten(1, (-1, group.values)), dim=-1
                )
                for group in self._groups
            ],
            dim=1,
        )
        weight_LU = torch.maximum(weight_LU, self._eps_L1)
        largest_LU = weight_LU * self._factor_L1
        too_large_LU = gradient_LU > largest_LU
        self._counts.add(gradient_LU / weight_LU, too_large_LU, self._clips_L | counts_all)
        scale_LU = torch.where(too_large_LU, largest_LU / gradient_LU.clamp(min=SMALLEST_GRADIENT_NORM), 1.0)
        scales = scale_LU.split([unit.shape[1] for unit, _ in units], dim=1)
        for (unit, _), scale in zip(units, scales, strict=True):
            unit.mul_(scale[..., None])
        return too_large_LU.float().mean(dim=1)
