"""Random numbers for dropout and stochastic depth that depend on the sample alone.

A network that is called with one key for each sample draws nothing from torch's generator: every number is a
hash of the sample's key, of what the number is for, and of its place there. So a sample meets the same masks
in whatever batch, micro-batch or worker it is, and again in a second pass over it, as SAM makes.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What a number decides; each has numbers of its own. Never renumber: results depend on it."""

    STOCHASTIC_DEPTH = 0
    DROPOUT = 1


def _signed(bits: int) -> int:
    """The int64 of these 64 bits: torch has hardly any arithmetic for unsigned 64-bit numbers."""
    return bits - (1 << 64) if bits >= 1 << 63 else bits


_GOLDEN = _signed(0x9E3779B97F4A7C15)  # increment of SplitMix64: Steele, Lea, Flood 2014, section 4
_MIX_1 = _signed(0xBF58476D1CE4E5B9)  # its two multipliers: Stafford's variant 13
_MIX_2 = _signed(0x94D049BB133111EB)
_RANDOM_BITS = 24  # float32 holds a whole number of 24 bits exactly, so no draw is rounded up to 1


def _shifted_right(state: Tensor, bits: int) -> Tensor:
    # `>>` on int64 fills up with copies of the sign; a logical shift fills up with zeros.
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(state: Tensor) -> Tensor:
    """The output function of SplitMix64, a bijection of 64-bit numbers; int64 multiplication wraps round."""
    state = (state ^ _shifted_right(state, 30)) * _MIX_1
    state = (state ^ _shifted_right(state, 27)) * _MIX_2
    return state ^ _shifted_right(state, 31)


def keyed_uniforms(keys_N: Tensor, stream: Stream, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each key: float32 (N, count) with 24 random bits, on the keys' device.

    `keys_N` is int64 (N,). Number `i` of a key is a hash of (key, stream, i) and of nothing else.
    """
    state_N = _mixed(_mixed(keys_N + _GOLDEN) + (_GOLDEN + int(stream)))
    places = torch.arange(count, dtype=torch.int64, device=keys_N.device)
    bits_NI = _shifted_right(_mixed(state_N[:, None] + _GOLDEN + places), 64 - _RANDOM_BITS)
    return bits_NI.to(torch.float32) * 2.0**-_RANDOM_BITS
