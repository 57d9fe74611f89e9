"""Which differences a design can tell, and what it would take to tell smaller ones.

A design tells a difference if, in 80% of studies in which the difference is there, the 95% interval of two settings
excludes 0. What it depends on: on how many images two trials judge differently, the spread between seeds, the number of
images and of seeds.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from nfnet_ray.analysis.inference.intervals import Z_95
from nfnet_ray.analysis.inference.paired import Floats, both_seeds

POWER = 0.8
"""Share of studies in which a difference that is there is to be told."""
_SPREADS = 40
"""Quantiles of the spread between seeds that each setting may show, over which the power is averaged."""
_VARIANCES = 30
"""Quantiles of an estimated variance between seeds, over which the power is averaged too."""
MOST_SEEDS = 100
MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class PairNoise:
    """How far the difference of two settings varies, as squared standard errors of one seed each on one image.

    Attributes:
        images: for the draw of images: some are harder for one setting than for the other.
        luck: of what each seed gets right by luck, per trial; both trials have their own.
        seeds: variance between seeds of one setting, of its accuracy on images without end. Several values, each as
            probable as the others, where it is only estimated.
    """

    images: float
    luck: float
    seeds: float | tuple[float, ...]

    @staticmethod
    def assumed(disagreement: float, seed_spread: float) -> PairNoise:
        """Of settings that are hardly different: what two trials judge differently is luck.

        Args:
            disagreement: share of the images that two trials judge differently.
            seed_spread: standard deviation between seeds, a fraction.
        """
        return PairNoise(0.0, disagreement / 2, seed_spread**2)

    @staticmethod
    def measured(disagreement: float, trial_variance: float, freedom: float, luck: float) -> PairNoise:
        """The same of settings whose variance between seeds was estimated, and is as uncertain as that says.

        The true variance is distributed as the estimate times its degrees of freedom over chi-squared: with a flat
        prior of its logarithm, so that power is what is promised whatever the true spread is, on average over what
        earlier studies may show of it.

        Args:
            disagreement: share of the images that two trials judge differently.
            trial_variance: of a trial's measured accuracy, between seeds.
            freedom: degrees of freedom of ``trial_variance``.
            luck: the part of ``trial_variance`` that is what each seed got right by luck on those images.
        """
        from scipy.special import chdtri

        quantiles = (np.arange(_VARIANCES) + 0.5) / _VARIANCES
        likely = np.maximum(trial_variance * freedom / chdtri(freedom, quantiles) - luck, 0.0)
        return PairNoise(0.0, disagreement / 2, tuple(likely.tolist()))


@dataclass(frozen=True)
class Design:
    """How many seeds each setting has, and on how many validation images it is measured."""

    seeds: int
    images: int


def power(noise: PairNoise, design: Design, difference: float) -> float:
    """The share of studies in which the design tells a difference, a fraction above 0.

    Few seeds show a spread that is far from the true one, and the interval is as wide as that says. So the power is the
    mean over the spreads that the two settings may show, as in the noncentral t distribution. A difference of the
    expected half-width and 0.84 standard errors is told in 74% of studies with two or three seeds, and not in 80%.

    With a single seed it is for the images alone: nothing is known of what another seed would change.
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
    """The squared half-widths that two settings may show for the draw of the seeds, in units of its squared error."""
    from scipy.special import chdtri, stdtrit

    shown = chdtri(seeds - 1, (np.arange(_SPREADS) + 0.5) / _SPREADS) / (seeds - 1) * seeds / 2
    squares, freedom = both_seeds(shown[:, None], shown[None, :], seeds, seeds)
    return np.asarray(stdtrit(freedom, 0.975) ** 2 * squares)


def smallest_difference(noise: PairNoise, design: Design) -> float:
    """The smallest difference, a fraction, that the design tells with 80% power."""
    low, high = 0.0, 1.0
    while power(noise, design, high) < POWER:
        low, high = high, 2 * high
    for _ in range(24):  # bisection, to 1e-7: the power grows with the difference
        middle = (low + high) / 2
        low, high = (low, middle) if power(noise, design, middle) >= POWER else (middle, high)
    return high


def seeds_to_tell(noise: PairNoise, difference: float, images: int) -> int | None:
    """The number of seeds for each setting that tells a difference on ``images`` images; None if 100 do not."""
    for seeds in range(2, MOST_SEEDS + 1):
        if power(noise, Design(seeds, images), difference) >= POWER:
            return seeds
    return None


def images_to_tell(noise: PairNoise, difference: float, seeds: int) -> int | None:
    """The number of validation images that tells a difference with ``seeds`` seeds, to two digits; else None."""

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
