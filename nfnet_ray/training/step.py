"""One optimiser step. Its order is written here and nowhere else:

1. forward and loss, in the Recipe's precision,
2. backward; with several workers DistributedDataParallel averages the gradients over them,
3. adaptive gradient clipping of everything but the excluded parameters (the classifier's weight),
4. weight decay is added, then momentum, Nesterov and the update at this step's learning rate.

The clip sees the gradient of the global batch, without weight decay (official ``optim.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nfnet_ray.data.augment import normalise
from nfnet_ray.data.loader import Batch
from nfnet_ray.errors import UserError
from nfnet_ray.optim import clip_gradients_adaptively, create_sgd, warmup_cosine
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.context import Context

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class StepResult:
    """Scalars on the device: mean loss, share of correct answers, share of units that AGC clipped."""

    loss: Tensor
    top1: Tensor
    clipped_fraction: Tensor


class TrainStep:
    """Applies one batch to the model; ``number`` counts the steps done."""

    def __init__(self, model: nn.Module, recipe: Recipe, context: Context, steps_per_epoch: int) -> None:
        self.number = 0
        self.optimizer = create_sgd(model.named_parameters(), recipe.optimizer)
        self._recipe = recipe
        self._steps_per_epoch = steps_per_epoch
        self._memory_format = MEMORY_FORMATS[recipe.memory_format]
        self._autocast = torch.autocast(
            context.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
        )
        named = dict(model.named_parameters())
        agc = recipe.optimizer.agc
        unknown = [name for name in agc.exclude if name not in named]
        if unknown:
            raise UserError(
                f"optimizer.agc.exclude names {unknown[0]}, which {recipe.model.name} does not have; "
                f"its classifier is {list(named)[-2]}"
            )
        self._clipped = [p for name, p in named.items() if name not in agc.exclude]
        self._model = model
        if context.world_size > 1:
            devices = [context.device] if context.device.type == "cuda" else None
            self._model = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        schedule = self._recipe.schedule
        return warmup_cosine(
            self.number,
            peak=self._recipe.peak_learning_rate,
            warmup_steps=schedule.warmup_epochs * self._steps_per_epoch,
            total_steps=schedule.epochs * self._steps_per_epoch,
        )

    def __call__(self, batch: Batch) -> StepResult:
        images = normalise(batch.images, self._memory_format)
        with self._autocast:
            logits = self._model(images)
        smoothing = self._recipe.loss.label_smoothing
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing)

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

        agc = self._recipe.optimizer.agc
        clipped_fraction = torch.zeros((), device=loss.device)
        if agc.clip_factor is not None:
            clipped_fraction = clip_gradients_adaptively(self._clipped, agc.clip_factor, agc.eps)

        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self.number += 1

        top1 = (logits.detach().argmax(dim=1) == batch.labels).float().mean()
        return StepResult(loss.detach(), top1, clipped_fraction)
