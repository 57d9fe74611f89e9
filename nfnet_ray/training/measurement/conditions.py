"""Under which conditions a worker trains and evaluates: what has to be alike in two runs that are compared.

The Recipe leaves some of it to the network and the machine. What was chosen is known to the worker alone, so it tells
the journal with the first epoch that it finishes (``conditions``, :mod:`nfnet_ray.tracking.conditions`).
"""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import torch

from nfnet_ray.processor import processor_name
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.context import Context


def conditions_text(
    recipe: ResolvedRecipe, context: Context, lanes: int | None = None, step: str | None = None
) -> str:
    """The conditions of this worker as JSON.

    ``lanes`` is the size of the cohort, if there is one. ``step`` says how a GPU does its steps.

    ``device`` is the GPU's or the processor's name; ``eval_size``, ``image_size``, ``precision``, ``memory_format``,
    ``compile`` and ``grouped_convolutions`` are those that the run uses on it; ``workers`` those that train together
    now.
    """
    is_cuda = context.device.type == "cuda"
    averaged = recipe.optimizer.ema.decay is not None
    conditions: dict[str, Any] = {
        "device": device_name(context.device),
        "workers": context.world_size,
        "lanes": lanes,
        "threads": context.threads,
        "precision": recipe.precision,
        "memory_format": recipe.memory_format,
        "compile": recipe.compile,
        "grouped_convolutions": recipe.grouped_convolutions,
        "step": step,
        "image_size": recipe.data.image_size,
        "eval_size": recipe.data.eval_size,
        "eval_crop": recipe.data.eval_crop,
        "averaging": "moving average" if averaged else "none",
        "test_time_augmentation": "none",
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if is_cuda else None,
        "timm": timm_version(),
    }
    return json.dumps({name: value for name, value in conditions.items() if value is not None})


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of this machine's processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def timm_version() -> str | None:
    """The version of timm, whose modules the baselines are; None where it is not installed."""
    try:
        return metadata.version("timm")
    except metadata.PackageNotFoundError:
        return None
