"""Confidence intervals of accuracies, for the draw of the validation images and the draw of the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

Z_95 = 1.959963984540054
"""The 97.5% quantile of the standard normal distribution: two-sided 95% intervals."""


def wilson_interval(fraction: float, n: int) -> tuple[float, float]:
    """95% score interval of a fraction that was seen in ``n`` independent draws (Wilson 1927).

    .. math:: \\frac{p + z^2/2n \\pm z\\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    It stays within 0 and 1 and is right where accuracies are high, unlike ``p ± z·sqrt(p(1-p)/n)``.

    >>> [round(bound, 3) for bound in wilson_interval(0.972, 360)]
    [0.949, 0.985]
    """
    centre = fraction + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(fraction * (1 - fraction) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def accuracy_interval(seed_top1: Sequence[float], images: int) -> tuple[float, float]:
    """95% interval of a setting's accuracy, for the draw of the images and, from two seeds on, of the seeds.

    The images are the same for all seeds, so more seeds do not narrow their part: it is Wilson's interval of the
    mean. The seeds' part is Student's t interval of the mean of ``k`` seeds. Their half-widths :math:`w` and
    :math:`t_{k-1} s/\\sqrt{k}` are independent and add in squares (MOVER: Zou & Donner 2008, equation 4).

    Args:
        seed_top1: the accuracy of each seed, a fraction. With a single one the interval is that of the images alone.
        images: on how many validation images each was measured.
    """
    mean = fmean(seed_top1)
    low, high = wilson_interval(mean, images)
    seeds = _seed_half_width(_squared_error(seed_top1), 0.0, len(seed_top1), len(seed_top1))
    return max(0.0, mean - math.hypot(mean - low, seeds)), min(1.0, mean + math.hypot(high - mean, seeds))


def difference_interval(
    seed_top1_a: Sequence[float], seed_top1_b: Sequence[float], images: int
) -> tuple[float, float]:
    """95% interval of ``mean(a) - mean(b)``, for the draw of the images and, from two seeds each on, of the seeds.

    The images' part is Newcombe's interval (1998, method 10), as if each setting had been given images of its own.
    Two networks that are evaluated on the same images err on partly the same ones, so this part is wider than it
    has to be. The seeds' part is Welch's t interval (1947), which lets each setting have a spread of its own; the
    half-widths add in squares as in :func:`accuracy_interval`.

    In simulation two equal settings are told apart in at most 3.5% of cases with 2, 3 and 5 seeds, a standard
    deviation between seeds of 0.2 to 1 point, and 360 to 50,000 images; the best of six equal settings in at most
    1% (``tests/dashboards/test_intervals.py``). Other seeds can change the order of two settings that have a
    single seed each, whatever this interval says.

    Args:
        seed_top1_a, seed_top1_b: the accuracy of each seed, fractions. If either has a single seed, the interval is
            that of the images alone.
        images: on how many validation images each was measured.
    """
    a, b = fmean(seed_top1_a), fmean(seed_top1_b)
    (low_a, high_a), (low_b, high_b) = wilson_interval(a, images), wilson_interval(b, images)
    seeds = 0.0
    if min(len(seed_top1_a), len(seed_top1_b)) > 1:
        errors = _squared_error(seed_top1_a), _squared_error(seed_top1_b)
        seeds = _seed_half_width(*errors, len(seed_top1_a), len(seed_top1_b))
    difference = a - b
    return (
        difference - math.hypot(a - low_a, high_b - b, seeds),
        difference + math.hypot(high_a - a, b - low_b, seeds),
    )


def _squared_error(seed_top1: Sequence[float]) -> float:
    """The squared standard error of the mean over seeds; 0 of a single one, whose spread is not known."""
    return variance(seed_top1) / len(seed_top1) if len(seed_top1) > 1 else 0.0


def _seed_half_width(error_a: float, error_b: float, seeds_a: int, seeds_b: int) -> float:
    """Half of Welch's 95% interval, from squared standard errors; Student's where ``error_b`` is 0."""
    if error_a + error_b == 0:
        return 0.0
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    freedom = (error_a + error_b) ** 2 / (error_a**2 / max(seeds_a - 1, 1) + error_b**2 / max(seeds_b - 1, 1))
    return float(stdtrit(freedom, 0.975)) * math.sqrt(error_a + error_b)
