"""One optimiser step. Its order is written here and nowhere else:

1. the gradient of the mean loss over the global batch: with SAM, ascent on the first images, then descent on all at
   the perturbed weights; over micro-batches (they add up); over workers (their mean) (``gradient.py``),
2. adaptive gradient clipping of everything but the excluded parameters (the classifier's weight),
3. weight decay is added, then momentum, Nesterov and the update at this step's learning rate,
4. the moving average takes in the new weights.

The clip sees the descent gradient of the global batch, without weight decay (official ``optim.py``); the ascent
gradient is not clipped.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.errors import UserError
from nfnet_ray.optim import (
    DeviceRates,
    ExponentialMovingAverage,
    Rates,
    Units,
    clip_gradients_adaptively,
    create_optimizer,
    fill_state,
    load_in_place,
    rates_at,
    unit_norms,
    update_weights,
)
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.collectives import copy_from_first
from nfnet_ray.training.context import Context
from nfnet_ray.training.gradient import DTYPES, Gradient
from nfnet_ray.training.measurement.clipping import STEPS_BETWEEN_NORMS, ClippingCounts


@dataclass(frozen=True)
class StepResult:
    """One worker's part in the sums of an epoch, from one step; the tensors are scalars on the device."""

    images: int
    """Images that this worker descended on: its share of the batch, with ESAM the sharpest of them; may be 0."""
    loss_sum: Tensor
    """Sum of the losses of these images."""
    correct: Tensor
    """Number of these images that were recognised."""
    clipped_fraction: Tensor
    """The share of units that AGC clipped, the same on every worker."""
    step_of_epoch: float | Tensor
    """From 1."""


class TrainStep:
    """Applies one batch to the model.

    ``number`` counts the steps done, and ``clipping_counts`` the units that AGC clips, or would be able to clip. On a
    GPU the rates of a step (:class:`nfnet_ray.optim.rates.Rates`) are scalars on the device, so that the step can be
    captured (``captured.py``) and has the same bits captured or not; on a CPU they are floats.
    ``rates_on_device`` decides otherwise, for tests.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        context: Context,
        steps_per_epoch: int,
        *,
        rates_on_device: bool | None = None,
    ) -> None:
        self.number = 0
        self.optimizer = create_optimizer(model, recipe.optimizer)
        ema = recipe.optimizer.ema
        self.average = ExponentialMovingAverage(model, ema) if ema.decay is not None else None
        self._model, self._recipe, self._context = model, recipe, context
        self._steps_per_epoch = steps_per_epoch
        clipped = clipped_parameters(model, recipe)
        self._clipped = Units(clipped.values())
        steps_between = STEPS_BETWEEN_NORMS if recipe.optimizer.agc.clip_factor is None else 1
        self.clipping_counts = ClippingCounts(model, clipped, context.device, steps_between)
        self._gradient = Gradient(model, recipe, context)
        self._device_rates: DeviceRates | None = None
        if context.device.type == "cuda" if rates_on_device is None else rates_on_device:
            self._device_rates = DeviceRates(context.device, DTYPES[recipe.precision])
            fill_state(self.optimizer)
            if recipe.optimizer.sam.rho is not None and recipe.optimizer.sam.method == "looksam":
                self._gradient.look_direction.allocate([p for p in model.parameters() if p.requires_grad])

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._rates_of(self.number).learning_rate)

    @property
    def step_of_epoch(self) -> int:
        """Of the next step, from 1."""
        return self.number % self._steps_per_epoch + 1

    @property
    def last_learning_rate(self) -> float:
        """The learning rate of the step before."""
        return float(self._rates_of(self.number - 1).learning_rate)

    def _rates_of(self, number: int) -> Rates:
        return rates_at(number, self._recipe, self._steps_per_epoch)

    def __call__(self, batch: TrainBatch) -> StepResult:
        result = self.apply(batch, self.set_rates())
        self.number += 1
        return result

    def set_rates(self) -> Rates:
        """The rates of the next step, on the device if that is where they are read."""
        rates = self._rates_of(self.number)
        for group in self.optimizer.param_groups:
            group["lr"] = rates.learning_rate
        if self._device_rates is None:
            return rates
        self._device_rates.fill(rates)
        return self._device_rates.rates

    @property
    def kind(self) -> tuple[bool, bool]:
        """What the next step does and others of the run may not: (SAM's ascent, norms for the counts alone)."""
        return self._gradient.ascends_in(self.number), self._only_counts_norms

    @property
    def _clips(self) -> bool:
        return self._recipe.optimizer.agc.clip_factor is not None and len(self._clipped) > 0

    @property
    def _only_counts_norms(self) -> bool:
        return not self._clips and self.number % STEPS_BETWEEN_NORMS == 0

    def apply(self, batch: TrainBatch, rates: Rates) -> StepResult:
        """What the device does in a step with these rates. Nothing else depends on the step but :attr:`kind`."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._gradient.add(batch, self.number, rates)

        clipped_fraction = torch.zeros((), device=losses.loss_N.device)
        if self._clips:
            clipped_fraction = clip_gradients_adaptively(
                self._clipped, rates.clip_factor, rates.agc_eps, observe=self.clipping_counts.add
            )
        elif self._only_counts_norms:
            self.clipping_counts.add(unit_norms(self._clipped, rates.agc_eps))

        if self._device_rates is None:
            self.optimizer.step()
        else:
            update_weights(self.optimizer, rates)

        if self.average:
            self.average.take(self._model, rates.average_new)
        return StepResult(
            images=len(losses.loss_N),
            loss_sum=losses.loss_N.sum(dtype=torch.float64),
            correct=losses.correct_N.sum(),
            clipped_fraction=clipped_fraction,
            step_of_epoch=rates.step_of_epoch,
        )

    @property
    def needs_warm_up(self) -> bool:
        """Whether the first step of an attempt would take longer than the others."""
        return bool(self._recipe.compile) or self._context.device.type == "cuda"

    def warm_up(self, batch: TrainBatch) -> None:
        """Computes a gradient and throws it away, so that compilation and the choice of algorithms happen now.

        Weights, generators, running statistics and LookSAM's direction do not change.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        direction = copy.deepcopy(self._gradient.look_direction.state_dict())
        devices = [self._context.device] if self._context.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            self._gradient.add(batch, step=0)
        self._gradient.look_direction.load_state_dict(direction)
        for buffer, before in buffers:
            buffer.copy_(before)
        self.optimizer.zero_grad(set_to_none=True)
        if devices:
            torch.cuda.synchronize(self._context.device)

    @property
    def repeats_draws(self) -> bool:
        """Whether a step sets torch's generator back, to draw the same again."""
        return self._gradient.repeats_draws

    def forget_gradients(self) -> None:
        """Lets go of the gradients' memory."""
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> Iterator[Tensor]:
        """All that a step changes on the device, but gradients. It is the same tensors as long as the step lives."""
        yield from self._model.parameters()
        yield from self._statistics()
        if self.average:
            yield from self.average.model.parameters()
        # In this order whatever checkpoint the state was loaded from.
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state = sorted(self.optimizer.state.get(parameter, {}).items())
                yield from (part for _, part in state if isinstance(part, Tensor))
        yield from self._gradient.look_direction.state_dict()["direction"]
        yield from self.clipping_counts.state_dict().values()

    @property
    def reads_drop_rates(self) -> bool:
        """Whether the network reads its drop rates on the device."""
        return self._gradient.drop_rates is not None

    def numbers(self) -> Iterator[Tensor]:
        """The Recipe's numbers that a step reads on the device, and its rates. It is the same tensors as well."""
        if self._device_rates:
            yield from self._device_rates.tensors()
        if self._gradient.drop_rates is not None:
            yield self._gradient.drop_rates

    def unify_statistics(self) -> None:
        """Gives all workers the running statistics of the first one's normalisation layers, if there are any."""
        copy_from_first(self._statistics(), self._context)

    def own_statistics(self) -> list[Tensor]:
        """This worker's running statistics, which within an epoch are not those of the others."""
        return [statistic.clone() for statistic in self._statistics()]

    def load_own_statistics(self, statistics: Sequence[Tensor]) -> None:
        """Restores :meth:`own_statistics`."""
        for own, kept in zip(self._statistics(), statistics, strict=True):
            own.copy_(kept)

    def _statistics(self) -> list[Tensor]:
        averages = self.average.model.buffers() if self.average else ()
        return [*self._model.buffers(), *averages]

    def state_dict(self) -> dict[str, Any]:
        """The state to save in a checkpoint, next to the model's weights."""
        return {
            "number": self.number,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "look_direction": self._gradient.look_direction.state_dict(),
            "clipping_counts": self.clipping_counts.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a :meth:`state_dict`."""
        self.number = state["number"]
        load_in_place(self.optimizer, state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self._gradient.look_direction.load_state_dict(state["look_direction"])
        if "clipping_counts" in state:  # older checkpoints have none
            self.clipping_counts.load_state_dict(state["clipping_counts"])


def clipped_parameters(model: nn.Module, recipe: Recipe) -> dict[str, nn.Parameter]:
    """{name: parameter} of those that AGC clips: those that are trained and match no excluded name or pattern.

    Raises UserError for an excluded name or pattern that fits no parameter of the model.
    """
    agc, named = recipe.optimizer.agc, dict(model.named_parameters())
    excluded = {pattern: fnmatch.filter(named, pattern) for pattern in agc.exclude}
    unknown = [pattern for pattern, names in excluded.items() if not names]
    if unknown and agc.clip_factor is not None:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        known = f"its last linear layer is {linear[-1]}.weight" if linear else f"it has {', '.join(named)}"
        raise UserError(
            f"optimizer.agc.exclude names {unknown[0]}, which {recipe.model.label} does not have; {known}"
        )
    kept = named.keys() - set(itertools.chain.from_iterable(excluded.values()))
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad and name in kept}
