"""One optimiser step. The order of its parts is defined here and nowhere else:

1. Compute the gradient of the mean loss over the global batch, summed over micro-batches and averaged over workers.
   With SAM this is an ascent on the first images, then a descent on all images at the perturbed weights
   (``gradient.py``).
2. Clip the gradient adaptively, except for the excluded parameters (the classifier's weight).
3. Add weight decay, then apply momentum, Nesterov and the update at this step's learning rate.
4. Update the moving average with the new weights.

AGC clips the descent gradient of the global batch, without weight decay (official ``optim.py``). The ascent gradient
is not clipped.
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
    """The contribution of one worker and one step to the sums of an epoch. The tensors are scalars on the device."""

    images: int
    """The number of images in this worker's descent: its share of the batch, or with ESAM the sharpest of them. May be
    0."""
    loss_sum: Tensor
    """The sum of the losses of these images."""
    correct: Tensor
    """The number of these images that were classified correctly."""
    clipped_fraction: Tensor
    """The share of units that AGC clipped, the same on every worker."""
    step_of_epoch: float | Tensor
    """The number of the step within the epoch, from 1."""


class TrainStep:
    """Applies one batch to the model.

    ``number`` is the number of steps done. ``clipping_counts`` counts the units that AGC clips; without AGC it records
    the norms that AGC would compare. On a GPU the rates of a step (:class:`nfnet_ray.optim.rates.Rates`) are scalars on
    the device, so that the step can be captured (``captured.py``), with the same bits as without a capture. On a CPU
    they are floats. Tests choose with ``rates_on_device``.
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
        """The number of the next step within its epoch, from 1."""
        return self.number % self._steps_per_epoch + 1

    @property
    def last_learning_rate(self) -> float:
        """The learning rate of the last step."""
        return float(self._rates_of(self.number - 1).learning_rate)

    def _rates_of(self, number: int) -> Rates:
        return rates_at(number, self._recipe, self._steps_per_epoch)

    def __call__(self, batch: TrainBatch) -> StepResult:
        result = self.apply(batch, self.set_rates())
        self.number += 1
        return result

    def set_rates(self) -> Rates:
        """Sets and returns the rates of the next step, on the device if it reads them there."""
        rates = self._rates_of(self.number)
        for group in self.optimizer.param_groups:
            group["lr"] = rates.learning_rate
        if self._device_rates is None:
            return rates
        self._device_rates.fill(rates)
        return self._device_rates.rates

    @property
    def kind(self) -> tuple[bool, bool]:
        """(whether the next step has an ascent of SAM, whether it computes norms for the counts alone).

        Steps of one kind run the same kernels.
        """
        return self._gradient.ascends_in(self.number), self._only_counts_norms

    @property
    def _clips(self) -> bool:
        return self._recipe.optimizer.agc.clip_factor is not None and len(self._clipped) > 0

    @property
    def _only_counts_norms(self) -> bool:
        return not self._clips and self.number % STEPS_BETWEEN_NORMS == 0

    def apply(self, batch: TrainBatch, rates: Rates) -> StepResult:
        """Runs a step with these rates on the device. Apart from the rates, only :attr:`kind` differs between steps."""
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
        """Computes a gradient and discards it, so that compilation and the choice of algorithms happen now.

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
        """Whether a step rewinds torch's generator, to draw the same numbers twice."""
        return self._gradient.repeats_draws

    def forget_gradients(self) -> None:
        """Releases the memory of the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that a step changes on the device, except gradients. They stay the same objects."""
        yield from self._model.parameters()
        yield from self._statistics()
        if self.average:
            yield from self.average.model.parameters()
        # Sorted, because the order in a loaded state is that of the checkpoint.
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
        """The tensors from which a step reads the Recipe's numbers and its rates. They stay the same objects."""
        if self._device_rates:
            yield from self._device_rates.tensors()
        if self._gradient.drop_rates is not None:
            yield self._gradient.drop_rates

    def unify_statistics(self) -> None:
        """Copies the running statistics of normalisation layers, if any, from the first worker to the others."""
        copy_from_first(self._statistics(), self._context)

    def own_statistics(self) -> list[Tensor]:
        """Copies of this worker's running statistics, which differ between workers within an epoch."""
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
    """{name: parameter} of the parameters that AGC clips: those that are trained and match no excluded pattern.

    Raises UserError for an excluded name or pattern that matches no parameter of the model.
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
