"""The sums of a cohort's results over the steps of an epoch, lane by lane."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from nfnet_ray.training.agreement import EpochSums
from nfnet_ray.training.cohort.step import LaneResults


class CohortSums:
    """The sums of an epoch for all lanes. The tensors of the lanes' own EpochSums become views of these."""

    def __init__(self, lanes: Sequence[EpochSums], device: torch.device) -> None:
        self._sums_L4 = torch.zeros(len(lanes), 4, dtype=torch.float64, device=device)
        self._first_bad_step_L = torch.zeros(len(lanes), dtype=torch.float64, device=device)
        for lane, sums, first_bad_step in zip(lanes, self._sums_L4, self._first_bad_step_L, strict=True):
            lane.use(sums, first_bad_step)

    def tensors(self) -> list[torch.Tensor]:
        """The tensors of the sums. They stay the same objects."""
        return [self._sums_L4, self._first_bad_step_L]

    def add(self, result: LaneResults) -> None:
        """Adds the results of a step."""
        clipped = result.clipped_fraction * result.images
        images = torch.full_like(result.loss_sum, result.images)
        self._sums_L4 += torch.stack(
            [part.double() for part in (result.loss_sum, result.correct, clipped, images)], dim=1
        )
        bad = torch.where(result.loss_sum.isfinite(), math.inf, result.step_of_epoch)
        torch.minimum(self._first_bad_step_L, bad, out=self._first_bad_step_L)

    def mean_losses(self) -> list[float]:
        """The mean loss of each lane in this epoch so far. Waits for the device."""
        means: list[float] = (self._sums_L4[:, 0] / self._sums_L4[:, 3]).tolist()
        return means
