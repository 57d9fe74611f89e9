"""Intervals of accuracies and of their differences that know which image each trial had right.

Trials are evaluated on the same images and err mostly on the same ones, so the difference of two of them is measured
image by image: what makes an image hard for both cancels. Three things vary from one measurement to the next:

* the *images*: another draw of validation images would contain harder or easier ones for a setting (sampling variance),
* the *seeds*: another seed moves a setting's accuracy on all images (seed variance),
* both at once: which images a network gets right by luck, another draw with each image and each seed (interaction).

With the bits of each seed and image they are told apart as in any table of two crossed factors (Searle, Casella &
McCulloch 1992, *Variance Components*, chapter 4). The mean squares over seeds contain the interaction, so the part of
the images is taken without it: added to each other as they are, they would count it twice.

Of a difference the half-widths of the two parts are added in squares (MOVER: Zou & Donner 2008, equation 4): 1.96
standard errors for the images, Student's t for the seeds. With 2 to 5 seeds and a spread of 0 to 1 point this covers
94.7 to 97.5% in simulation (``benchmarks/coverage.py``). A percentile bootstrap over images and seeds does not: where
the spread between seeds dominates it covered 71, 82 and 89% with 2, 3 and 5 seeds (of two seeds it draws one twice in
half of its samples), and where there is none 99%, as it counts the interaction twice. Satterthwaite's (1946) degrees of
freedom for the sum of the parts covered as little as 92%. A single setting, whose spread has half the degrees of
freedom, needs both: :func:`nfnet_ray.analysis.inference.intervals.setting_half_width`.

All functions of moments take any number of leading axes, of many simulated studies at once.
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

# Two-sided level at which an F test has to tell two spreads apart before each is given a value of its own.
_SPREADS_DIFFER = 0.10

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Moments:
    """Everything that intervals need of the bits of T trials.

    Attributes:
        mean: (…, T) the accuracy of each trial, a fraction.
        covariance: (…, T, T) over images, of two trials' bits (divided by ``images - 1``).
        images: on how many images each was measured.
    """

    mean: Floats
    covariance: Floats
    images: int

    @staticmethod
    def of(bits: Bits) -> Moments:
        """Those of bits of shape (T, images)."""
        _trials, images = bits.shape
        values = bits.astype(np.float32)
        mean = bits.mean(axis=1)
        # Counts of up to 2**24 images are exact in float32.
        both = (values @ values.T).astype(np.float64) / images
        return Moments(mean, (both - np.outer(mean, mean)) * images / max(images - 1, 1), images)

    def only(self, trials: Sequence[int]) -> Moments:
        """Those of some of the trials."""
        chosen = np.asarray(trials)
        return Moments(
            self.mean[..., chosen], self.covariance[..., chosen[:, None], chosen[None, :]], self.images
        )


@dataclass(frozen=True)
class Parts:
    """What the variance of one setting's mean, or of the difference of two, is made of. Each has shape (…).

    Attributes:
        value: the mean accuracy or the difference, a fraction.
        images: squared standard error for the draw of images alone, without the interaction.
        seeds: squared standard error by the mean squares over seeds, interaction included; 0 of single seeds.
        freedom: degrees of freedom of ``seeds``.
        is_difference: whether it is the difference of two settings.
    """

    value: Floats
    images: Floats
    seeds: Floats
    freedom: Floats
    is_difference: bool = False

    def half_width(self, confidence: float | Floats = 0.95) -> Floats:
        """Half the width of the interval of this confidence."""
        from scipy.special import ndtri, stdtrit  # takes a while to import

        quantile = (1 + np.asarray(confidence)) / 2
        if not self.is_difference:
            return setting_half_width(self.images, self.seeds, self.freedom, quantile)
        if not np.any(self.seeds):
            return np.asarray(ndtri(quantile) * np.sqrt(self.images))
        of_seeds = np.where(self.seeds > 0, stdtrit(self.freedom, quantile), 0.0)
        return np.asarray(np.sqrt(ndtri(quantile) ** 2 * self.images + of_seeds**2 * self.seeds))

    def probability_above_zero(self) -> Floats:
        """How probable it is that the true value is above 0: one bound of an interval is there.

        It is the posterior probability under a flat prior, and above 97.5% just where the 95% interval lies above it.
        """
        from scipy.special import ndtr

        distance = np.asarray(self.value)
        if self.is_difference and not np.any(self.seeds):  # of images alone it is that of a normal variate
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
    """Of the accuracy of one setting, whose seeds the trials are."""
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
    """Of the accuracy of setting a less that of setting b; the first ``seeds_a`` trials are a's seeds, the others b's.

    If either has a single seed, the images alone are covered. The spread between seeds is taken to be the same for
    both, with ``seeds_a + seeds_b - 2`` degrees of freedom, unless each has three seeds and an F test tells the spreads
    apart: then each has its own (Welch 1947). With two seeds each Welch's interval covers 98%; the price of one spread
    is that it covers 88% where one setting has a spread of 1 point and the other has none (93% with three seeds).

    Args:
        one_spread: of one setting with a single seed, that its seeds spread as those of the other do, so that seeds are
            covered, too.
    """
    trials = moments.mean.shape[-1]
    seeds_b = trials - seeds_a
    weights = np.r_[np.full(seeds_a, 1 / seeds_a), np.full(seeds_b, -1 / seeds_b)]
    value = moments.mean @ weights
    # Of one seed each it is the number of images that just one of them has right, less the squared difference.
    images = np.einsum("...ij,i,j->...", moments.covariance, weights, weights) / moments.images
    if max(seeds_a, seeds_b) > 1 and min(seeds_a, seeds_b) == 1 and one_spread:
        several = moments.only(range(seeds_a) if seeds_a > 1 else range(1, trials))
        seeds = several.mean.shape[-1]
        # What each seed gets right by luck is 1 / seeds of that of a single one.
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
    """The squared standard error of a setting's mean for what each seed and image draw anew; its seeds are two or more.

    It is the mean variance of a seed over images less the mean covariance of two seeds, divided by images and seeds.
    """
    seeds = moments.mean.shape[-1]
    own = np.trace(moments.covariance, axis1=-2, axis2=-1)
    shared = moments.covariance.sum(axis=(-2, -1)) - own
    return np.asarray((own / seeds - shared / (seeds * (seeds - 1))) / (moments.images * seeds))


def both_seeds(spread_a: Floats, spread_b: Floats, seeds_a: int, seeds_b: int) -> tuple[Floats, Floats]:
    """(squared standard error, degrees of freedom) of the seeds of two settings, from their variances over seeds."""
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
    """95% interval of a setting's accuracy, whose seeds the trials are: (low, high), each (…).

    Of a single seed it is Wilson's, for the draw of the images. Of several it covers images and seeds; the images' part
    has Wilson's shape, for as many images as have the standard error that the bits show.
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
    """95% interval of a setting's accuracy, from the bits of its seeds, (seeds, images): :func:`setting_interval`."""
    low, high = setting_interval(Moments.of(bits))
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """Setting a less setting b, image by image.

    Attributes:
        value: difference of the mean accuracies, a fraction.
        low, high: its 95% interval, over ``covers``.
        covers: ``images``, or ``seeds and images``.
        disagreement: share of the images that a trial of a and one of b judge differently, the mean over their pairs.
        p_value: of McNemar's exact test; None of several seeds, for which there is no such test.
        probability: how probable it is that a is better than b, see :meth:`Parts.probability_above_zero`.
        parts: what its variance is made of.
        interaction: the part that each seed and image draw anew, a squared standard error; 0 of single seeds.
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
    """Compares two settings by the bits of their seeds, (seeds, images) each, on the same images in the same order.

    ``one_spread`` is that of :func:`difference_parts`.

    With one seed each the interval is that of Bonett & Price (2012, equation 8), which adds two images on which the
    two differ, one each way; its coverage is 93 to 97% where 20 images or more are judged differently, and above where
    fewer are (``tests/dashboards/test_paired.py`` adds it up exactly).
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
    """Whether a comparison of two settings covers their seeds: each has two or more, or their spread is the same."""
    return min(seeds_a, seeds_b) > 1 or (one_spread and max(seeds_a, seeds_b) > 1)


def bonett_price(only_a: NDArray[Any], only_b: NDArray[Any], images: int) -> Parts:
    """Of the difference of one trial each, from how many images just one of them has right; of any shape."""
    shares = (only_a + 1) / (images + 2), (only_b + 1) / (images + 2)
    value = shares[0] - shares[1]
    variance = (shares[0] + shares[1] - value**2) / (images + 2)
    return Parts(value, variance, np.zeros_like(value), np.ones_like(value), is_difference=True)


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p value of McNemar's exact test, from how many images just one of two trials has right."""
    from scipy.special import bdtr  # scipy.stats takes a second to import

    # Both tails of a symmetric distribution; the middle belongs to both.
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
