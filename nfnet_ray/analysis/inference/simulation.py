"""Simulates studies with known true accuracies, i.e. which images each trial has right, to test intervals.

The difficulty of an image is a normal variate, the same for all trials. A trial has the image right if the sum of the
difficulty and a second variate of the trial is below a threshold. The images' share of the variance determines how
often two trials agree.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.analysis.inference.paired import Bits, Floats, Moments

BITS_UP_TO = 1000
"""The most validation images for which every bit is simulated."""
_GRADES = 96
"""The number of equally likely grades of difficulty for more images. Within a grade, bits of trials are independent."""


def trial_accuracies(
    draw: np.random.Generator, studies: int, settings: Floats, seeds: int, spread: float | Floats
) -> Floats:
    """Returns (studies, settings · seeds) the accuracy that each trial would have on infinitely many images.

    Args:
        settings: (settings,) the accuracy of each setting, a fraction.
        spread: the standard deviation between seeds, a fraction; one for all settings or (settings,) one for each.
    """
    moved = np.reshape(spread, (-1, 1)) * draw.standard_normal((studies, len(settings), seeds))
    return np.clip((settings[:, None] + moved).reshape(studies, -1), 1e-3, 1 - 1e-3)


def simulated_moments(
    draw: np.random.Generator, accuracies: Floats, images: int, agreement: float
) -> Moments:
    """Returns the moments that trials of ``accuracies`` (studies, trials) show on ``images`` validation images.

    Args:
        agreement: the share of the images on which two trials of the mean accuracy agree.
    """
    shared = shared_variance(float(accuracies.mean()), agreement)
    if images <= BITS_UP_TO:
        bits = simulated_bits(draw, accuracies, images, shared).astype(np.float32)
        both = np.einsum("rti,rui->rtu", bits, bits, optimize=True) / images
        mean = bits.mean(axis=2, dtype=np.float64)
    else:
        graded = _by_grade(accuracies, shared)
        count = draw.multinomial(images, np.full(_GRADES, 1 / _GRADES), len(accuracies))
        right = draw.binomial(count[:, None, :], graded)
        mean = right.sum(axis=2) / images
        share = right / np.sqrt(np.maximum(count, 1)[:, None, :])
        # For two trials, the expected number in each grade; for a trial with itself, the number itself.
        both = np.matmul(share, share.transpose(0, 2, 1)) / images
        diagonal = np.arange(mean.shape[1])
        both[:, diagonal, diagonal] = mean
    covariance = (both - mean[:, :, None] * mean[:, None, :]) * images / (images - 1)
    return Moments(mean, covariance, images)


def simulated_bits(draw: np.random.Generator, accuracies: Floats, images: int, shared: float) -> Bits:
    """Returns (studies, trials, images) the bits; ``shared`` is :func:`shared_variance`."""
    from scipy.special import ndtri

    studies, trials = accuracies.shape
    hardness = np.sqrt(shared) * draw.standard_normal((studies, 1, images), np.float32)
    own = np.sqrt(1 - shared) * draw.standard_normal((studies, trials, images), np.float32)
    bits: NDArray[np.bool_] = hardness + own < ndtri(accuracies)[:, :, None]
    return bits


def simulated_rung(
    draw: np.random.Generator,
    at_rung: Floats,
    at_end: Floats,
    images: int,
    shared: float,
    kept: float,
) -> tuple[Bits, Bits]:
    """Returns which images the trials of one study have right at a rung and at the end, each (trials, images).

    Args:
        at_rung, at_end: (trials,) the accuracy of each trial at that time.
        shared: :func:`shared_variance`.
        kept: the share of a trial's own part that is kept from the rung to the end: 0 for a rung that predicts only the
            accuracy, 1 for a rung at the end.
    """
    from scipy.special import ndtri

    shape, own = (len(at_end), images), 1 - shared
    hardness = np.sqrt(shared) * draw.standard_normal((1, images), np.float32)
    lasting = hardness + np.sqrt(own * kept) * draw.standard_normal(shape, np.float32)
    rung, end = (
        lasting + np.sqrt(own * (1 - kept)) * draw.standard_normal(shape, np.float32)
        < ndtri(accuracies)[:, None]
        for accuracies in (at_rung, at_end)
    )
    return rung, end


def shared_variance(accuracy: float, agreement: float) -> float:
    """Returns the images' share of the variance at which two trials of this accuracy agree this often.

    The share is 0 if they would agree more often by chance alone.
    """
    # 40 bisections of a share from 0 to 1 take a millisecond.
    low, high = 0.0, 0.9999
    for _ in range(40):
        middle = (low + high) / 2
        right = _by_grade(np.array([[accuracy]]), middle, grades=2000)[0, 0]
        if float((right**2 + (1 - right) ** 2).mean()) < agreement:
            low = middle
        else:
            high = middle
    return low


def _by_grade(accuracies: Floats, shared: float, grades: int = _GRADES) -> Floats:
    """Returns (…, trials, grades) the probability that a trial has an image of each grade right."""
    from scipy.special import ndtr, ndtri

    hardness = np.sqrt(shared) * _hardness(grades)
    right = ndtr((ndtri(accuracies)[..., None] - hardness) / np.sqrt(1 - shared))
    # The number of grades is small, so their mean deviates a little.
    return np.clip(right + (accuracies - right.mean(axis=-1))[..., None], 0.0, 1.0)


@functools.cache
def _hardness(grades: int) -> Floats:
    """Returns (grades,) the difficulty of images: the middles of equal shares of a standard normal distribution."""
    from scipy.special import ndtri

    middles: Floats = ndtri((np.arange(grades) + 0.5) / grades)
    return middles
