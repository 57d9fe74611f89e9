"""Numbers of the official code, and the weights and images on which it was run: `tests/fixtures/README.md`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from nfnet_ray.models.variants import BlockPlan, Variant

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

Arrays = dict[str, dict[str, np.ndarray]]
Shapes = dict[str, dict[str, tuple[int, ...]]]


@cache
def reference(network: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{network}.npz") as npz:
        return dict(npz)


def draw(seed: int, label: str, shape: Sequence[int]) -> np.ndarray:
    """Standard normal numbers."""
    crc = zlib.crc32(f"{seed}:{label}".encode()) & 0xFFFFFFFF
    return np.random.RandomState(crc).standard_normal(size=tuple(shape))


def drawn_weight(seed: int, module: str, parameter: str, shape: Sequence[int]) -> np.ndarray:
    """A weight of haiku's name and shape, float32."""
    z = draw(seed, f"{module}/{parameter}", shape)
    if parameter == "w":
        z = (z + 0.3) / math.sqrt(math.prod(shape[:-1])) if len(shape) == 4 else z / math.sqrt(shape[0])
    else:
        z = {"gain": 1 + 0.1 * z, "skip_gain": 0.6 + 0.2 * z, "bias": 0.1 * z, "b": 0.1 * z}[parameter]
    return np.asarray(z, np.float32)


def official_shapes(entry: Mapping[str, Any], num_classes: int = 1000) -> Shapes:
    """All tensors of a network, from the official structure and the names that haiku gives."""

    def conv(kernel_size: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {"w": (kernel_size, kernel_size, inputs, outputs), "gain": (outputs,), "bias": (outputs,)}

    def linear(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {"w": (inputs, outputs), "b": (outputs,)}

    stem = [3, 16, 32, 64, entry["width"][0] // 2]
    shapes: Shapes = {f"NFNet/~/stem_conv{i}": conv(3, stem[i], stem[i + 1]) for i in range(4)}
    for index, block in enumerate(entry["blocks"]):
        name = f"NFNet/~/nf_block_{index}" if index else "NFNet/~/nf_block"
        inputs, outputs, width = block["in_ch"], block["out_ch"], block["width"]
        shapes[name] = {"skip_gain": ()}
        shapes[f"{name}/~/conv0"] = conv(1, inputs, width)
        shapes[f"{name}/~/conv1"] = shapes[f"{name}/~/conv1b"] = conv(3, width // block["groups"], width)
        shapes[f"{name}/~/conv2"] = conv(1, width, outputs)
        if block["projection"]:
            shapes[f"{name}/~/conv_shortcut"] = conv(1, inputs, outputs)
        shapes[f"{name}/~/squeeze_excite/~/linear"] = linear(outputs, block["se_hidden"])
        shapes[f"{name}/~/squeeze_excite/~/linear_1"] = linear(block["se_hidden"], outputs)
    shapes["NFNet/~/final_conv"] = conv(1, entry["width"][-1], entry["final_conv_ch"])
    shapes["NFNet/~/linear"] = linear(entry["final_conv_ch"], num_classes)
    return shapes


def drawn(shapes: Shapes, seed: int = 0) -> Arrays:
    return {
        module: {name: drawn_weight(seed, module, name, shape) for name, shape in parameters.items()}
        for module, parameters in shapes.items()
    }


def max_difference(ours: Tensor, theirs: np.ndarray) -> float:
    assert tuple(ours.shape) == theirs.shape
    return float(np.abs(ours.detach().double().numpy() - theirs).max())


def described(block: BlockPlan, variant: Variant) -> dict[str, Any]:
    """A block of ours by the official names."""
    return {
        "alpha": variant.alpha,
        "beta": pytest.approx(block.beta, rel=1e-12),
        "groups": block.groups,
        "in_ch": block.in_channels,
        "out_ch": block.out_channels,
        "projection": block.is_transition,
        "se_hidden": block.se_channels,
        "stochdepth": pytest.approx(block.stochastic_depth, rel=1e-12),
        "stride": block.stride,
        "width": block.bottleneck_channels,
    }
