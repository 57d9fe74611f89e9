"""Training steps of the platform's own on random images, for the parts that measure them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.machine import Machine
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import model_of
from nfnet_ray.models.published import published_recipe, resolve
from nfnet_ray.models.weights.pretrained import set_training_mode
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.agreement import EpochSums
from nfnet_ray.training.captured import CapturedStep, Recorder
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.form.placing import place
from nfnet_ray.training.step import TrainStep

IMAGENET_CLASSES = 1000
STEPS_PER_EPOCH = 1000
"""Of the learning rate's schedule; no time depends on it."""


TINY: Mapping[str, Any] = {
    "model.overrides.width": [16, 16, 32, 32],
    "model.overrides.depth": [1, 1, 1, 1],
    "model.overrides.group_width": [8, 8, 16, 16],
}


def recipe_of(name: str, machine: Machine, **values: Any) -> ResolvedRecipe:
    """The published Recipe of a network, with other ``values``: {field, with __ for each dot: value}.

    Of a smaller NFNet where the machine has no GPU.
    """
    changes = {field.replace("__", "."): value for field, value in values.items()}
    if machine.is_small and name.startswith("nfnet_"):
        changes |= TINY
    return resolve(published_recipe(name).with_values(changes))


def usual_precision(machine: Machine) -> str:
    """What networks are trained in; a CPU without bfloat16 takes very long in it."""
    return "bfloat16" if machine.is_gpu else "float32"


def constant_rates() -> dict[str, Any]:
    """Values for :func:`recipe_of` with which every step has the same learning rate and decay of the average."""
    return {
        "schedule__shape": "staircase",
        "schedule__decay_factor": 1.0,
        "schedule__warmup_epochs": 0.0,
        "schedule__base_learning_rate": 0.1,
        "optimizer__ema__warmup": False,
        "optimizer__ema__decay": 0.99,
    }


def new_step(
    recipe: ResolvedRecipe,
    machine: Machine,
    *,
    device: torch.device | None = None,
    num_classes: int = IMAGENET_CLASSES,
    rates_on_device: bool | None = None,
) -> tuple[torch.nn.Module, TrainStep]:
    """A new network, the same for the same Recipe, and the step that trains it, on the machine's device by default.

    Sets the process's switches as a training does (``nfnet_ray/training/determinism.py``).
    """
    context = PlainContext(device=device or machine.device, threads=machine.threads)
    reset_process(recipe.seed, machine.threads)
    model = model_of(recipe.model, num_classes)
    set_training_mode(model)
    place(model, recipe, context.device)
    return model, TrainStep(model, recipe, context, STEPS_PER_EPOCH, rates_on_device=rates_on_device)


def captured_step(
    step: TrainStep, recipe: ResolvedRecipe, machine: Machine, graphs: Recorder | None
) -> CapturedStep:
    """The step as a run does it, with the sums of an epoch: captured by ``graphs``, or kernel by kernel."""
    context = PlainContext(device=machine.device, threads=machine.threads)
    return CapturedStep(step, EpochSums(context), recipe, context, graphs)


def random_batch(
    recipe: ResolvedRecipe, device: torch.device, *, seed: int = 0, num_classes: int = IMAGENET_CLASSES
) -> TrainBatch:
    """Random pixels and labels, the same on every device."""
    size, count = recipe.data.image_size, recipe.batch_size
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, num_classes, (count,), generator=generator)
    keys = torch.randint(0, 1 << 62, (count,), generator=generator)
    return TrainBatch(
        images=images.to(device),
        labels=labels.to(device),
        indices=np.arange(count),
        positions=np.arange(count),
        keys=keys.to(device),
    )
