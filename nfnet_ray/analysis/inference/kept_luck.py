"""How much of the luck that it has at a rung a network keeps to the end, from the bits of those that were let through.

Luck is what is a trial's own: the part of its correctness on each image that trials of other settings do not share, and
from two seeds on the part of its accuracy that is its seed's. The luck at the rung decides who is let through, and that
at the end flatters the best one. The two have the correlation

.. math:: \\frac{c - c'}{v - c'},

where :math:`c` is the covariance of a setting's correctness at the rung with its own at the end, :math:`c'` that with
another one's at the end, and :math:`v` the geometric mean of its two variances. Each is a mean over images, which those
that were let through have in common with all others, so the choice of these does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from nfnet_ray.analysis.inference.paired import Bits, Floats, Moments, interaction


def luck_kept(rung: Sequence[Bits], end: Sequence[Bits], let_through: Sequence[int]) -> float:
    """The correlation of a setting's luck at a rung with that at the end, from 0 to 1.

    What a seed adds on all images is taken to be kept: two or three seeds do not tell its correlation.

    Args:
        rung: the bits of each setting that was there, (seeds, images).
        end: those of each setting that was let through.
        let_through: their places in ``rung``.
    """
    before, after = _own_on_each_image(rung), _own_on_each_image(end)
    images = before.shape[1]
    places = np.asarray(let_through)
    covariance = (before @ after.T).astype(np.float64) / images
    same = covariance[places, np.arange(len(places))]
    # A rung that one setting alone has reached tells nothing of what it shares with others.
    shared = (covariance.sum(axis=0) - same) / (len(before) - 1) if len(before) > 1 else np.zeros_like(same)
    whole = np.sqrt(np.mean(before[places] ** 2, axis=1) * np.mean(after**2, axis=1))
    seeds = images * _of_seeds([*rung, *end])
    kept, of = float(np.mean(same - shared)) + seeds, float(np.mean(whole - shared)) + seeds
    return min(max(kept / of, 0.0), 1.0) if of > 0 else 1.0


def _own_on_each_image(settings: Sequence[Bits]) -> Floats:
    """(settings, images) the mean over each one's seeds, less that over all images."""
    means = np.stack([bits.mean(axis=0, dtype=np.float32) for bits in settings])
    return np.asarray(means - means.mean(axis=1, keepdims=True))


def _of_seeds(settings: Sequence[Bits]) -> float:
    """The mean squared standard error of the settings' accuracies for what their seeds add on all images."""
    several = [Moments.of(bits) for bits in settings if len(bits) > 1]
    if not several:
        return 0.0
    return max(0.0, fmean(float(one.mean.var(ddof=1) / len(one.mean) - interaction(one)) for one in several))
