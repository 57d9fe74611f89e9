"""Random numbers for dropout and stochastic depth that depend on the sample alone.

A network that is called with a key for each sample draws nothing from torch's generator. Every number is a hash of the
sample's key, the use of the number, and its index. So a sample has the same masks in any batch, micro-batch or worker,
and again in a second pass over it, as in SAM.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from nfnet_ray.splitmix64 import GOLDEN, mix_tensor_, shifted_right, signed


class Stream(IntEnum):
    """The use of a random number. Each use has a separate stream. Results depend on the values: never renumber them."""

    STOCHASTIC_DEPTH = 0
    DROPOUT = 1


_GOLDEN = signed(GOLDEN)
_RANDOM_BITS = 24  # float32 represents 24-bit integers exactly, so no draw is rounded up to 1


def keyed_uniforms(keys_N: Tensor, stream: Stream, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each key: float32 (N, count) with 24 random bits, on the keys' device.

    `keys_N` is int64 (N,). Number `i` of a key is a hash of (key, stream, i) alone.
    """
    state_N = mix_tensor_(mix_tensor_(keys_N + _GOLDEN) + (_GOLDEN + int(stream)))
    places = torch.arange(count, dtype=torch.int64, device=keys_N.device)
    bits_NI = shifted_right(mix_tensor_(state_N[:, None] + _GOLDEN + places), 64 - _RANDOM_BITS)
    return bits_NI.to(torch.float32) * 2.0**-_RANDOM_BITS
