"""Random numbers that depend on (seed, epoch, sample) alone.

Every choice about a sample, its place in the order, its crop, its flip, is a hash of the seed, the
epoch, the sample's index and what the choice is for. So it is the same for any number of workers,
threads and batches, and after a restart; and it does not depend on the release of a random library.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.splitmix64 import GOLDEN, mixed_array

_GOLDEN = np.uint64(GOLDEN)


class Purpose(IntEnum):
    """The use of a random number; each use has its own numbers. Never renumber: results depend on it."""

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


def hashes(
    seed: int, epoch: int, purpose: Purpose, indices: NDArray[np.int64], count: int = 1
) -> NDArray[np.uint64]:
    """``count`` 64-bit numbers for each sample index, shape (len(indices), count)."""
    with np.errstate(over="ignore"):
        state = np.zeros((len(indices), count), np.uint64)
        keys = (np.uint64(seed), np.uint64(epoch), np.uint64(purpose))
        for key in (*keys, indices.astype(np.uint64)[:, None], np.arange(count, dtype=np.uint64)[None]):
            state = mixed_array(state + _GOLDEN + key)
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
    """One int64 key for each sample, (N,), from which its dropout and stochastic depth are drawn."""
    return hashes(seed, epoch, Purpose.SAMPLE_KEY, indices)[:, 0].view(np.int64)


def network_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of torch's generator (dropout, stochastic depth) for one epoch on one worker; 63 bits."""
    return int(hashes(seed, epoch, Purpose.NETWORK, np.array([rank]))[0, 0] >> np.uint64(1))
