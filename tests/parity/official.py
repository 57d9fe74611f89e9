"""Numbers of the official code, and the weights and images on which it was run: `tests/fixtures/README.md`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from nfnet_ray.models.variants import BlockPlan, Variant

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


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
