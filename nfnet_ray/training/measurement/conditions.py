"""The conditions under which a worker trains and evaluates. They must be equal in two runs that are compared.

The Recipe leaves some conditions to the network and the machine. Only the worker knows them, so it reports them to the
journal with the first epoch that it finishes (``conditions``, :mod:`nfnet_ray.tracking.conditions`).
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

    ``lanes`` is the number of lanes of the cohort, if there is one. ``step`` says in words how a GPU does its steps.

    In the JSON, ``device`` is the name of the GPU or processor, and ``workers`` the number of workers that train
    together now. The values of the Recipe, such as ``eval_size`` and ``memory_format``, are those that the run uses on
    this device. Values of None are left out.
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
    """The version of timm, which builds the baselines; None if timm is not installed."""
    try:
        return metadata.version("timm")
    except metadata.PackageNotFoundError:
        return None
