"""Agreement between the workers of a run within an epoch, on its mean loss and on whether to save or to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from nfnet_ray.training.checkpoints.saving import Saver
from nfnet_ray.training.collectives import add_over_workers, least_over_workers
from nfnet_ray.training.context import Context
from nfnet_ray.training.step import StepResult

# To agree, the host waits for the GPU, so it does not do it after every step. A request to stop must still be noticed
# in time.
MOST_STEPS_BETWEEN_AGREEMENTS = 16
SECONDS_BETWEEN_AGREEMENTS = 2.0


class Agreed(NamedTuple):
    """Values that are equal on all workers, so that all of them do the same next."""

    mean_loss: float
    """The mean loss of the epoch so far, over all workers."""
    should_stop: bool
    should_save: bool


class EpochSums:
    """The sums of the results of an epoch's steps, on the device. Reading them sums over all workers.

    Every image has the same weight, so an epoch's metrics do not depend on how its steps were divided over workers.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        # The loss, the correct answers, the clipped fraction times images, the images.
        self._sums = torch.zeros(4, dtype=torch.float64, device=context.device)
        self._first_bad_step = torch.full((), math.inf, dtype=torch.float64, device=context.device)

    def start_epoch(self) -> None:
        """Sets the sums to zero."""
        self._sums.zero_()
        self._first_bad_step.fill_(math.inf)

    def tensors(self) -> list[torch.Tensor]:
        """The tensors of the sums. They stay the same objects."""
        return [self._sums, self._first_bad_step]

    def add(self, result: StepResult) -> None:
        """Adds the result of a step."""
        clipped = result.clipped_fraction * result.images
        images = torch.full_like(result.loss_sum, result.images)
        self._sums += torch.stack(
            [part.double() for part in (result.loss_sum, result.correct, clipped, images)]
        )
        bad = torch.where(result.loss_sum.isfinite(), math.inf, result.step_of_epoch)
        torch.minimum(self._first_bad_step, bad.double(), out=self._first_bad_step)

    def use(self, sums: torch.Tensor, first_bad_step: torch.Tensor) -> None:
        """Continues in these tensors, which get the values so far. A cohort passes views of the sums of all lanes."""
        sums.copy_(self._sums)
        first_bad_step.copy_(self._first_bad_step)
        self._sums, self._first_bad_step = sums, first_bad_step

    def over_workers(self, *further: float) -> list[float]:
        """The four sums and further numbers, summed over the workers. Collective: every worker calls it."""
        mine = torch.tensor(further, dtype=torch.float64, device=self._context.device)
        numbers: list[float] = add_over_workers(torch.cat([self._sums, mine]), self._context).tolist()
        return numbers

    def means(self) -> dict[str, float]:
        """Means over the images of the epoch so far, on all workers. Collective: every worker calls it."""
        loss, correct, clipped, images = self.over_workers()
        return {
            "train_loss": loss / images,
            "train_top1": correct / images,
            "agc_clipped_fraction": clipped / images,
        }

    def first_bad_step(self) -> int:
        """The first step whose loss was infinite or not a number on any worker. Collective: every worker calls it."""
        return int(least_over_workers(self._first_bad_step.clone(), self._context))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """This worker's sums."""
        return {"image_sums": self._sums}

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], rank: int, batch_size: int) -> None:
        """Restores the sums of all workers. If their number has changed, the first one takes the sums of all."""
        kept = [_image_sums(state, batch_size / len(states)) for state in states]
        own = [torch.zeros(4, dtype=torch.float64)]
        if len(states) == self._context.world_size:
            own = [kept[rank]]
        elif rank == 0:
            own = kept
        self._sums.copy_(torch.stack(own).sum(0))


def _image_sums(state: Mapping[str, Any], images_per_step: float) -> torch.Tensor:
    """The sums of one worker. Older checkpoints hold sums of each step's means, which are multiplied by the images."""
    sums: torch.Tensor = state["image_sums"] if "image_sums" in state else state["sums"] * images_per_step
    return sums


class Agreement:
    """Decides when the workers agree, and collects their requests. It costs a message and, on a GPU, waiting for it.

    On a CPU the workers agree after every step. On a GPU they agree about every two seconds, and at least every 16
    steps. The number of steps until then follows from the mean time of a step over all workers, so that it is the same
    for all of them.
    """

    def __init__(self, context: Context, saver: Saver) -> None:
        self._context, self._saver = context, saver
        self._steps_to_next, self._steps, self._since = 1, 0, time.perf_counter()

    def is_due(self, is_last: bool) -> bool:
        """Whether to agree after this step. After the last step of an epoch the answer is always yes."""
        self._steps += 1
        return is_last or self._steps >= self._steps_to_next

    def reach(self, sums: EpochSums) -> Agreed:
        """Agrees with all workers; if one asks to stop or to save, all do. Collective: every worker calls it."""
        seconds = (time.perf_counter() - self._since) / max(1, self._steps)
        requests = (float(self._context.should_stop()), float(self._saver.is_due()), seconds)
        loss, _, _, images, stop, save, seconds = sums.over_workers(*requests)
        self._plan(seconds / self._context.world_size)
        return Agreed(loss / images, should_stop=stop > 0, should_save=save > 0)

    def _plan(self, seconds: float) -> None:
        """Decides when to agree next, from the time of a step in seconds."""
        if self._context.device.type != "cpu" and seconds > 0:
            affordable = int(SECONDS_BETWEEN_AGREEMENTS / seconds)
            self._steps_to_next = max(1, min(MOST_STEPS_BETWEEN_AGREEMENTS, affordable))
        self._steps, self._since = 0, time.perf_counter()
