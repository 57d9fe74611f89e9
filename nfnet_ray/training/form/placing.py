"""A network brought to the device, in the form that its Recipe says."""

from __future__ import annotations

import torch
from torch import nn

from nfnet_ray.models.layers import slice_grouped_convolutions
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS


def place(network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Moves a network to the device, in the Recipe's precision and layout, and sets how groups are convolved.

    ``auto`` must have been replaced by a choice. Compilation comes later (:mod:`~nfnet_ray.training.form.compilation`).
    """
    network.to(device, DTYPES[recipe.precision]).to(memory_format=MEMORY_FORMATS[recipe.memory_format])
    slice_grouped_convolutions(network, recipe.grouped_convolutions)
