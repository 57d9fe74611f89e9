"""Foreach functions of torch for a number that lies on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def add_to_all_(tensors: Sequence[Tensor], number: float | Tensor) -> None:
    """Adds a number to all tensors, in place. The device reads a scalar tensor, which has the dtype of the others."""
    if isinstance(number, Tensor):
        # torch._foreach_add_ would bring the scalar tensor to the host, and wait for it.
        torch.ops.aten._foreach_add_.Tensor(list(tensors), number)
    else:
        torch._foreach_add_(list(tensors), number)
