"""One optimiser step of all lanes, in the order of :mod:`nfnet_ray.training.step`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfnet_ray.cohorts import check_lanes
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.optim import decayed_names
from nfnet_ray.optim.ema import ema_decay
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.cohort.clipping import LaneClipping
from nfnet_ray.training.cohort.gradient import LaneGradient
from nfnet_ray.training.cohort.network import LaneNetwork
from nfnet_ray.training.cohort.optimizer import LaneOptimizer
from nfnet_ray.training.cohort.weights import LaneWeights, Layout, let_go
from nfnet_ray.training.measurement.clipping import STEPS_BETWEEN_NORMS
from nfnet_ray.training.step import TrainStep, clipped_parameters


@dataclass(frozen=True)
class Lane:
    """What a step needs of a trial.

    Not its Run, which knows what does its steps: a circle would hold a GPU's memory for a while.
    """

    recipe: ResolvedRecipe
    model: nn.Module
    """Its network, on the device."""
    step: TrainStep
    """Its own step, which is not called: its state is what a checkpoint saves."""


@dataclass(frozen=True)
class LaneResults:
    """The parts of one step in the sums of an epoch: of ``images`` images, (L,) on the device each.

    See :class:`nfnet_ray.training.step.StepResult`.
    """

    images: int
    loss_sum: Tensor
    correct: Tensor
    clipped_fraction: Tensor
    step_of_epoch: Tensor
    """A scalar, from 1."""


@dataclass(frozen=True)
class LaneRates:
    """What is different from step to step, on the device, always in the same tensors: a CUDA graph reads these.

    Learning rates (L, 1); the share of new weights in the averages of the lanes that have one, (A, 1); whether lanes
    without clipping count their norms, and the step of the epoch, scalars.
    """

    learning_L1: Tensor
    average_A1: Tensor
    counts_all: Tensor
    step_of_epoch: Tensor


class CohortStep:
    """Applies one batch to the networks of all lanes, which have done equally many steps.

    The lanes' weights, moving averages, momenta and counts become views of this object's tensors. So each lane is at
    any time what it would be alone, but for rounding, and can be saved, evaluated and reported as such. A new
    CohortStep of some of the lanes takes these over: that is how a cohort is compacted. Lanes that are to live longer
    than their cohort are :func:`released <release>`.

    Raises UserError for Recipes that cannot be one cohort.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        check_lanes([lane.recipe for lane in lanes])
        if len({lane.step.number for lane in lanes}) > 1:
            raise ValueError("lanes of a cohort have done equally many steps")
        self._steps = [lane.step for lane in lanes]
        models, recipes = [lane.model for lane in lanes], [lane.recipe for lane in lanes]
        optimizers = [recipe.optimizer for recipe in recipes]
        clipped = clipped_parameters(models[0], recipes[0])
        layout = Layout.of(models[0], list(clipped), decayed_names(models[0], recipes[0].optimizer))
        self._weights = LaneWeights(layout, models)
        self.network = LaneNetwork(models)
        self._gradient = LaneGradient(self.network, self._weights, layout, recipes)
        rows = self._weights.rows
        counts = [step.clipping_counts for step in self._steps]
        self._clip = LaneClipping(layout, [one.agc for one in optimizers], counts, rows)
        self._optimizer = LaneOptimizer(
            layout,
            optimizers,
            [step.optimizer for step in self._steps],
            [dict(model.named_parameters()) for model in models],
            rows,
        )
        averages = {number: step.average.model for number, step in enumerate(self._steps) if step.average}
        self._averaged = list(averages)
        self._averaging = [optimizers[number].ema for number in self._averaged]
        self._averages = LaneWeights(layout, list(averages.values())) if averages else None
        self._averaged_rows = torch.tensor(self._averaged, dtype=torch.int64, device=rows.device)
        self._rates = LaneRates(
            learning_L1=rows.new_zeros(len(lanes), 1),
            average_A1=rows.new_zeros(len(self._averaged), 1),
            counts_all=torch.zeros((), dtype=torch.bool, device=rows.device),
            step_of_epoch=torch.zeros((), dtype=torch.float64, device=rows.device),
        )

    @property
    def lanes(self) -> int:
        """How many there are."""
        return len(self._steps)

    @property
    def number(self) -> int:
        """The number of steps done."""
        return self._steps[0].number

    @number.setter
    def number(self, number: int) -> None:
        for step in self._steps:
            step.number = number

    @property
    def weights(self) -> dict[str, Tensor]:
        """{name: (L, ...)} of the parameters."""
        return self._weights.all()

    @property
    def averages(self) -> tuple[list[int], dict[str, Tensor]] | None:
        """The lanes that have a moving average, and {name: (of these lanes, ...)} of it; None if none has one."""
        return (self._averaged, self._averages.all()) if self._averages else None

    def __call__(self, batch: TrainBatch) -> LaneResults:
        results = self.apply(batch, self.set_rates())
        self.number += 1
        return results

    def apply(self, batch: TrainBatch, rates: LaneRates) -> LaneResults:
        """What the device does in a step with these rates; nothing else depends on the step."""
        self.network.train()
        gradients_LP, loss_LN, hit_LN = self._gradient.of(batch)
        rows = self._weights.rows
        clipped_L = self._clip(gradients_LP, rows, rates.counts_all)
        self._optimizer.step(rows, gradients_LP, rates.learning_L1)
        self._average(rates)
        return LaneResults(
            images=loss_LN.shape[1],
            loss_sum=loss_LN.sum(dim=1, dtype=torch.float64),
            correct=hit_LN.sum(dim=1),
            clipped_fraction=clipped_L,
            step_of_epoch=rates.step_of_epoch,
        )

    kind = ()
    """All steps of a cohort do the same."""
    repeats_draws = False

    @property
    def needs_warm_up(self) -> bool:
        """Whether the first step of an attempt would take longer than the others."""
        return self._weights.rows.is_cuda

    def forget_gradients(self) -> None:
        """There are none that are kept."""

    def tensors(self) -> Iterator[Tensor]:
        """All that a step changes on the device, always the same tensors."""
        yield self._weights.rows
        yield from self._optimizer.tensors()
        if self._averages:
            yield self._averages.rows
        yield from self._clip.tensors()

    def warm_up(self, batch: TrainBatch) -> None:
        """Computes gradients and throws them away, so that libraries choose their algorithms now."""
        self.network.train()
        self._gradient.of(batch)
        if batch.images.device.type == "cuda":
            torch.cuda.synchronize(batch.images.device)

    def set_rates(self) -> LaneRates:
        """The rates of the next step, brought to the device without waiting for it.

        The lanes' optimisers are told their learning rates, which their state has, and that there is a step.
        """
        self._optimizer.begin_step(self.number)
        rates = [step.learning_rate for step in self._steps]
        for step, rate in zip(self._steps, rates, strict=True):
            for group in step.optimizer.param_groups:
                group["lr"] = rate
        news = []
        for recipe in self._averaging:
            assert recipe.decay is not None
            news.append(1.0 - ema_decay(self.number, recipe.decay, recipe.warmup))
        _fill(self._rates.learning_L1, [[rate] for rate in rates])
        _fill(self._rates.average_A1, [[new] for new in news])
        self._rates.counts_all.fill_(self.number % STEPS_BETWEEN_NORMS == 0)
        self._rates.step_of_epoch.fill_(self._steps[0].step_of_epoch)
        return self._rates

    @torch.no_grad()
    def _average(self, rates: LaneRates) -> None:
        if self._averages is None:
            return
        rows = self._weights.rows
        news = rows if len(self._averaged) == self.lanes else rows.index_select(0, self._averaged_rows)
        self._averages.rows.lerp_(news, rates.average_A1)


def _fill(tensor: Tensor, numbers: Sequence[Sequence[float]]) -> None:
    """Copies numbers to a tensor on the device. torch keeps the host's copy until it has been read."""
    if numbers:
        tensor.copy_(torch.tensor(numbers, dtype=tensor.dtype, pin_memory=tensor.is_cuda), non_blocking=True)


def release(lane: Lane) -> None:
    """Gives the networks of a lane that has ended memory of their own: the cohort's is kept by none of them."""
    let_go(lane.model)
    if lane.step.average:
        let_go(lane.step.average.model)
