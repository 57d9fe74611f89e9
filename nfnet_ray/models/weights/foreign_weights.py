"""Weights in another implementation's names and layouts: checked as a whole, then copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nfnet_ray.models.weights.pickled_arrays import readable

# What torch and NumPy both have. NumPy knows no bfloat16 of its own.
FLOATING_POINT = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Entry:
    """One entry of another implementation's weights, and our parameter for it.

    The other's tensor becomes ours by `transpose(axes)` and a reshape that only adds or removes axes of
    length 1.
    """

    name: str
    parameter: Tensor
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def find_problems(entries: Sequence[Entry], given: Mapping[str, np.ndarray]) -> list[str]:
    """The reasons why tensors cannot be copied, each with the tensor's name; empty if all fit.

    Tensors that are missing, of no use, misshapen, not floating-point, or that hold NaN, infinity or a
    number that the parameter's type cannot hold.
    """
    by_name = {entry.name: entry for entry in entries}
    problems = [f"{name} is missing" for name in by_name if name not in given]
    for name, array in given.items():
        entry = by_name.get(name)
        if entry is None:
            problems.append(f"{readable(name)} is not part of the model")
        elif array.shape != entry.shape:
            problems.append(f"{name} is {array.shape}, not {entry.shape}")
        elif array.dtype.newbyteorder("=") not in FLOATING_POINT:
            problems.append(f"{name} holds {array.dtype}, not float16, float32 or float64")
        elif not _is_finite(array, entry.parameter.dtype):
            problems.append(f"{name} holds NaN, infinity or numbers too large for {entry.parameter.dtype}")
    return problems


@torch.no_grad()
def copy_into(entries: Sequence[Entry], given: Mapping[str, np.ndarray]) -> None:
    """Copies tensors without `find_problems` into our parameters, whatever their device and type."""
    for entry in entries:
        array = given[entry.name].transpose(entry.axes).reshape(entry.parameter.shape)
        # A copy in this machine's byte order: torch takes no other, and warns about memory it may not write to.
        entry.parameter.copy_(torch.from_numpy(np.array(array, array.dtype.newbyteorder("="))))


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor's numbers for NumPy, which has none of torch's shorter types; all their numbers are float32's."""
    tensor = tensor.detach().to("cpu")
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def _is_finite(array: np.ndarray, dtype: torch.dtype) -> bool:
    # Both are NaN if there is one, and every comparison with NaN is false.
    return bool(max(array.max(), -array.min()) <= torch.finfo(dtype).max)
