"""How often intervals cover the truth, in simulated studies: ``python -m benchmarks.coverage [--studies N]``.

For each number of seeds, spread between seeds, number of images and agreement: the share of studies in which the 95%
interval of a difference, and that of a single setting, contain the truth; and, of the best of several settings that are
equal or of which one is better by half a point, how often it is called better than the next one, how often the interval
that allows for the choice contains the truth, and what is left of the bias; the same where one setting in six has five
times the spread of the others, and where a third of the settings was promoted from a rung. Appends a row for each to
``results/coverage.csv``, and to ``results/coverage_of_reruns.csv`` how the best in its reruns compares with the next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Row, append_rows
from nfnet_ray.analysis.inference.kept_luck import luck_kept
from nfnet_ray.analysis.inference.paired import (
    Bits,
    Floats,
    Moments,
    Parts,
    bonett_price,
    difference_parts,
    setting_interval,
)
from nfnet_ray.analysis.inference.selection import Rung, noise_of, optimism
from nfnet_ray.analysis.inference.simulation import (
    shared_variance,
    simulated_moments,
    simulated_rung,
    trial_accuracies,
)
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser

RESULTS = Path(__file__).with_name("results") / "coverage.csv"
RESULTS_OF_RERUNS = RESULTS.with_name("coverage_of_reruns.csv")
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
# (of one setting in six, of the others): the first is at the edge of divergence.
UNEQUAL_SPREADS = (0.01, 0.002)
DRAWS = 1000
RUNG_CASE = (2000, 0.8, 0.85)
LEARNT_AFTER_RUNG = 0.03
ETA = 3
# Of what is a trial's own: it judges 87 and 93% of the images at the rung as it does at the end, other trials 85%.
KEPT = (0.3, 0.8)


def pairs(studies: int) -> Iterator[Row]:
    """A row for each case of two settings."""
    for seeds, spread, (images, accuracy, agreement) in itertools.product((1, 2, 3, 5), SPREADS, CASES):
        if seeds == 1 and spread:
            continue  # its interval is for the images alone
        draw = np.random.default_rng([seeds, round(1e4 * spread), images, round(100 * agreement)])
        truth = trial_accuracies(draw, studies, np.array([accuracy, accuracy]), seeds, spread)
        moments = simulated_moments(draw, truth, images, agreement)
        difference = _difference(moments, seeds)
        low, high = setting_interval(moments.only(range(seeds)))
        yield {
            "settings": 2,
            "halving": "none",
            "lead": 0.0,
            "seeds": seeds,
            "seed_spread": spread,
            "images": images,
            "agreement": agreement,
            "difference_covered": _share(np.abs(difference.value) <= difference.half_width()),
            "single_covered": _share((low <= accuracy) & (accuracy <= high)),
            "called_better": _share(np.abs(difference.value) > difference.half_width()),
            "best_covered": "",
            "bias_points": "",
            "bias_left_points": "",
            "studies": studies,
        }


def chosen(studies: int) -> Iterator[Row]:
    """A row for each case of the best of several settings."""
    spreads_tried: tuple[float | tuple[float, float], ...] = (0.0, 0.005, UNEQUAL_SPREADS)
    for settings, seeds, lead, spread, case in itertools.product(
        (2, 6, 50), (1, 2, 3), (0.0, LEAD), spreads_tried, CASES[::2]
    ):
        if seeds == 1 and spread:
            continue
        images, accuracy, agreement = case
        spreads = _spreads(settings, spread)
        draw = np.random.default_rng([settings, seeds, *(1e4 * spreads).round().astype(int), images])
        means = np.full(settings, accuracy)
        means[0] += lead
        seen: list[Choice] = []
        for _ in range(studies):
            truth = trial_accuracies(draw, 1, means, seeds, spreads)
            moments = simulated_moments(draw, truth, images, agreement)
            one = Moments(moments.mean[0], moments.covariance[0], images)
            seen.append(_choice(one, means, truth[0], seeds))
        shown = spread if isinstance(spread, float) else f"{spread[0]} of a sixth, else {spread[1]}"
        yield _row(settings, seeds, lead, shown, case, "none", seen)


def _spreads(settings: int, spread: float | tuple[float, float]) -> Floats:
    """(settings,) the standard deviation between seeds of each; the wild ones follow the first, which may lead."""
    if isinstance(spread, float):
        return np.full(settings, spread)
    wild = max(1, settings // 6)
    return np.where((np.arange(settings) > 0) & (np.arange(settings) <= wild), *spread)


def halved(studies: int) -> Iterator[Row]:
    """A row for each case of the best of several settings of which a third was trained to the end."""
    for settings, seeds, spread, lasts in itertools.product((6, 50), (1, 2, 3), (0.0, 0.005), KEPT):
        if seeds == 1 and spread:
            continue
        images, accuracy, agreement = RUNG_CASE
        shared = shared_variance(accuracy, agreement)
        draw = np.random.default_rng([settings, seeds, round(1e4 * spread), round(10 * lasts)])
        means = np.full(settings, accuracy)
        survivors = max(2, math.ceil(settings / ETA))
        seen: list[Choice] = []
        for _ in range(studies):
            truth = trial_accuracies(draw, 1, means, seeds, spread)[0]
            rung, end = simulated_rung(draw, truth - LEARNT_AFTER_RUNG, truth, images, shared, lasts)
            at_rung = rung.mean(axis=1).reshape(settings, seeds).mean(axis=1)
            promoted = np.sort(np.argsort(-at_rung)[:survivors])
            given_up = np.setdiff1d(np.arange(settings), promoted)
            finished, others = (
                (chosen[:, None] * seeds + np.arange(seeds)).reshape(-1) for chosen in (promoted, given_up)
            )
            # As nfnet_ray.analysis.effects.given_up has them.
            at_end = end[finished].mean(axis=1).reshape(survivors, seeds).mean(axis=1)
            as_at_end = at_rung[given_up] + (at_end - at_rung[promoted]).mean()
            moments = Moments.of(np.concatenate([end[finished], rung[others]]))
            kept = luck_kept(_by_setting(rung, seeds), _by_setting(end[finished], seeds), promoted.tolist())
            rungs = [Rung(survivors, kept)]
            seen.append(_choice(moments, means[promoted], truth[finished], seeds, as_at_end, rungs))
        yield _row(settings, seeds, 0.0, spread, RUNG_CASE, f"a third, {lasts:g} kept", seen)


def confirmed(studies: int) -> Iterator[Row]:
    """A row for each case of the best of several settings, compared with the next by its reruns with fresh seeds.

    Either the best alone is rerun, or both are, as the winners under two conditions.
    """
    spreads_tried: tuple[float | tuple[float, float], ...] = (0.0, 0.005, UNEQUAL_SPREADS)
    for settings, (seeds, reruns), lead, spread, (images, accuracy, agreement) in itertools.product(
        (2, 6, 50), ((1, 3), (1, 5), (3, 3)), (0.0, LEAD), spreads_tried, CASES[::2]
    ):
        spreads = _spreads(settings, spread)
        means = np.full(settings, accuracy)
        means[0] += lead
        draw = np.random.default_rng([settings, seeds, reruns, *(1e4 * spreads).round().astype(int), images])
        parts = [
            _reruns_of(draw, min(_AT_ONCE, studies - done), means, spreads, seeds, reruns, images, agreement)
            for done in range(0, studies, _AT_ONCE)
        ]
        for number, rerun in enumerate(("best", "both")):
            found, swept, true = (
                np.concatenate([part[number][column] for part in parts]) for column in range(3)
            )
            low, high = found.T
            yield {
                "settings": settings,
                "seeds": seeds,
                "reruns": reruns,
                "rerun": rerun,
                "lead": lead,
                "seed_spread": spread
                if isinstance(spread, float)
                else f"{spread[0]} of a sixth, else {spread[1]}",
                "images": images,
                "agreement": agreement,
                "difference_covered": _share((low <= true) & (true <= high)),
                "called_better": _share(low > 0),
                "below_the_next": _share(high < 0),
                "called_better_in_sweep": _share(swept) if seeds > 1 else "",
                "studies": studies,
            }


_AT_ONCE = 250
"""Studies that are drawn together: their covariances take memory."""


def _reruns_of(
    draw: np.random.Generator,
    studies: int,
    means: Floats,
    spreads: Floats,
    seeds: int,
    reruns: int,
    images: int,
    agreement: float,
) -> list[tuple[Floats, NDArray[np.bool_], Floats]]:
    """With the best alone rerun, and with both: (studies, 2) the interval of the best less the next one, (studies,)
    whether the sweep calls it better, and the true difference.

    Settings of one mean and spread are alike, so each such kind has reruns, for the best and for the next one.
    """
    _, first, kinds = np.unique(np.stack([means, spreads]), axis=1, return_index=True, return_inverse=True)
    sweep = trial_accuracies(draw, studies, means, seeds, spreads)
    again = np.repeat(first, 2)
    fresh = trial_accuracies(draw, studies, means[again], reruns, spreads[again])
    moments = simulated_moments(draw, np.concatenate([sweep, fresh], axis=1), images, agreement)
    trials = len(means) * seeds
    seen = moments.mean[:, :trials].reshape(studies, len(means), seeds).mean(axis=2)
    best, second = np.argsort(-seen, axis=1, kind="stable")[:, :2].T
    in_sweep = [of[:, None] * seeds + np.arange(seeds) for of in (best, second)]
    in_reruns = [
        trials + (2 * kinds[of][:, None] + side) * reruns + np.arange(reruns)
        for side, of in enumerate((best, second))
    ]
    swept = np.zeros(studies, bool)
    if seeds > 1:
        parts = difference_parts(_gathered(moments, np.concatenate(in_sweep, axis=1)), seeds)
        swept = parts.value > parts.half_width()
    found = []
    for other in (in_sweep[1], in_reruns[1]):
        chosen = _gathered(moments, np.concatenate([in_reruns[0], other], axis=1))
        parts = difference_parts(chosen, reruns, one_spread=True)
        half = parts.half_width()
        interval = np.stack([parts.value - half, parts.value + half], axis=1)
        found.append((interval, swept, means[best] - means[second]))
    return found


def _gathered(moments: Moments, trials: NDArray[np.intp]) -> Moments:
    """Of each study other trials, (studies, chosen)."""
    study = np.arange(len(trials))[:, None]
    return Moments(
        moments.mean[study, trials],
        moments.covariance[study[:, :, None], trials[:, :, None], trials[:, None, :]],
        moments.images,
    )


def _by_setting(bits: Bits, seeds: int) -> list[Bits]:
    """Those of the trials, (trials, images), as the ones of each setting."""
    return list(bits.reshape(-1, seeds, bits.shape[1]))


@dataclass(frozen=True)
class Choice:
    """What became of the best setting of one study; accuracies are fractions."""

    better: bool
    covered: bool
    bias: float
    bias_left: float


def _choice(
    moments: Moments,
    means: Floats,
    truth: Floats,
    seeds: int,
    given_up: Floats | None = None,
    rungs: Sequence[Rung] = (),
) -> Choice:
    """The best of settings of ``means`` (S,), from the moments of their trials, which are truly ``truth`` (trials,).

    The last of ``moments`` are the trials of settings that ``rungs`` gave up, which would seem ``given_up`` accurate.
    """
    settings = len(means)
    seen = moments.mean[: settings * seeds].reshape(settings, seeds).mean(axis=1)
    best = int(np.argmax(seen))
    rivals = np.array([]) if given_up is None else np.minimum(given_up, seen[best])
    of_best = range(best * seeds, (best + 1) * seeds)
    low, high = (float(bound) for bound in setting_interval(moments.only(of_best)))
    noise = noise_of(moments, [seeds] * (settings + len(rivals)))
    found = optimism(np.concatenate([seen, rivals]), noise, low, seeds, DRAWS, rungs)
    # Of a single seed the truth is that of its network.
    true = float(means[best] if seeds > 1 else truth[best])
    second = int(np.argsort(np.where(np.arange(settings) == best, -1, seen))[-1])
    difference = _difference(moments.only([*of_best, *range(second * seeds, (second + 1) * seeds)]), seeds)
    bias = float(seen[best]) - true
    return Choice(
        better=bool(difference.value > difference.half_width()),
        covered=bool(found.low <= true <= high),
        bias=bias,
        bias_left=bias - found.mean,
    )


def _row(
    settings: int,
    seeds: int,
    lead: float,
    spread: float | str,
    case: tuple[int, float, float],
    halving: str,
    seen: Sequence[Choice],
) -> Row:
    images, _accuracy, agreement = case
    return {
        "settings": settings,
        "halving": halving,
        "lead": lead,
        "seeds": seeds,
        "seed_spread": spread,
        "images": images,
        "agreement": agreement,
        "difference_covered": "",
        "single_covered": "",
        "called_better": round(fmean(choice.better for choice in seen), 4),
        "best_covered": round(fmean(choice.covered for choice in seen), 4),
        "bias_points": round(100 * fmean(choice.bias for choice in seen), 3),
        "bias_left_points": round(100 * fmean(choice.bias_left for choice in seen), 3),
        "studies": len(seen),
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


def _share(covered: NDArray[Any]) -> float:
    return round(float(covered.mean()), 4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries every case."""
    parser = OneLineParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument(
        "--studies",
        type=positive,
        default=2000,
        metavar="N",
        help="simulated studies of each case (default: %(default)s)",
    )
    studies = parser.parse_args(arguments).studies
    for row in itertools.chain(pairs(studies), chosen(studies), halved(studies)):
        append_rows(RESULTS, [row])
    for row in confirmed(studies):
        append_rows(RESULTS_OF_RERUNS, [row])


if __name__ == "__main__":
    main()
