"""Weights to and from the layout of the official implementation.

There, weights are a mapping {haiku module: {parameter: array}} such as
`weights["NFNet/~/nf_block_3/~/conv1b"]["w"]`, in float32: convolutions (H, W, in / groups, out), linear
layers (in, out). Blocks are numbered through the whole network, the first without a number.

Source: google-deepmind/deepmind-research `nfnets/` at commit f5de0ed, names and shapes as haiku makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nfnet_ray.errors import UserError
from nfnet_ray.models.layers import ScaledWSConv2d
from nfnet_ray.models.nfnet import NFBlock, NFNet

# Axes of the official array in the order of ours, by number of dimensions.
_TO_TORCH = {0: (), 1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_TO_OFFICIAL = {0: (), 1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


class _Slot(NamedTuple):
    module: str  # haiku's name
    parameter: str
    tensor: Tensor

    @property
    def official_shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape[axis] for axis in _TO_OFFICIAL[self.tensor.ndim])


def load_deepmind_weights(model: NFNet, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Copy official weights into `model`, whatever its device and floating-point type.

    Raises `UserError` that names every missing, unexpected, misshapen or non-numeric array; the model is
    then as it was.
    """
    slots = {(slot.module, slot.parameter): slot for slot in _slots(model)}
    given = {
        (module, name): np.asarray(array)
        for module, parameters in arrays.items()
        for name, array in parameters.items()
    }
    problems = [f"{module}/{name} is missing" for module, name in slots if (module, name) not in given]
    for key, array in given.items():
        label = "/".join(key)
        if key not in slots:
            problems.append(f"{label} is not part of the model")
        elif array.shape != slots[key].official_shape:
            problems.append(f"{label} is {array.shape}, not {slots[key].official_shape}")
        elif not np.issubdtype(array.dtype, np.floating):
            problems.append(f"{label} holds {array.dtype}, not floating-point numbers")
    if problems:
        raise UserError(
            f"these weights do not fit {model.variant.name}: {'; '.join(problems)}; "
            "check the model's name, its overrides and its number of classes"
        )
    with torch.no_grad():
        for key, slot in slots.items():
            array = given[key].transpose(_TO_TORCH[given[key].ndim])
            slot.tensor.copy_(torch.from_numpy(array.copy()))


def to_deepmind_arrays(model: NFNet) -> dict[str, dict[str, np.ndarray]]:
    """The weights of `model` as the official mapping, in float32 as published; copies, not views."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for module, parameter, tensor in _slots(model):
        array = tensor.detach().to("cpu", torch.float32).numpy()
        official = np.array(array.transpose(_TO_OFFICIAL[array.ndim]), order="C")
        arrays.setdefault(module, {})[parameter] = official
    return arrays


def _slots(model: NFNet) -> Iterator[_Slot]:
    for index, conv in enumerate(model.stem):
        yield from _layer_slots(f"NFNet/~/stem_conv{index}", conv)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, NFBlock)
        name = f"NFNet/~/nf_block_{index}" if index else "NFNet/~/nf_block"
        yield _Slot(name, "skip_gain", block.skip_gain)
        for child, layer in block.named_children():
            if isinstance(layer, ScaledWSConv2d):
                yield from _layer_slots(f"{name}/~/{child}", layer)
        yield from _layer_slots(f"{name}/~/squeeze_excite/~/linear", block.squeeze_excite.reduce)
        yield from _layer_slots(f"{name}/~/squeeze_excite/~/linear_1", block.squeeze_excite.expand)
    yield from _layer_slots("NFNet/~/final_conv", model.final_conv)
    yield from _layer_slots("NFNet/~/linear", model.classifier)


def _layer_slots(module: str, layer: nn.Module) -> Iterator[_Slot]:
    names = {"weight": "w", "bias": "bias" if isinstance(layer, ScaledWSConv2d) else "b", "gain": "gain"}
    for name, tensor in layer.named_parameters():
        yield _Slot(module, names[name], tensor)
