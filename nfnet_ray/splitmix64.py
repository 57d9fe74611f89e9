"""SplitMix64's hash of 64-bit numbers, for whole numbers, NumPy arrays and torch tensors.

Source: Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators", section 4, with Stafford's variant 13
of the mixing, as in Java's SplittableRandom. Output n of a generator of seed s is ``mixed(s + n * GOLDEN)``, n from 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
"""The increment from one state to the next."""

# Shift to the right, exclusive or, then multiply.
_MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def signed(number: int) -> int:
    """The int64 of the same lowest 64 bits: torch has hardly any arithmetic for unsigned 64-bit numbers.

    >>> signed(2**64 - 1)
    -1
    """
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def mixed(number: int) -> int:
    """The hash of a number's lowest 64 bits, 0 to 2^64 - 1: a bijection."""
    for shift, factor in _MIXING:
        number %= 1 << 64
        number = (number ^ (number >> shift)) * factor
    return number


def mixed_array(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of each entry. Call it within ``np.errstate(over="ignore")``: multiplication is meant to wrap around."""
    for shift, factor in _MIXING:
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state


def mix_tensor_(state: Tensor) -> Tensor:
    """Replaces each entry of an int64 tensor by its hash, in place, and returns the tensor."""
    for shift, factor in _MIXING:
        state.bitwise_xor_(shifted_right(state, shift))
        if factor != 1:
            state.mul_(signed(factor))
    return state


def shifted_right(state: Tensor, bits: int) -> Tensor:
    """An int64 tensor shifted to the right, filled up with zeros: torch's own shift fills up with the sign."""
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)
