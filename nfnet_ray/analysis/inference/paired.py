"""Intervals of accuracies and of their differences, from the correctness of each trial on each image.

Trials are evaluated on the same images and share most of their errors. The difference of two trials is therefore
measured image by image, so that the difficulty of an image for both cancels. Three sources of variation are
distinguished:

* the *images*: another draw of validation images would contain harder or easier ones for a setting (sampling variance),
* the *seeds*: another seed changes a setting's accuracy on all images (seed variance),
* both at once: the images that a network gets right by chance, which differ with each image and each seed
  (interaction).

The bits of each seed and image separate these sources, as in any table of two crossed factors (Searle, Casella &
McCulloch 1992, *Variance Components*, chapter 4). The mean squares over seeds contain the interaction, so it is
subtracted from the images' part. Otherwise it would be counted twice.

For a difference, the half-widths of the two parts are added in squares (MOVER: Zou & Donner 2008, equation 4): 1.96
standard errors for the images, Student's t for the seeds. With 2 to 5 seeds and a spread of 0 to 1 point this covers
94.7 to 97.5% in simulation (``benchmarks/coverage.py``). A percentile bootstrap over images and seeds is less accurate.
If the spread between seeds dominates, it covered 71, 82 and 89% with 2, 3 and 5 seeds (of two seeds it draws one twice
in half of its samples), and without any spread 99%, because it counts the interaction twice. Satterthwaite's (1946)
degrees of freedom for the sum of the parts covered as little as 92%. A single setting, whose spread has half the
degrees of freedom, needs both methods: :func:`nfnet_ray.analysis.inference.intervals.setting_half_width`.

All functions of moments accept any number of leading axes, for many simulated studies at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.analysis.inference.intervals import (
    Z_95,
    Floats,
    images_like,
    setting_half_width,
    wilson_bounds,
)

# The two-sided level of the F test that decides whether two settings have separate spreads.
_SPREADS_DIFFER = 0.10

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Moments:
    """The statistics of the bits of T trials that intervals need.

    Attributes:
        mean: (…, T) the accuracy of each trial, a fraction.
        covariance: (…, T, T) the covariance of two trials' bits over images (divided by ``images - 1``).
        images: the number of images on which each trial was measured.
    """

    mean: Floats
    covariance: Floats
    images: int

    @staticmethod
    def of(bits: Bits) -> Moments:
        """Returns the moments of bits of shape (T, images)."""
        _trials, images = bits.shape
        values = bits.astype(np.float32)
        mean = bits.mean(axis=1)
        # Counts of up to 2**24 images are exact in float32.
        both = (values @ values.T).astype(np.float64) / images
        return Moments(mean, (both - np.outer(mean, mean)) * images / max(images - 1, 1), images)

    def only(self, trials: Sequence[int]) -> Moments:
        """Returns the moments of some of the trials."""
        chosen = np.asarray(trials)
        return Moments(
            self.mean[..., chosen], self.covariance[..., chosen[:, None], chosen[None, :]], self.images
        )


@dataclass(frozen=True)
class Parts:
    """The parts of the variance of one setting's mean, or of the difference of two. Each has shape (…).

    Attributes:
        value: the mean accuracy or the difference, a fraction.
        images: the squared standard error for the draw of images alone, without the interaction.
        seeds: the squared standard error from the mean squares over seeds, including the interaction; 0 for single
            seeds.
        freedom: degrees of freedom of ``seeds``.
        is_difference: whether ``value`` is the difference of two settings.
    """

    value: Floats
    images: Floats
    seeds: Floats
    freedom: Floats
    is_difference: bool = False

    def half_width(self, confidence: float | Floats = 0.95) -> Floats:
        """Returns half the width of the interval of this confidence."""
        from scipy.special import ndtri, stdtrit  # takes a while to import

        quantile = (1 + np.asarray(confidence)) / 2
        if not self.is_difference:
            return setting_half_width(self.images, self.seeds, self.freedom, quantile)
        if not np.any(self.seeds):
            return np.asarray(ndtri(quantile) * np.sqrt(self.images))
        of_seeds = np.where(self.seeds > 0, stdtrit(self.freedom, quantile), 0.0)
        return np.asarray(np.sqrt(ndtri(quantile) ** 2 * self.images + of_seeds**2 * self.seeds))

    def probability_above_zero(self) -> Floats:
        """Returns the probability that the true value is above 0, at which one bound of an interval is 0.

        This is the posterior probability under a flat prior. It exceeds 97.5% exactly if the 95% interval lies above 0.
        """
        from scipy.special import ndtr

        distance = np.asarray(self.value)
        if self.is_difference and not np.any(self.seeds):  # for images alone, the normal distribution applies
            with np.errstate(divide="ignore", invalid="ignore"):
                errors = np.where(distance == 0, 0.0, distance / np.sqrt(self.images))
            return np.asarray(ndtr(errors))
        low, high = np.zeros_like(distance), np.ones_like(distance)
        for _ in range(40):  # bisection: half_width grows with the confidence
            middle = (low + high) / 2
            wider = self.half_width(middle) >= np.abs(distance)
            low, high = np.where(wider, low, middle), np.where(wider, middle, high)
        return np.asarray((1 + np.sign(distance) * (low + high) / 2) / 2)


def setting_parts(moments: Moments) -> Parts:
    """Returns the parts of the accuracy of one setting, whose seeds are the trials."""
    seeds = moments.mean.shape[-1]
    value = moments.mean.mean(axis=-1)
    if seeds == 1:
        variance = moments.covariance[..., 0, 0] / moments.images
        return Parts(value, variance, np.zeros_like(value), np.ones_like(value))
    total = moments.covariance.sum(axis=(-2, -1)) / seeds**2 / moments.images
    images = np.maximum(total - interaction(moments), 0.0)
    squares = moments.mean.var(axis=-1, ddof=1) / seeds
    return Parts(value, images, squares, np.full_like(value, seeds - 1.0))


def difference_parts(moments: Moments, seeds_a: int, *, one_spread: bool = False) -> Parts:
    """Returns the parts of the accuracy of a minus b; the first ``seeds_a`` trials are a's seeds, the others b's.

    If either has a single seed, only the images are covered. Both settings are assumed to have the same spread between
    seeds, with ``seeds_a + seeds_b - 2`` degrees of freedom, unless each has at least three seeds and an F test finds
    different spreads; then each has its own (Welch 1947). With two seeds each, Welch's interval covers 98%. The price
    of a common spread is a coverage of 88% if one setting has a spread of 1 point and the other has none (93% with
    three seeds).

    Args:
        one_spread: whether a setting with a single seed is assumed to have the other's spread between seeds, so that
            the parts cover seeds, too.
    """
    trials = moments.mean.shape[-1]
    seeds_b = trials - seeds_a
    weights = np.r_[np.full(seeds_a, 1 / seeds_a), np.full(seeds_b, -1 / seeds_b)]
    value = moments.mean @ weights
    # With one seed each, this is the number of images that only one of them has right, minus the squared difference.
    images = np.einsum("...ij,i,j->...", moments.covariance, weights, weights) / moments.images
    if max(seeds_a, seeds_b) > 1 and min(seeds_a, seeds_b) == 1 and one_spread:
        several = moments.only(range(seeds_a) if seeds_a > 1 else range(1, trials))
        seeds = several.mean.shape[-1]
        # The chance part of a mean over seeds is 1 / seeds of that of a single seed.
        images = np.maximum(images - interaction(several) * (1 + seeds), 0.0)
        squares = several.mean.var(axis=-1, ddof=1) * (1 / seeds + 1)
        return Parts(value, images, squares, np.full_like(value, seeds - 1.0), is_difference=True)
    if min(seeds_a, seeds_b) == 1:
        return Parts(
            value, np.maximum(images, 0.0), np.zeros_like(value), np.ones_like(value), is_difference=True
        )
    a, b = moments.only(range(seeds_a)), moments.only(range(seeds_a, trials))
    images = np.maximum(images - interaction(a) - interaction(b), 0.0)
    spreads = a.mean.var(axis=-1, ddof=1), b.mean.var(axis=-1, ddof=1)
    squares, freedom = both_seeds(*spreads, seeds_a, seeds_b)
    return Parts(value, images, squares, freedom, is_difference=True)


def interaction(moments: Moments) -> Floats:
    """Returns the squared standard error of a setting's mean due to the interaction of at least two seeds and images.

    This is the mean variance of a seed over images minus the mean covariance of two seeds, divided by images and seeds.
    """
    seeds = moments.mean.shape[-1]
    own = np.trace(moments.covariance, axis1=-2, axis2=-1)
    shared = moments.covariance.sum(axis=(-2, -1)) - own
    return np.asarray((own / seeds - shared / (seeds * (seeds - 1))) / (moments.images * seeds))


def both_seeds(spread_a: Floats, spread_b: Floats, seeds_a: int, seeds_b: int) -> tuple[Floats, Floats]:
    """Returns (squared standard error, degrees of freedom) for the seeds of two settings, from their variances."""
    from scipy.special import fdtrc

    free_a, free_b = seeds_a - 1, seeds_b - 1
    pooled = (free_a * spread_a + free_b * spread_b) / (free_a + free_b)
    errors = spread_a / seeds_a, spread_b / seeds_b
    total = errors[0] + errors[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        welch = total**2 / (errors[0] ** 2 / free_a + errors[1] ** 2 / free_b)
        above = fdtrc(free_a, free_b, spread_a / spread_b), fdtrc(free_b, free_a, spread_b / spread_a)
    differ = (np.minimum(*above) < _SPREADS_DIFFER / 2) & (min(free_a, free_b) > 1)
    squares = np.where(differ, total, pooled * (1 / seeds_a + 1 / seeds_b))
    return squares, np.where(differ, welch, float(free_a + free_b))


def setting_interval(moments: Moments) -> tuple[Floats, Floats]:
    """Returns the 95% interval of the accuracy of a setting whose seeds are the trials: (low, high), each (…).

    For a single seed this is Wilson's interval over the draw of images. For several seeds it covers images and seeds.
    The images' part then has the shape of Wilson's interval, for the number of images that would have the standard
    error which the bits show.
    """
    parts, images = setting_parts(moments), float(moments.images)
    if moments.mean.shape[-1] == 1:
        return wilson_bounds(parts.value, images)
    like = images_like(parts.value, parts.images)
    low, high = wilson_bounds(parts.value, np.maximum(np.floor(like), images))
    below, above = (
        setting_half_width(side**2 / Z_95**2, parts.seeds, parts.freedom)
        for side in (parts.value - low, high - parts.value)
    )
    return np.maximum(0.0, parts.value - below), np.minimum(1.0, parts.value + above)


def paired_accuracy_interval(bits: Bits) -> tuple[float, float]:
    """Returns the 95% interval of a setting's accuracy from the bits of its seeds, (seeds, images)."""
    low, high = setting_interval(Moments.of(bits))
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """The difference of setting a minus setting b, measured image by image.

    Attributes:
        value: the difference of the mean accuracies, a fraction.
        low, high: the 95% interval of the difference, over ``covers``.
        covers: ``images``, or ``seeds and images``.
        disagreement: the share of the images that only one of a trial of a and a trial of b has right, the mean over
            pairs.
        p_value: the p value of McNemar's exact test; None for several seeds, for which there is no such test.
        probability: the probability that a is better than b, see :meth:`Parts.probability_above_zero`.
        parts: the parts of its variance.
        interaction: the part due to the interaction of seeds and images, a squared standard error; 0 for single seeds.
    """

    value: float
    low: float
    high: float
    covers: str
    disagreement: float
    p_value: float | None
    probability: float
    parts: Parts
    interaction: float


def paired_difference(a: Bits, b: Bits, *, one_spread: bool = False) -> PairedDifference:
    """Compares two settings by the bits of their seeds, (seeds, images) each, for the same images in the same order.

    ``one_spread`` is explained in :func:`difference_parts`.

    With one seed each, the interval is that of Bonett & Price (2012, equation 8), which adds two images on which the
    two differ, one each way. Its coverage is 93 to 97% if the trials disagree on at least 20 images, and higher if they
    disagree on fewer (``tests/dashboards/test_paired.py`` computes it exactly).
    """
    several = covers_seeds(len(a), len(b), one_spread=one_spread)
    p_value: float | None = None
    luck = 0.0
    if len(a) == len(b) == 1:
        images = a.shape[1]
        only_a, only_b = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
        parts = bonett_price(np.asarray(only_a), np.asarray(only_b), images)
        p_value = mcnemar(only_a, only_b)
        observed, disagreement = (only_a - only_b) / images, (only_a + only_b) / images
    else:
        moments = Moments.of(np.concatenate([a, b]))
        parts = difference_parts(moments, len(a), one_spread=one_spread)
        observed = float(moments.mean[: len(a)].mean() - moments.mean[len(a) :].mean())
        disagreement = float((a[:, None, :] != b[None, :, :]).mean())
        if several:
            each = [range(len(a)), range(len(a), len(a) + len(b))]
            of_one_trial = [float(interaction(moments.only(own))) * len(own) for own in each if len(own) > 1]
            luck = of_one_trial[0] / len(a) + of_one_trial[-1] / len(b)
    half = float(parts.half_width())
    return PairedDifference(
        value=observed,
        low=max(-1.0, float(parts.value) - half),
        high=min(1.0, float(parts.value) + half),
        covers="seeds and images" if several else "images",
        disagreement=disagreement,
        p_value=p_value,
        probability=float(parts.probability_above_zero()),
        parts=parts,
        interaction=luck,
    )


def covers_seeds(seeds_a: int, seeds_b: int, *, one_spread: bool = False) -> bool:
    """Whether a comparison of two settings covers their seeds: both have at least two, or they share one spread."""
    return min(seeds_a, seeds_b) > 1 or (one_spread and max(seeds_a, seeds_b) > 1)


def bonett_price(only_a: NDArray[Any], only_b: NDArray[Any], images: int) -> Parts:
    """Returns the parts of the difference of one trial each, from the numbers of images that only one has right."""
    shares = (only_a + 1) / (images + 2), (only_b + 1) / (images + 2)
    value = shares[0] - shares[1]
    variance = (shares[0] + shares[1] - value**2) / (images + 2)
    return Parts(value, variance, np.zeros_like(value), np.ones_like(value), is_difference=True)


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns McNemar's exact two-sided p value, from the numbers of images that only one trial has right."""
    from scipy.special import bdtr  # scipy.stats takes a second to import

    # Both tails of a symmetric distribution, each of which includes the middle.
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
