"""Whether one setting is better than another: better, equal in practice, or not to be told."""

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
"""Settings whose accuracies differ by less are equal in practice, a fraction: two points of a thousand."""
SEEDS_NOT_MEASURED = "Run with --seeds 3 to measure it"
SEEDS_TO_COME = "Contenders have more seeds to come"

Kind = Literal["better", "equal", "cannot tell"]
RestsOn = Literal["sweep", "reruns", "reruns of the best"]


@dataclass(frozen=True)
class Contrast:
    """The best setting compared with another one.

    Attributes:
        other: the other setting, in the sweep.
        against: what the best one was compared with: the other setting in its reruns, or in the sweep.
        difference: the best one's mean accuracy less the other's, a fraction.
        low, high: 95% interval of the difference, over images and, if ``covers_seeds``, over seeds.
        is_paired: whether they were compared image by image; else as if each had been given images of its own.
        covers_seeds: whether both have two seeds or more, or one of them has and both are taken to spread alike.
        probability: how probable it is that the best is better, with a flat prior; over what the interval covers.
        p_value: of McNemar's exact test, where each has one seed and the bits are known.
        kind: ``better`` or ``equal`` if the interval covers seeds and lies above 0, or within ``equal_within`` of it.
        needed: what it would take to tell, in words; empty if it is told or not known.
        rests_on: the trials that were compared: those of the sweep, by which the best one was chosen; the reruns of
            both; or the reruns of the best one with the other in the sweep.
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
    """Compares two settings, image by image if it is known which images their trials had right.

    With ``one_spread`` the seeds of a setting that has a single one are taken to spread as those of the other do.
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
        # The interval is nearly that of a normal variate.
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
    """The interval of a contrast that covers images alone, widened by a spread between seeds.

    The half-widths add in squares, as the seeds of the two have nothing to do with the images.

    Args:
        spread: a standard deviation, a fraction.
        seeds: how many each of the two has.
    """
    of_seeds = Z_95 * math.sqrt(1 / seeds[0] + 1 / seeds[1]) * spread
    half = math.hypot((found.high - found.low) / 2, of_seeds)
    middle = (found.high + found.low) / 2
    return middle - half, middle + half


def paired_settings(
    a: SettingResult, b: SettingResult, *, one_spread: bool = False
) -> PairedDifference | None:
    """Setting a less setting b, image by image; None if it is not known which images both had right."""
    if a.images is None or b.images is None or a.images.correct.shape[1] != b.images.correct.shape[1]:
        return None
    both = a.images.measured & b.images.measured
    if both.sum() < 2:
        return None
    if both.all():
        return paired_difference(a.images.correct, b.images.correct, one_spread=one_spread)
    return paired_difference(a.images.correct[:, both], b.images.correct[:, both], one_spread=one_spread)


def _needed(paired: PairedDifference, difference: float, a: SettingResult, b: SettingResult) -> str:
    """How many seeds, or images, would tell a difference."""
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
        # One more at least: with these it was not told.
        ways.append(f"{count(max(by_seeds, math.ceil(seeds) + 1), 'seed')} of each")
    if by_images and by_images > images:
        ways.append(count(by_images, "validation image"))
    points = in_points(difference)
    if not ways:
        return f"To tell {points} it would take more seeds and more images"
    return f"To tell {points} it would take about {' or '.join(ways)}"
