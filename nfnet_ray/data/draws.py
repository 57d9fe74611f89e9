"""Random numbers that depend on (seed, epoch, sample) alone.

Every choice about a sample, its place in the order, its crop, its flip, is a hash of the seed, the
epoch, the sample's index and what the choice is for. So it is the same for any number of workers,
threads and batches, and after a restart; and it does not depend on the release of a random library.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # increment of SplitMix64: Steele, Lea, Flood 2014, section 4
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # its two multipliers: Stafford's variant 13
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a draw decides; each has numbers of its own. Never renumber: results depend on it."""

    ORDER = 1
    RESIZED_CROP = 2
    SHIFT = 3
    FLIP = 4
    NETWORK = 5
    SAMPLE_KEY = 6
    MIXUP = 7
    CUTMIX = 8
    PARTNER_ORDER = 9
    PARTNER_RESIZED_CROP = 10
    PARTNER_SHIFT = 11
    PARTNER_FLIP = 12
    RANDAUGMENT = 13
    AUTOAUGMENT = 14


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64, a bijection of 64-bit numbers."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def hashes(
    seed: int, epoch: int, purpose: Purpose, indices: NDArray[np.int64], count: int = 1
) -> NDArray[np.uint64]:
    """``count`` 64-bit numbers for each sample index, shape (len(indices), count)."""
    with np.errstate(over="ignore"):
        state = np.zeros((len(indices), count), np.uint64)
        keys = (np.uint64(seed), np.uint64(epoch), np.uint64(purpose))
        for key in (*keys, indices.astype(np.uint64)[:, None], np.arange(count, dtype=np.uint64)[None]):
            state = _mixed(state + _GOLDEN + key)
        return state


def uniforms(
    seed: int, epoch: int, purpose: Purpose, indices: NDArray[np.int64], count: int = 1
) -> NDArray[np.float64]:
    """Like :func:`hashes`, as float64 in [0, 1) with 53 random bits."""
    bits = hashes(seed, epoch, purpose, indices, count) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def epoch_order(seed: int, epoch: int, count: int, purpose: Purpose = Purpose.ORDER) -> NDArray[np.int64]:
    """A permutation of ``count`` sample indices, int64: they are sorted by their hash."""
    indices = np.arange(count, dtype=np.int64)
    return np.argsort(hashes(seed, epoch, purpose, indices)[:, 0], kind="stable")


def sample_keys(seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """One int64 for each sample, (N,): what its dropout and stochastic depth in the network are drawn from."""
    return hashes(seed, epoch, Purpose.SAMPLE_KEY, indices)[:, 0].view(np.int64)


def network_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of torch's generator (dropout, stochastic depth) for one epoch on one worker; 63 bits."""
    return int(hashes(seed, epoch, Purpose.NETWORK, np.array([rank]))[0, 0] >> np.uint64(1))
