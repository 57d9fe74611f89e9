"""Confidence intervals of accuracies over the draw of the validation images and the draw of the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z_95 = 1.959963984540054
"""The 97.5% quantile of the standard normal distribution, for two-sided 95% intervals."""


def wilson_interval(fraction: float, n: int) -> tuple[float, float]:
    """Returns the 95% score interval of a fraction that was observed in ``n`` independent draws (Wilson 1927).

    .. math:: \\frac{p + z^2/2n \\pm z\\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    Unlike ``p ± z·sqrt(p(1-p)/n)``, the interval stays within 0 and 1 and is accurate for high accuracies.

    >>> [round(bound, 3) for bound in wilson_interval(0.972, 360)]
    [0.949, 0.985]
    """
    low, high = wilson_bounds(fraction, n)
    return float(low), float(high)


def wilson_bounds(fraction: float | Floats, n: float | Floats) -> tuple[Floats, Floats]:
    """Returns the bounds of :func:`wilson_interval` for any number of fractions at once."""
    centre = np.asarray(fraction + Z_95**2 / (2 * n))
    spread = Z_95 * np.sqrt(fraction * (1 - fraction) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return np.maximum(0.0, (centre - spread) / scale), np.minimum(1.0, (centre + spread) / scale)


def images_like(accuracy: float | Floats, squared_error: float | Floats) -> Floats:
    """Returns the number of independent images that would give an accuracy this squared standard error; at most 1e9."""
    accuracy = np.asarray(accuracy, np.float64)
    return np.minimum(accuracy * (1 - accuracy) / np.maximum(squared_error, 1e-12), 1e9)


def setting_half_width(
    images: float | Floats, seeds: float | Floats, freedom: float | Floats, quantile: float | Floats = 0.975
) -> Floats:
    """Returns half the width of the interval of one setting's accuracy, over the draw of images and seeds.

    Let :math:`I` be the squared standard error for the images, :math:`S` that for the seeds with :math:`\\nu` degrees
    of freedom, and :math:`z` and :math:`t_\\nu` quantiles of the normal and of Student's distribution. There are two
    usual methods: adding the half-widths in squares (MOVER: Zou & Donner 2008, equation 4), and Student's t for the sum
    with the degrees of freedom of Satterthwaite (1946),

    .. math:: h_1^2 = z^2 I + t_\\nu^2 S, \\qquad h_2^2 = t_{\\nu'}^2 (I + S), \\qquad \\nu' = \\nu (I + S)^2 / S^2.

    With two seeds, i.e. one degree of freedom, the first method covers up to 98.7% if the images dominate, and the
    second as little as 87.3% if the seeds do. Their weights therefore depend on the seeds' share :math:`r = S / (I +
    S)` of the observed variance: :math:`h^2 = w h_1^2 + (1 - w) h_2^2` with :math:`w = \\min(1, 1.5 r)`. Of some sixty
    weights tried, this is the simplest that covers 93.5 to 96.8% for any ratio of the true errors with one degree of
    freedom; with two it covers 95 to 96.2%, with four 95 to 95.9%.

    Args:
        images, seeds: squared standard errors of the mean, of the same shape. ``seeds`` is 0 if unknown.
        freedom: degrees of freedom of ``seeds``.
        quantile: the quantile of the upper bound: 0.975 for a 95% interval.
    """
    from scipy.special import ndtri, stdtrit  # scipy.stats takes a second to import

    images, seeds = np.asarray(images, np.float64), np.asarray(seeds, np.float64)
    total = images + seeds
    normal = ndtri(quantile)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, seeds / total, 0.0)
        # Beyond a billion degrees of freedom, Student's distribution equals the normal one.
        of_sum = np.where(share > 3e-5, stdtrit(freedom / np.maximum(share, 3e-5) ** 2, quantile), normal)
    in_squares = normal**2 * images + stdtrit(freedom, quantile) ** 2 * seeds
    weight = np.minimum(1.0, 1.5 * share)
    return np.asarray(np.sqrt(weight * in_squares + (1 - weight) * of_sum**2 * total), np.float64)


def accuracy_interval(seed_top1: Sequence[float], images: int) -> tuple[float, float]:
    """Returns the 95% interval of a setting's accuracy over the images and, with at least two seeds, over the seeds.

    The images are the same for all seeds, so more seeds do not narrow the images' part, which is Wilson's interval of
    the mean. The seeds' part is their standard error. :func:`setting_half_width` combines the parts.

    Args:
        seed_top1: the accuracy of each seed, a fraction. With a single seed, the interval covers the images only.
        images: the number of validation images on which each seed was measured.
    """
    mean = fmean(seed_top1)
    low, high = wilson_interval(mean, images)
    if len(seed_top1) == 1:
        return low, high
    below, above = setting_half_width(
        np.array([mean - low, high - mean]) ** 2 / Z_95**2,
        np.full(2, _squared_error(seed_top1)),
        len(seed_top1) - 1,
    ).tolist()
    return max(0.0, mean - below), min(1.0, mean + above)


def difference_interval(
    seed_top1_a: Sequence[float], seed_top1_b: Sequence[float], images: int, *, one_spread: bool = False
) -> tuple[float, float]:
    """Returns the 95% interval of ``mean(a) - mean(b)`` over images and, with at least two seeds each, over seeds.

    The images' part is Newcombe's interval (1998, method 10), which assumes that each setting was measured on separate
    images. Two networks that are evaluated on the same images share some of their errors, so this part is wider than
    necessary. The seeds' part is Welch's t interval (1947), which allows each setting its own spread. The half-widths
    are added in squares (MOVER: Zou & Donner 2008, equation 4).

    In simulation two equal settings are told apart in at most 3.5% of cases with 2, 3 and 5 seeds, a standard deviation
    between seeds of 0.2 to 1 point, and 360 to 50,000 images; the best of six equal settings in at most 1%
    (``tests/dashboards/test_intervals.py``). If two settings have a single seed each, other seeds can change their
    order, whatever this interval says.

    Args:
        seed_top1_a, seed_top1_b: the accuracy of each seed, fractions. If either has a single seed, the interval covers
            the images only.
        images: the number of validation images on which each seed was measured.
        one_spread: whether a setting with a single seed is assumed to have the other's spread between seeds, so that
            the interval covers seeds, too.
    """
    a, b = fmean(seed_top1_a), fmean(seed_top1_b)
    (low_a, high_a), (low_b, high_b) = wilson_interval(a, images), wilson_interval(b, images)
    seeds = 0.0
    if min(len(seed_top1_a), len(seed_top1_b)) > 1:
        errors = _squared_error(seed_top1_a), _squared_error(seed_top1_b)
        seeds = _seed_half_width(*errors, len(seed_top1_a), len(seed_top1_b))
    elif one_spread and (several := max(seed_top1_a, seed_top1_b, key=len))[1:]:
        number = len(several)
        seeds = _seed_half_width(variance(several) * (1 / number + 1), 0.0, number, 2)
    difference = a - b
    return (
        difference - math.hypot(a - low_a, high_b - b, seeds),
        difference + math.hypot(high_a - a, b - low_b, seeds),
    )


def _squared_error(seed_top1: Sequence[float]) -> float:
    """Returns the squared standard error of the mean over seeds; 0 for a single seed, whose spread is unknown."""
    return variance(seed_top1) / len(seed_top1) if len(seed_top1) > 1 else 0.0


def _seed_half_width(error_a: float, error_b: float, seeds_a: int, seeds_b: int) -> float:
    """Returns half of Welch's 95% interval, from squared standard errors."""
    if error_a + error_b == 0:
        return 0.0
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    freedom = (error_a + error_b) ** 2 / (error_a**2 / (seeds_a - 1) + error_b**2 / (seeds_b - 1))
    return float(stdtrit(freedom, 0.975)) * math.sqrt(error_a + error_b)
