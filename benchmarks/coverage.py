"""How often intervals cover the truth, in simulated studies: ``python -m benchmarks.coverage [--studies N]``.

For each number of seeds, spread between seeds, number of images and agreement: the share of studies in which the 95%
interval of a difference, and that of a single setting, contain the truth; and, of the best of several settings that are
equal or of which one is better by half a point, how often it is called better than the next one, how often the interval
that allows for the choice contains the truth, and what is left of the bias. Appends a row for each to
``results/coverage.csv``. Takes an hour of one core with 2,000 studies.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Row, append_rows
from nfnet_ray.analysis.inference.paired import (
    Moments,
    Parts,
    bonett_price,
    difference_parts,
    setting_parts,
)
from nfnet_ray.analysis.inference.selection import noise_of, optimism
from nfnet_ray.analysis.inference.simulation import simulated_moments, trial_accuracies
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser

RESULTS = Path(__file__).with_name("results") / "coverage.csv"
# (images, accuracy, agreement)
CASES = [
    (360, 0.9, 0.92),
    (360, 0.5, 0.5),
    (2000, 0.8, 0.8),
    (10_000, 0.5, 0.7),
    (50_000, 0.8, 0.9),
    (50_000, 0.9, 0.95),
]
SPREADS = (0.0, 0.002, 0.005, 0.01)
LEAD = 0.005
CHOSEN_STUDIES = 1000  # each of them draws its optimism anew
DRAWS = 1000


def pairs(studies: int) -> Iterator[Row]:
    """A row for each case of two settings."""
    for seeds, spread, (images, accuracy, agreement) in itertools.product((1, 2, 3, 5), SPREADS, CASES):
        if seeds == 1 and spread:
            continue  # its interval is for the images alone
        draw = np.random.default_rng([seeds, round(1e4 * spread), images, round(100 * agreement)])
        truth = trial_accuracies(draw, studies, np.array([accuracy, accuracy]), seeds, spread)
        moments = simulated_moments(draw, truth, images, agreement)
        difference = _difference(moments, seeds)
        single = setting_parts(moments.only(range(seeds)))
        yield {
            "settings": 2,
            "lead": 0.0,
            "seeds": seeds,
            "seed_spread": spread,
            "images": images,
            "agreement": agreement,
            "difference_covered": _share(np.abs(difference.value) <= difference.half_width()),
            "single_covered": _share(np.abs(single.value - accuracy) <= single.half_width()),
            "called_better": _share(np.abs(difference.value) > difference.half_width()),
            "best_covered": "",
            "bias_points": "",
            "bias_left_points": "",
            "studies": studies,
        }


def chosen(studies: int) -> Iterator[Row]:
    """A row for each case of the best of several settings."""
    for settings, seeds, lead, spread, case in itertools.product(
        (6, 50), (1, 3), (0.0, LEAD), (0.0, 0.005), CASES[::2]
    ):
        if seeds == 1 and spread:
            continue
        images, accuracy, agreement = case
        draw = np.random.default_rng([settings, seeds, round(1e4 * spread), images])
        means = np.full(settings, accuracy)
        means[0] += lead
        better = covered = 0
        bias: list[float] = []
        left: list[float] = []
        for _ in range(studies):
            truth = trial_accuracies(draw, 1, means, seeds, spread)
            moments = simulated_moments(draw, truth, images, agreement)
            one = Moments(moments.mean[0], moments.covariance[0], images)
            seen = one.mean.reshape(settings, seeds).mean(axis=1)
            found = optimism(seen, noise_of(one, [seeds] * settings), DRAWS)
            # Of a single seed the truth is that of its network.
            true = float(means[found.best] if seeds > 1 else truth[0, found.best])
            of_best = range(found.best * seeds, (found.best + 1) * seeds)
            second = int(np.argsort(np.where(np.arange(settings) == found.best, -1, seen))[-1])
            pair = one.only([*of_best, *range(second * seeds, (second + 1) * seeds)])
            difference = _difference(pair, seeds)
            better += bool(difference.value > difference.half_width())
            half = float(setting_parts(one.only(of_best)).half_width())
            covered += seen[found.best] - half - found.lower <= true <= seen[found.best] + half
            bias.append(float(seen[found.best]) - true)
            left.append(bias[-1] - found.mean)
        yield {
            "settings": settings,
            "lead": lead,
            "seeds": seeds,
            "seed_spread": spread,
            "images": images,
            "agreement": agreement,
            "difference_covered": "",
            "single_covered": "",
            "called_better": round(better / studies, 4),
            "best_covered": round(covered / studies, 4),
            "bias_points": round(100 * float(np.mean(bias)), 3),
            "bias_left_points": round(100 * float(np.mean(left)), 3),
            "studies": studies,
        }


def _difference(moments: Moments, seeds: int) -> Parts:
    if seeds > 1:
        return difference_parts(moments, seeds)
    # How many images just one of them has right, from the variance of the difference and the difference.
    images = moments.images
    difference = moments.mean[..., 0] - moments.mean[..., 1]
    variance = moments.covariance[..., 0, 0] + moments.covariance[..., 1, 1]
    variance = (variance - 2 * moments.covariance[..., 0, 1]) * (images - 1) / images
    either = (variance + difference**2) * images
    return bonett_price((either + difference * images) / 2, (either - difference * images) / 2, images)


def _share(covered: NDArray[np.bool_]) -> float:
    return round(float(covered.mean()), 4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries every case."""
    parser = OneLineParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--studies", type=positive, default=2000, metavar="N")
    studies = parser.parse_args(arguments).studies
    for row in itertools.chain(pairs(studies), chosen(min(studies, CHOSEN_STUDIES))):
        append_rows(RESULTS, [row])


if __name__ == "__main__":
    main()
