"""Random numbers that depend on (seed, epoch, sample) alone.

Every random choice about a sample, such as its position in the order, its crop or its flip, is a hash of the seed, the
epoch, the index of the sample and the purpose. So it is the same for any number of workers, threads and batches, and
after a restart. It does not depend on the version of a library for random numbers either.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.splitmix64 import GOLDEN, mixed_array

_GOLDEN = np.uint64(GOLDEN)


class Purpose(IntEnum):
    """The use of a random number. Each use has a separate stream. Results depend on the values: never renumber them."""

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
    """``count`` 64-bit hashes for each sample index, uint64 (len(indices), count)."""
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
    """A permutation of ``count`` sample indices, int64, which are sorted by their hashes."""
    indices = np.arange(count, dtype=np.int64)
    return np.argsort(hashes(seed, epoch, purpose, indices)[:, 0], kind="stable")


def sample_keys(seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """One int64 key for each sample, (N,), from which its dropout and stochastic depth are drawn."""
    return hashes(seed, epoch, Purpose.SAMPLE_KEY, indices)[:, 0].view(np.int64)


def network_seed(seed: int, epoch: int, rank: int) -> int:
    """The seed of torch's generator (dropout, stochastic depth) for an epoch on a worker, a number of 63 bits."""
    return int(hashes(seed, epoch, Purpose.NETWORK, np.array([rank]))[0, 0] >> np.uint64(1))
