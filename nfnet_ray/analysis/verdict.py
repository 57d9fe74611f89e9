"""Decides whether one setting is better than another, equal to it in practice, or cannot be told apart from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nfnet_ray.analysis.inference.intervals import Z_95, difference_interval
from nfnet_ray.analysis.inference.paired import PairedDifference, covers_seeds, paired_difference
from nfnet_ray.analysis.inference.power import PairNoise, images_to_tell, seeds_to_tell
from nfnet_ray.analysis.setting import SettingResult
from nfnet_ray.wording import count, in_points

EQUAL_WITHIN = 0.002
"""The difference in accuracy, a fraction, below which settings are equal in practice: 0.2 percentage points."""
SEEDS_NOT_MEASURED = "Run with --seeds 3 to measure it"
SEEDS_TO_COME = "Contenders have more seeds to come"

Kind = Literal["better", "equal", "cannot tell"]
RestsOn = Literal["sweep", "reruns", "reruns of the best"]


@dataclass(frozen=True)
class Contrast:
    """A comparison of the best setting with another one.

    Attributes:
        other: the result of the other setting in the sweep.
        against: the result of the other setting that was compared: in its reruns, or in the sweep.
        difference: the best setting's mean accuracy minus the other's, a fraction.
        low, high: the 95% interval of the difference over images and, if ``covers_seeds``, over seeds.
        is_paired: whether both were compared image by image; else they are treated as measured on independent images.
        covers_seeds: whether both have at least two seeds, or one has and both are assumed to have the same spread.
        probability: the probability that the best setting is better, with a flat prior, over what the interval covers.
        p_value: the p-value of McNemar's exact test if each setting has one seed and the bits are known.
        kind: ``better`` or ``equal`` if the interval covers seeds and lies above 0, or within ``equal_within`` of 0.
        needed: the number of seeds or images that would decide the comparison, in words; empty if decided or unknown.
        rests_on: the trials that were compared: those of the sweep, by which the best setting was chosen; the reruns of
            both; or the reruns of the best setting and the sweep of the other.
    """

    other: SettingResult
    against: SettingResult
    difference: float
    low: float
    high: float
    is_paired: bool
    covers_seeds: bool
    probability: float
    p_value: float | None
    kind: Kind
    needed: str
    rests_on: RestsOn = "sweep"


def contrast(
    best: SettingResult,
    other: SettingResult,
    equal_within: float = EQUAL_WITHIN,
    *,
    one_spread: bool = False,
) -> Contrast:
    """Compares two settings, image by image if the correctness of each image is known for both.

    With ``one_spread``, a setting with a single seed is assumed to have the other's spread between seeds.
    """
    seeds = len(best.seed_top1), len(other.seed_top1)
    with_seeds = covers_seeds(*seeds, one_spread=one_spread)
    paired = paired_settings(best, other, one_spread=one_spread)
    p_value = None
    if paired is not None:
        low, high, probability, p_value = paired.low, paired.high, paired.probability, paired.p_value
    else:
        low, high = difference_interval(
            best.seed_top1, other.seed_top1, best.validation_images, one_spread=one_spread
        )
        # The interval is nearly that of a normal distribution.
        error = (high - low) / (2 * Z_95)
        probability = 0.5 * math.erfc(-(low + high) / 2 / error / math.sqrt(2)) if error else 0.5
    kind: Kind = "cannot tell"
    if with_seeds and low > 0:
        kind = "better"
    elif with_seeds and max(-low, high) <= equal_within:
        kind = "equal"
    needed = ""
    if kind == "cannot tell" and with_seeds and paired is not None:
        difference = max(abs(paired.value), equal_within)
        needed = _needed(paired, difference, best, other)
    value = best.top1 - other.top1
    return Contrast(
        other, other, value, low, high, paired is not None, with_seeds, probability, p_value, kind, needed
    )


def with_seed_spread(found: Contrast, spread: float, seeds: tuple[int, int] = (1, 1)) -> tuple[float, float]:
    """Returns the interval of a contrast that covers only images, widened by a spread between seeds.

    The squares of the half-widths add up, because the seeds are independent of the images.

    Args:
        spread: the standard deviation between seeds, a fraction.
        seeds: the number of seeds of each of the two settings.
    """
    of_seeds = Z_95 * math.sqrt(1 / seeds[0] + 1 / seeds[1]) * spread
    half = math.hypot((found.high - found.low) / 2, of_seeds)
    middle = (found.high + found.low) / 2
    return middle - half, middle + half


def paired_settings(
    a: SettingResult, b: SettingResult, *, one_spread: bool = False
) -> PairedDifference | None:
    """Returns setting a minus setting b, paired by image; None if the correct images of both are not known."""
    if a.images is None or b.images is None or a.images.correct.shape[1] != b.images.correct.shape[1]:
        return None
    both = a.images.measured & b.images.measured
    if both.sum() < 2:
        return None
    if both.all():
        return paired_difference(a.images.correct, b.images.correct, one_spread=one_spread)
    return paired_difference(a.images.correct[:, both], b.images.correct[:, both], one_spread=one_spread)


def _needed(paired: PairedDifference, difference: float, a: SettingResult, b: SettingResult) -> str:
    """Says how many seeds, or images, would be needed to establish a difference."""
    assert a.images is not None
    images = int(np.count_nonzero(a.images.measured))
    seeds = 2 / (1 / len(a.seed_top1) + 1 / len(b.seed_top1))
    luck = max(paired.interaction, 0.0)
    noise = PairNoise(
        images=float(paired.parts.images) * images,
        luck=luck * images * seeds / 2,
        seeds=max(float(paired.parts.seeds) - luck, 0.0) * seeds / 2,
    )
    by_seeds = seeds_to_tell(noise, difference, images)
    by_images = images_to_tell(noise, difference, round(seeds))
    ways = []
    if by_seeds:
        # At least one more than now, because the present number was not sufficient.
        ways.append(f"{count(max(by_seeds, math.ceil(seeds) + 1), 'seed')} of each")
    if by_images and by_images > images:
        ways.append(count(by_images, "validation image"))
    points = in_points(difference)
    if not ways:
        return f"To tell {points} it would take more seeds and more images"
    return f"To tell {points} it would take about {' or '.join(ways)}"
