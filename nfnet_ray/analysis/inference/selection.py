"""Estimates how much of the accuracy of the best of several settings is luck, and an interval that allows for it.

The best of several settings is chosen because it did well on these images and with these seeds. Its accuracy is
therefore higher on average than other images and seeds would show: the optimism of the best of n, or the winner's
curse. It is estimated by simulating the study many times, with the noise that the bits show (images with their
covariances between settings, and seeds). The simulated true accuracies are the observed ones, pulled towards the best
one as far as noise explains their distance, by the positive-part James-Stein rule for each gap. A bootstrap over
images, which simulates around the observed accuracies, finds only a half to two thirds of the optimism of equal
settings, because the observed accuracies are already spread by the noise. The accuracy of the best setting is too high
itself, which widens every gap. The gaps are therefore computed twice, the second time from the best accuracy minus the
optimism of the first pass.

If rungs gave up some settings, the simulated studies have these rungs, too. A setting's luck at a rung and at the end
have the correlation that the bits of the promoted settings show (:mod:`nfnet_ray.analysis.inference.kept_luck`). With a
correlation of 1 the best setting is as lucky as the best of all settings, and with 0 as the best of the promoted ones.

In simulation of 2 to 50 equal settings the remaining bias is at most 0.2 standard errors, where it was up to 2.2
without the correction. If one setting is better by half a point, up to 0.5 standard errors too much are subtracted. The
interval covers 93.2 to 97.2% (``benchmarks/coverage.py``; docs/answers.md has the results for different spreads and
after early stopping).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.analysis.inference.intervals import Z_95, images_like, setting_half_width, wilson_bounds
from nfnet_ray.analysis.inference.paired import Floats, Moments, interaction

DRAWS = 4000
"""The number of simulated studies. The standard error of the 97.5% quantile is 0.04 standard errors of an accuracy."""

_MOST_DRAWN = 200
"""The most settings that are all simulated. Of more, only those with a chance are, as the time grows with the third
power."""
_NEVER = 12.0
"""The distance behind the best, in standard errors, at which a setting is never the highest: 1e-32 for a normal
variate."""

_FEWEST_TO_MODERATE = 3
"""The fewest settings from which the similarity of their spreads between seeds can be estimated."""

_MISS = 0.05
"""The share of simulated studies in which the interval of the best setting may miss: 1 minus its confidence."""


@dataclass(frozen=True)
class Noise:
    """The noise that the accuracies of S settings would have if the study were repeated.

    Attributes:
        images: (S, S) the covariance for the draw of images.
        seeds: (S,) the squared standard errors for the draw of seeds; 0 unless every setting has several seeds.
        freedom: degrees of freedom of ``seeds``.
    """

    images: Floats
    seeds: Floats
    freedom: float

    @property
    def covariance(self) -> Floats:
        """Returns (S, S) the covariance for images and seeds together."""
        return np.asarray(self.images + np.diag(self.seeds))

    def of_images(self, weights: Floats) -> Floats:
        """Returns (rows,) the variance of ``weights @ accuracies``, (rows, S), for the draw of images.

        If settings agree on every image, the variance of their difference is 0, and rounding may make it negative.
        """
        return np.asarray(np.maximum(np.einsum("ij,jk,ik->i", weights, self.images, weights), 0.0))


@dataclass(frozen=True)
class Rung:
    """A rung of the simulated studies, at which some of the settings are given up.

    Attributes:
        passed: the number of settings that were promoted.
        kept: the correlation of a setting's luck at the rung with its luck at the end, from 0 to 1
            (:func:`nfnet_ray.analysis.inference.kept_luck.luck_kept`).
    """

    passed: int
    kept: float


def kept_of_one_seed(noise: Noise, seeds: float) -> float:
    """Returns the correlation of the luck with the first seed and that of the mean over ``seeds``, for :class:`Rung`.

    The luck in the images is common to both. The part that all settings share does not affect their order.
    """
    settings = len(noise.seeds)
    own = float(np.trace(noise.images))
    shared = (float(noise.images.sum()) - own) / max(settings * (settings - 1), 1)
    images, of_seeds = max(own / settings - shared, 0.0), float(noise.seeds.mean())
    of_one = images + seeds * of_seeds
    return math.sqrt((images + of_seeds) / of_one) if of_one > 0 else 1.0


@dataclass(frozen=True)
class Optimism:
    """The effect of choosing the best setting on its accuracy, in fractions.

    Attributes:
        best: the index of the setting with the highest mean.
        mean: the average amount by which the best setting's accuracy is too high.
        low: the lower bound of the 95% interval of its accuracy, corrected for the choice. The upper bound is that of
            the best setting's own interval.
    """

    best: int
    mean: float
    low: float


def noise_of(moments: Moments, seeds: Sequence[int], *, singles_like_others: bool = False) -> Noise:
    """Returns the noise of settings from the moments of their trials: first ``seeds[0]`` of setting 0, and so on.

    The spreads between seeds are :func:`moderated_variances`. They are used only if every setting has at least two
    seeds.

    Args:
        singles_like_others: whether settings with a single seed get the noise that they would have with the other
            settings' number of seeds and spread.
    """
    starts = np.cumsum([0, *seeds])
    average = np.zeros((len(seeds), starts[-1]))
    for setting, number in enumerate(seeds):
        average[setting, starts[setting] : starts[setting + 1]] = 1 / number
    images = average @ moments.covariance @ average.T / moments.images
    several = [setting for setting, number in enumerate(seeds) if number > 1]
    if not several or (len(several) < len(seeds) and not singles_like_others):
        return Noise(images, np.zeros(len(seeds)), 1)
    spreads, luck = np.zeros(len(seeds)), np.zeros(len(seeds))
    for setting in several:
        own = moments.only(range(starts[setting], starts[setting + 1]))
        spreads[setting] = own.mean.var(ddof=1)
        luck[setting] = float(interaction(own))
    single = np.asarray(seeds) == 1
    luck[single] = (luck * seeds)[several].mean()
    images[np.diag_indices(len(seeds))] -= luck  # the variance over seeds contains this part
    values, vectors = np.linalg.eigh(images)  # the subtraction may leave negative eigenvalues
    images = (vectors * np.maximum(values, 0.0)) @ vectors.T
    each = np.asarray(seeds, float)[several]
    moderated, freedom = moderated_variances(spreads[several], each - 1)
    of_seeds = np.full(len(seeds), (moderated / each).mean())
    of_seeds[several] = moderated / each
    return Noise(images, of_seeds, freedom)


def moderated_variances(variances: Floats, freedom: Floats) -> tuple[Floats, float]:
    """Pulls each variance towards their common value as far as they are alike; returns the degrees of freedom, too.

    This is the empirical Bayes method of Smyth (2004, section 6.2), as in limma. Variances that differ no more than by
    chance are pooled. If some settings, at the edge of divergence, have a much larger spread than others, each keeps
    its own. The threshold for chance is the expected variance of the logarithms plus one standard error of it. Without
    that error, different spreads would be found in half of all studies whose spreads are truly alike.

    Args:
        variances: (S,) the variance of each setting over its seeds.
        freedom: (S,) the degrees of freedom of the variances.
    """
    from scipy.special import digamma, polygamma  # takes a while to import

    typical = float(np.median(variances))
    if len(variances) < _FEWEST_TO_MODERATE or typical == 0:
        total = float(freedom.sum())
        return np.full(len(variances), float((freedom * variances).sum()) / total), total
    logs = np.log(np.maximum(variances, 1e-3 * typical)) - digamma(freedom / 2) + np.log(freedom / 2)
    second, fourth = (
        polygamma(1, freedom / 2),
        polygamma(3, freedom / 2),
    )  # cumulants of the log of a chi-squared
    error = math.sqrt(float((fourth + 2 * second**2).mean()) / len(logs))
    beyond_chance = float(logs.var(ddof=1) - second.mean()) - error
    if beyond_chance <= 0:
        total = float(freedom.sum())
        return np.full(len(variances), float((freedom * variances).sum()) / total), total
    low, high = 1e-3, 1e6  # the trigamma function falls: bisection of log(x)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if polygamma(1, middle) > beyond_chance else (low, middle)
    prior = 2 * low
    centre = math.exp(float(logs.mean()) + float(digamma(low)) - math.log(low))
    total = min(float(freedom.min()) + prior, float(freedom.sum()))
    return np.asarray((prior * centre + freedom * variances) / (prior + freedom)), total


def optimism(
    accuracies: Floats,
    noise: Noise,
    own_low: float,
    seeds: int,
    draws: int = DRAWS,
    rungs: Sequence[Rung] = (),
) -> Optimism:
    """Estimates how optimistic the highest of ``accuracies`` (S,) is. Equal arguments give equal numbers.

    The interval is the best setting's own, with a lower bound that is moved down by :math:`a \\ge 0`. In the simulated
    studies the highest accuracy is too high by :math:`e`, and its own interval reaches from :math:`l` below to
    :math:`u` above, according to the accuracy and the spread of seeds in that study. With few seeds or images this
    interval is often wide enough despite the choice. :math:`a` is therefore the smallest value for which

    .. math:: P(e > l + a) + P(e < -u) \\le 5\\%.

    The images' noise is that of the true accuracies, which is larger than the observed noise if accuracies are high.
    The variance of seeds is simulated, too, from what all settings tell about it, and :math:`e`, :math:`l` and
    :math:`u` follow from it. The width itself is never pooled: a setting at the edge of divergence, with more spread
    than the others, is the best one more often than they are, and their spread says little about its own.

    Args:
        noise: the noise of the accuracies.
        own_low: the lower bound of the best setting's own 95% interval.
        seeds: the number of seeds of the best setting.
        draws: the number of simulated studies.
        rungs: the rungs at which some settings were given up, the earliest first. The simulated studies give up the
            same numbers, by accuracies whose luck has the correlation ``kept`` with that at the end.
    """
    best = int(np.argmax(accuracies))
    near = _near(accuracies, best, noise)
    covariance, images, variances = (
        noise.covariance[np.ix_(near, near)],
        noise.images[np.ix_(near, near)],
        noise.seeds[near],
    )
    winner = int(np.count_nonzero(near[:best]))
    draw = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(images)
    roots = (vectors * np.sqrt(np.maximum(values, 0.0))).T

    def drawn() -> tuple[Floats, Floats]:
        by_images = draw.standard_normal((draws, len(values))) @ roots
        return by_images, draw.standard_normal((draws, len(values))) * np.sqrt(variances)

    parts = [drawn() for _ in range(1 + len(rungs))]

    def luck(wider: float | Floats, scale: float | Floats) -> tuple[Floats, list[tuple[int, Floats]]]:
        end, *anew = (of_images * wider + of_seeds * scale for of_images, of_seeds in parts)
        return end, _luck_at(rungs, end, anew)

    moved, at_rungs = luck(1.0, 1.0)
    too_high = _optimism(moved, winner, _chosen(moved, _behind(accuracies[near], covariance, 0.0), at_rungs))
    behind = _behind(accuracies[near], covariance, too_high)
    true = np.clip(accuracies[best] - too_high - behind, 0.0, 1.0)
    wider = _noise_at(true, accuracies[near])
    moved, at_rungs = luck(wider, 1.0)
    chosen = _chosen(moved, behind, at_rungs)
    mean = _optimism(moved, winner, chosen)
    shown: Floats | None = None
    if seeds > 1 and variances.any():
        varied = noise.freedom / draw.chisquare(noise.freedom, draws)  # in units of the observed variance
        shown = variances[winner] * varied * draw.chisquare(seeds - 1, draws) / (seeds - 1)
        moved, at_rungs = luck(wider, np.sqrt(varied)[:, None])
        chosen = _chosen(moved, behind, at_rungs)
    errors = moved[np.arange(draws), chosen]
    like = images_like(accuracies[best], images[winner, winner])
    below, above = _own_half_widths(np.clip(true[chosen] + errors, 0.0, 1.0), float(like), shown, seeds)
    miss = max(_MISS - float((errors < -above).mean()), 1 / draws)
    further = max(0.0, float(np.quantile(errors - below, 1 - miss)))
    return Optimism(best, mean, max(0.0, own_low - further))


def _near(accuracies: Floats, best: int, noise: Noise) -> NDArray[np.bool_]:
    """Returns (S,) which settings have a chance to be the highest, if there are too many to simulate all."""
    if len(accuracies) <= _MOST_DRAWN:
        return np.ones(len(accuracies), bool)
    covariance = noise.covariance
    errors = np.sqrt(_of_gaps(covariance, best))
    near = np.asarray(_behind(accuracies, covariance, 0.0) <= _NEVER * errors)
    near[best] = True
    return near


def _of_gaps(covariance: Floats, best: int) -> Floats:
    """Returns (S,) the variance of the best setting's lead over each setting."""
    squares = covariance[best, best] + np.diag(covariance) - 2 * covariance[best]
    return np.asarray(np.maximum(squares, 0.0))  # rounding, if two settings agree on every image


def _behind(accuracies: Floats, covariance: Floats, too_high: float) -> Floats:
    """Returns (S,) how far each setting is truly behind the best one, whose accuracy is ``too_high`` by that much."""
    best = int(np.argmax(accuracies))
    gaps = np.maximum(accuracies[best] - too_high - accuracies, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(gaps > 0, np.maximum(1 - _of_gaps(covariance, best) / gaps**2, 0.0), 0.0)
    return np.asarray(gaps * kept)


def _luck_at(rungs: Sequence[Rung], end: Floats, anew: Sequence[Floats]) -> list[tuple[int, Floats]]:
    """Returns for each rung the number of settings that pass, and their luck there, (draws, S) like the ``end``.

    Backwards from the end, each rung keeps a part of the luck at the next one, and the rest of it is drawn ``anew``.
    """
    found: list[tuple[int, Floats]] = []
    luck, later = end, 1.0
    for rung, other in zip(reversed(rungs), reversed(anew), strict=True):
        kept = min(1.0, rung.kept / later) if later > 0 else 0.0
        luck = kept * luck + math.sqrt(1 - kept**2) * other
        later = min(later, rung.kept)
        found.append((rung.passed, luck))
    return found[::-1]


def _chosen(moved: Floats, behind: Floats, at_rungs: Sequence[tuple[int, Floats]]) -> NDArray[np.intp]:
    """Returns (draws,) the index of the highest setting among those that pass the rungs, in each simulated study."""
    given_up = np.zeros(moved.shape, bool)
    for passed, luck in at_rungs:
        if passed < moved.shape[1]:
            seen = np.where(given_up, -np.inf, luck - behind)
            given_up |= seen < np.partition(seen, -passed, axis=1)[:, [-passed]]
    return np.asarray(np.where(given_up, -np.inf, moved - behind).argmax(axis=1))


def _optimism(moved: Floats, winner: int, chosen: NDArray[np.intp]) -> float:
    """Returns the mean amount by which the highest accuracy is too high, minus the mean error drawn for the winner."""
    errors = moved[np.arange(len(moved)), chosen]
    return max(0.0, float(errors.mean() - moved[:, winner].mean()))


def _noise_at(true: Floats, seen: Floats) -> Floats:
    """Returns (S,) the ratio of the images' noise at the ``true`` accuracies to that at the ``seen`` ones."""
    variance = seen * (1 - seen)
    # If all images are right, or none, the bits show no noise that could be scaled.
    return np.asarray(
        np.sqrt(np.where(variance > 0, true * (1 - true) / np.where(variance > 0, variance, 1), 1))
    )


def _own_half_widths(
    accuracies: Floats, images: float, of_seeds: Floats | None, seeds: int
) -> tuple[Floats, Floats]:
    """Returns (draws,) below and above, the half-widths of the highest setting's own interval in each simulated study.

    Args:
        images: the number of independent images that would have its standard error; 0 if the bits show none.
        of_seeds: (draws,) the squared standard error of its seeds; None if unknown.
    """
    if images == 0:
        low, high = accuracies, accuracies
    else:
        low, high = wilson_bounds(accuracies, images)
    below, above = accuracies - low, high - accuracies
    if of_seeds is None:
        return below, above
    return (
        setting_half_width(below**2 / Z_95**2, of_seeds, seeds - 1),
        setting_half_width(above**2 / Z_95**2, of_seeds, seeds - 1),
    )
