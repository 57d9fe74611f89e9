"""Adaptive gradient clipping of all lanes, each with its own clip factor, and the counts of the clipped units."""

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
    """Clips the gradients of all lanes, as :func:`nfnet_ray.optim.agc.clip_gradients_adaptively` clips one network's.

    ``counts`` are the ClippingCounts of the lanes. Units that are clipped here are counted there.
    """

    def __init__(
        self, layout: Layout, recipes: Sequence[AGCRecipe], counts: Sequence[ClippingCounts], like: Tensor
    ) -> None:
        self._groups = layout.clipped
        order = tuple(one for group in self._groups for one in group.order)
        self._counts = LaneClippingCounts(counts, order) if order else None
        # A lane without clipping has the factor inf, with which no gradient is too large. All lanes run the same
        # kernels, so there can be no branch for it.
        factors = [math.inf if recipe.clip_factor is None else recipe.clip_factor for recipe in recipes]
        self._factor_L1 = like.new_tensor(factors)[:, None]
        self._eps_L1 = like.new_tensor([recipe.eps for recipe in recipes])[:, None]
        self._clips_L = like.new_tensor(
            [recipe.clip_factor is not None for recipe in recipes], dtype=torch.bool
        )

    def tensors(self) -> list[Tensor]:
        """The tensors of the counts, which each call changes."""
        return self._counts.tensors() if self._counts else []

    @torch.no_grad()
    def __call__(self, gradients_LP: Tensor, weights_LP: Tensor, counts_all: Tensor) -> Tensor:
        """Clips the gradients in place. Returns the share of each lane's units that were clipped, float32 (L,).

        ``counts_all`` is a bool scalar that says whether lanes without clipping count the norms of this step, too.
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
