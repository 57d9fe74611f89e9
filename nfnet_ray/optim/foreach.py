"""What torch's foreach functions do with a number that is on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def add_to_all_(tensors: Sequence[Tensor], number: float | Tensor) -> None:
    """Adds a number to all tensors, in place. A scalar tensor of their dtype is read when the device adds."""
    if isinstance(number, Tensor):
        # torch._foreach_add_ reads a scalar tensor on the host, for which it waits, and adds that number.
        torch.ops.aten._foreach_add_.Tensor(list(tensors), number)
    else:
        torch._foreach_add_(list(tensors), number)
