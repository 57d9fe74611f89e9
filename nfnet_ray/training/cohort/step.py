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
    """The parts of a trial that a :class:`CohortStep` needs.

    A Lane does not hold the trial's Run. The Run holds the captured step, so they would form a reference cycle, which
    keeps a GPU's memory until the garbage collector finds it.
    """

    recipe: ResolvedRecipe
    model: nn.Module
    """The trial's network, on the device."""
    step: TrainStep
    """The trial's own step. It is never called, but a checkpoint saves its state."""


@dataclass(frozen=True)
class LaneResults:
    """The contributions of one step on ``images`` images to the sums of an epoch, as tensors (L,) on the device.

    The fields are those of :class:`nfnet_ray.training.step.StepResult`.
    """

    images: int
    loss_sum: Tensor
    correct: Tensor
    clipped_fraction: Tensor
    step_of_epoch: Tensor
    """The number of the step within the epoch, from 1: a scalar."""


@dataclass(frozen=True)
class LaneRates:
    """The values that differ from step to step. The tensors stay the same objects, since a CUDA graph reads them."""

    learning_L1: Tensor
    """The learning rates, (L, 1)."""
    average_A1: Tensor
    """The share of the new weights in the moving average, (A, 1), for the A lanes that have an average."""
    counts_all: Tensor
    """Whether lanes without clipping count the norms of this step: a bool scalar."""
    step_of_epoch: Tensor
    """The number of the step within the epoch, from 1: a float64 scalar."""


class CohortStep:
    """Applies one batch to the networks of all lanes, which must have done the same number of steps.

    The lanes' weights, moving averages, momenta and counts become views of this object's tensors. So each lane always
    has the state that it would have alone, except for rounding, and can be saved, evaluated and reported like a single
    trial. To leave out lanes that have ended, make a new CohortStep of the others, which copies their state. Call
    :func:`release` for a lane whose networks are still used after that.

    Raises UserError for Recipes that cannot form a cohort.
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
        """The number of lanes."""
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
        """(numbers of the lanes with a moving average, {name: (A, ...)} of their averages); None without averages."""
        return (self._averaged, self._averages.all()) if self._averages else None

    def __call__(self, batch: TrainBatch) -> LaneResults:
        results = self.apply(batch, self.set_rates())
        self.number += 1
        return results

    def apply(self, batch: TrainBatch, rates: LaneRates) -> LaneResults:
        """Runs a step with these rates on the device. Steps differ only in their rates."""
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
    """All steps of a cohort run the same kernels."""
    repeats_draws = False

    @property
    def needs_warm_up(self) -> bool:
        """Whether the first step of an attempt would take longer than the others."""
        return self._weights.rows.is_cuda

    def forget_gradients(self) -> None:
        """Does nothing: no gradients are kept from one step to the next."""

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that a step changes on the device. They stay the same objects."""
        yield self._weights.rows
        yield from self._optimizer.tensors()
        if self._averages:
            yield self._averages.rows
        yield from self._clip.tensors()

    def warm_up(self, batch: TrainBatch) -> None:
        """Computes gradients and discards them, so that libraries choose their algorithms now."""
        self.network.train()
        self._gradient.of(batch)
        if batch.images.device.type == "cuda":
            torch.cuda.synchronize(batch.images.device)

    def set_rates(self) -> LaneRates:
        """Sets and returns the rates of the next step, on the device, without waiting for it.

        Also writes the learning rates and the number of the step into the lanes' optimisers, whose state is saved.
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
    """Copies numbers to a tensor on the device. torch keeps the pinned copy alive until the device has read it."""
    if numbers:
        tensor.copy_(torch.tensor(numbers, dtype=tensor.dtype, pin_memory=tensor.is_cuda), non_blocking=True)


def release(lane: Lane) -> None:
    """Copies the networks of a lane into separate tensors, so that they do not keep the cohort's memory alive."""
    let_go(lane.model)
    if lane.step.average:
        let_go(lane.step.average.model)
