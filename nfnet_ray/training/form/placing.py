"""Checks that a device can train a Recipe, and moves its network there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from nfnet_ray.errors import UserError
from nfnet_ray.models.layers import slice_grouped_convolutions
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS

FIRST_WITH_BFLOAT16 = (8, 0)
"""The lowest compute capability of NVIDIA's GPUs with arithmetic in bfloat16, that of Ampere."""


def check_device(recipe: Recipe, device: torch.device) -> None:
    """Raises UserError for an NVIDIA GPU that cannot train the Recipe, for one of two reasons.

    If torch has no code for the GPU, the first kernel would fail ("no kernel image is available for execution on the
    device"). If the Recipe is in bfloat16 and the GPU has no such arithmetic, torch would not use cuDNN (``use_cudnn``
    in Convolution.cpp) and would emulate bfloat16, and Triton would refuse to compile.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    name = torch.cuda.get_device_name(device)
    architectures = torch.cuda.get_arch_list()
    if architectures and not has_code_for(capability, architectures):
        raise UserError(
            f"torch {torch.__version__} has no code for {name} (compute capability {_in_words(capability)}), only for "
            f"{', '.join(architectures)}: install a torch that has it, or hide this GPU with CUDA_VISIBLE_DEVICES"
        )
    if recipe.precision == "bfloat16" and capability < FIRST_WITH_BFLOAT16:
        raise UserError(
            f"{name} has no arithmetic in bfloat16 (compute capability {_in_words(capability)}; it needs "
            f"{_in_words(FIRST_WITH_BFLOAT16)} or later): train with precision=float32, or on another GPU"
        )


def has_code_for(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether a GPU with this compute capability runs code that was built for one of these architectures.

    Machine code (``sm_80``) runs on later GPUs of the same major version, and PTX (``compute_80``) on all later ones
    (NVIDIA's CUDA programming guide, compatibility). Code with an ``a`` (``sm_90a``) is for one GPU alone, and code
    with an ``f`` for a family within a major version.

    >>> [has_code_for(capability, ["sm_75", "sm_90a"]) for capability in ((7, 0), (7, 5), (8, 0), (9, 0))]
    [False, True, False, True]
    """
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        digits = number.rstrip("af")
        code = (int(digits[:-1]), int(digits[-1]))
        if number.endswith("a"):
            fits = code == capability
        else:
            fits = code <= capability and (kind == "compute" or code[0] == capability[0])
        if fits:
            return True
    return False


def _in_words(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def place(network: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Moves a network to the device, in the Recipe's precision and layout, and sets how it computes groups.

    ``auto`` must have been replaced by a choice. Compilation comes later (:mod:`~nfnet_ray.training.form.compilation`).
    """
    network.to(device, DTYPES[recipe.precision]).to(memory_format=MEMORY_FORMATS[recipe.memory_format])
    slice_grouped_convolutions(network, recipe.grouped_convolutions)
