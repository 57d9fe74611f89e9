"""Estimates how much of its luck at a rung a network keeps to the end, from the bits of the promoted settings.

The luck of a trial is the part of its correctness on each image that trials of other settings do not share and, with at
least two seeds, the part of its accuracy that is due to its seed. The luck at the rung influences which trials are
promoted, and the luck at the end inflates the accuracy of the best one. The two have the correlation

.. math:: \\frac{c - c'}{v - c'},

where :math:`c` is the covariance of a setting's correctness at the rung with its own at the end, :math:`c'` that with
another setting's at the end, and :math:`v` the geometric mean of its two variances. Each is a mean over images, which
the promoted settings have in common with all others, so it does not matter that these were selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from nfnet_ray.analysis.inference.paired import Bits, Floats, Moments, interaction


def luck_kept(rung: Sequence[Bits], end: Sequence[Bits], let_through: Sequence[int]) -> float:
    """Returns the correlation of a setting's luck at a rung with its luck at the end, from 0 to 1.

    The effect of a seed on all images is assumed to be kept, because two or three seeds cannot show its correlation.

    Args:
        rung: the bits of each setting at the rung, (seeds, images).
        end: the bits of each promoted setting at the end.
        let_through: the indices of the promoted settings in ``rung``.
    """
    before, after = _own_on_each_image(rung), _own_on_each_image(end)
    images = before.shape[1]
    places = np.asarray(let_through)
    covariance = (before @ after.T).astype(np.float64) / images
    same = covariance[places, np.arange(len(places))]
    # If only one setting has reached a rung, the part that it shares with others cannot be estimated.
    shared = (covariance.sum(axis=0) - same) / (len(before) - 1) if len(before) > 1 else np.zeros_like(same)
    whole = np.sqrt(np.mean(before[places] ** 2, axis=1) * np.mean(after**2, axis=1))
    seeds = images * _of_seeds([*rung, *end])
    kept, of = float(np.mean(same - shared)) + seeds, float(np.mean(whole - shared)) + seeds
    return min(max(kept / of, 0.0), 1.0) if of > 0 else 1.0


def _own_on_each_image(settings: Sequence[Bits]) -> Floats:
    """Returns (settings, images) the mean over each setting's seeds, minus its mean over all images."""
    means = np.stack([bits.mean(axis=0, dtype=np.float32) for bits in settings])
    return np.asarray(means - means.mean(axis=1, keepdims=True))


def _of_seeds(settings: Sequence[Bits]) -> float:
    """Returns the mean squared standard error of the settings' accuracies due to effects of seeds on all images."""
    several = [Moments.of(bits) for bits in settings if len(bits) > 1]
    if not several:
        return 0.0
    return max(0.0, fmean(float(one.mean.var(ddof=1) / len(one.mean) - interaction(one)) for one in several))
