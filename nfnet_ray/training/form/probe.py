"""How fast this machine trains a Recipe's network, and in which memory format: a few steps on random images."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import create_model
from nfnet_ray.models.catalogue import count_multiply_adds
from nfnet_ray.models.published import resolve
from nfnet_ray.models.weights.pretrained import freeze, set_training_mode
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS
from nfnet_ray.training.step import TrainStep

LARGEST_BATCH = 64  # images per second change little beyond it on a CPU
# Of a batch on a CPU, unless one image alone has more: a probe has to be quick.
LARGEST_FORWARD_MULTIPLY_ADDS = 2e9
MEASURED_STEPS = 3

logger = logging.getLogger(__name__)


def fastest_memory_format(recipe: Recipe, num_classes: int, threads: int, device: torch.device) -> str:
    """The memory format in which this device trains the Recipe's network faster; says so in the log.

    It depends on both: channels_last made NFNets 2.4 times slower and EfficientNets 1.2 to 1.3 times faster on
    an RTX 3090 (timm's results files, torch 1.12). Resets the process's generators (:func:`reset_process`).
    """
    speeds: dict[str, float] = {}
    for name in MEMORY_FORMATS:
        candidate = recipe.with_values({"memory_format": name})
        speeds[name] = measure_images_per_second(candidate, num_classes, threads, device)
    chosen = max(speeds, key=lambda name: speeds[name])
    shown = ", ".join(f"{name} {speed:.4g}" for name, speed in speeds.items())
    logger.info("memory format %s: %s images per second on %s", chosen, shown, device)
    return chosen


def measure_images_per_second(
    recipe: Recipe, num_classes: int, threads: int, device: torch.device | None = None
) -> float:
    """Training images per second of the Recipe's step on this machine, in memory, after one step to warm up.

    Takes ``device``, by default the GPU if there is one, else ``threads`` cores; the best of three steps. Raises
    MemoryError if such a step does not fit this machine.
    """
    try:
        return _measured(recipe, num_classes, threads, device)
    except RuntimeError as error:  # torch has no class of its own for a CPU's memory
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError(str(error)) from None
        raise


def _measured(recipe: Recipe, num_classes: int, threads: int, device: torch.device | None) -> float:
    resolved = resolve(recipe)
    size = resolved.data.image_size
    overrides = resolved.model.overrides.chosen()
    one_image = count_multiply_adds(resolved.model.name, size, num_classes, overrides)
    context = PlainContext(threads=threads, device=device)
    batch_size = min(resolved.batch_size, LARGEST_BATCH)
    if context.device.type == "cpu":
        batch_size = max(1, min(batch_size, int(LARGEST_FORWARD_MULTIPLY_ADDS // one_image)))
    resolved = resolved.with_values({"batch_size": batch_size, "micro_batches": 1})
    reset_process(resolved.seed, threads)
    model = create_model(
        resolved.model.name,
        num_classes=num_classes,
        dropout=resolved.model.dropout,
        stochastic_depth=resolved.model.stochastic_depth,
        overrides=overrides,
    )
    freeze(model, resolved.model)
    set_training_mode(model)
    model.to(context.device, DTYPES[resolved.precision]).to(
        memory_format=MEMORY_FORMATS[resolved.memory_format]
    )
    step = TrainStep(model, resolved, context, steps_per_epoch=1000)
    device, numbers = context.device, np.arange(batch_size)
    batch = TrainBatch(
        images=torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8, device=device),
        labels=torch.randint(0, num_classes, (batch_size,), device=device),
        indices=numbers,
        positions=numbers,
        keys=torch.arange(batch_size, device=device),
    )
    seconds = []
    for _ in range(1 + MEASURED_STEPS):
        start = time.perf_counter()
        step(batch).loss_sum.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return batch_size / min(seconds[1:])
