"""Computes which differences a design can detect, and what would be needed to detect smaller ones.

A design detects a difference if the 95% interval of two settings excludes 0 in 80% of the studies in which the
difference exists. This depends on the share of images on which two trials disagree, on the spread between seeds, and on
the numbers of images and seeds.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from nfnet_ray.analysis.inference.intervals import Z_95
from nfnet_ray.analysis.inference.paired import Floats, both_seeds

POWER = 0.8
"""The share of studies in which an existing difference should be detected."""
_SPREADS = 40
"""The number of quantiles of the spread between seeds that a setting may show, over which the power is averaged."""
_VARIANCES = 30
"""The number of quantiles of an estimated variance between seeds, over which the power is averaged, too."""
MOST_SEEDS = 100
MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class PairNoise:
    """The noise of the difference of two settings, as squared standard errors of one seed each on one image.

    Attributes:
        images: the part for the draw of images, which may be harder for one setting than for the other.
        luck: the part for the images that each seed gets right by chance, per trial; it is independent for both trials.
        seeds: the variance between seeds of one setting, of its accuracy on infinitely many images. Several equally
            probable values if it is only estimated.
    """

    images: float
    luck: float
    seeds: float | tuple[float, ...]

    @staticmethod
    def assumed(disagreement: float, seed_spread: float) -> PairNoise:
        """Returns the noise of settings that hardly differ, whose disagreement is due to chance.

        Args:
            disagreement: the share of the images on which two trials disagree.
            seed_spread: the standard deviation between seeds, a fraction.
        """
        return PairNoise(0.0, disagreement / 2, seed_spread**2)

    @staticmethod
    def measured(disagreement: float, trial_variance: float, freedom: float, luck: float) -> PairNoise:
        """Returns the noise of settings whose variance between seeds was estimated, including its uncertainty.

        The true variance is distributed as the estimate times its degrees of freedom over chi-squared. This corresponds
        to a flat prior of its logarithm, and makes the promised power hold for every true spread, on average over the
        estimates that earlier studies may show.

        Args:
            disagreement: the share of the images on which two trials disagree.
            trial_variance: the variance of a trial's measured accuracy between seeds.
            freedom: degrees of freedom of ``trial_variance``.
            luck: the part of ``trial_variance`` that is due to the images that each seed got right by chance.
        """
        from scipy.special import chdtri

        quantiles = (np.arange(_VARIANCES) + 0.5) / _VARIANCES
        likely = np.maximum(trial_variance * freedom / chdtri(freedom, quantiles) - luck, 0.0)
        return PairNoise(0.0, disagreement / 2, tuple(likely.tolist()))


@dataclass(frozen=True)
class Design:
    """The number of seeds of each setting, and the number of validation images on which it is measured."""

    seeds: int
    images: int


def power(noise: PairNoise, design: Design, difference: float) -> float:
    """Returns the share of studies in which the design detects a difference, a fraction above 0.

    With few seeds the observed spread may be far from the true one, and the width of the interval depends on the
    observed spread. The power is therefore the mean over the spreads that the two settings may show, as in the
    noncentral t distribution. A difference of the expected half-width plus 0.84 standard errors is detected in 74% of
    studies with two or three seeds, and not in 80%.

    With a single seed, the power refers to the images alone, because the effect of another seed is unknown.
    """
    from scipy.special import ndtr  # scipy.stats takes a second to import

    of_images = noise.images / design.images
    of_seeds = 2 * noise.luck / (design.images * design.seeds)
    if design.seeds == 1:
        errors = np.array([math.sqrt(of_images + of_seeds)])
        half_widths = Z_95 * errors
    else:
        every = of_seeds + 2 * np.atleast_1d(noise.seeds)[:, None] / design.seeds
        errors = np.sqrt(of_images + every)
        half_widths = np.sqrt(Z_95**2 * of_images + every * _widths_shown(design.seeds).reshape(1, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        told = np.where(errors > 0, ndtr((difference - half_widths) / errors), 1.0)
    return float(told.mean())


@functools.lru_cache(maxsize=MOST_SEEDS)
def _widths_shown(seeds: int) -> Floats:
    """Returns the squared half-widths for the draw of seeds that two settings may show, in squared errors."""
    from scipy.special import chdtri, stdtrit

    shown = chdtri(seeds - 1, (np.arange(_SPREADS) + 0.5) / _SPREADS) / (seeds - 1) * seeds / 2
    squares, freedom = both_seeds(shown[:, None], shown[None, :], seeds, seeds)
    return np.asarray(stdtrit(freedom, 0.975) ** 2 * squares)


def smallest_difference(noise: PairNoise, design: Design) -> float:
    """Returns the smallest difference, a fraction, that the design detects with 80% power."""
    low, high = 0.0, 1.0
    while power(noise, design, high) < POWER:
        low, high = high, 2 * high
    for _ in range(24):  # bisection, to 1e-7: the power grows with the difference
        middle = (low + high) / 2
        low, high = (low, middle) if power(noise, design, middle) >= POWER else (middle, high)
    return high


def seeds_to_tell(noise: PairNoise, difference: float, images: int) -> int | None:
    """Returns the number of seeds per setting that detects a difference on ``images`` images; None if 100 do not."""
    for seeds in range(2, MOST_SEEDS + 1):
        if power(noise, Design(seeds, images), difference) >= POWER:
            return seeds
    return None


def images_to_tell(noise: PairNoise, difference: float, seeds: int) -> int | None:
    """Returns the number of validation images that detects a difference with ``seeds`` seeds; None if 10 million do
    not.

    The number is rounded to two digits.
    """

    def tells(images: int) -> bool:
        return power(noise, Design(seeds, images), difference) >= POWER

    low, high = 1, MOST_IMAGES
    if not tells(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tells(middle) else (middle + 1, high)
    digits = 10 ** max(0, len(str(low)) - 2)
    return -(-low // digits) * digits
