"""How much of the accuracy of the best of several settings is luck, and an interval that knows of the choice.

The best of several is chosen because it did well on these images and with these seeds, so its accuracy is on average
above what other images and seeds would show: the optimism of the best of n, or the winner's curse. It is estimated by
drawing the study again many times, with the noise that the bits show (images with their covariances between settings,
and seeds), around accuracies that are pulled towards the best one where noise explains their distance: the
positive-part James-Stein rule for each gap. Drawing around the accuracies as they were seen, as a bootstrap over images
does, finds a half to two thirds of the optimism of equal settings: what was seen is already spread by the noise. The
best one was seen too high itself, which widens every gap, so the gaps are taken twice: the second time from the best
accuracy less the optimism that the first found.

Where rungs gave up some settings, each study that is drawn has those rungs, too. A setting's luck at a rung and at the
end have the correlation that the bits of the promoted ones show (:mod:`nfnet_ray.analysis.inference.kept_luck`): with a
correlation of 1 the best one is as lucky as the best of all, and with 0 as the best of the promoted ones.

In simulation of 2 to 50 equal settings what is left of the bias is at most 0.2 standard errors, where it was up to 2.2;
where one setting is better by half a point, up to 0.5 are taken off too much. The interval covers 93.2 to 97.2%
(``benchmarks/coverage.py``; docs/answers.md has what happens where spreads differ, and after early stopping).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.analysis.inference.intervals import Z_95, setting_half_width
from nfnet_ray.analysis.inference.paired import Floats, Moments, interaction

DRAWS = 4000
"""Studies that are drawn. The standard error of the 97.5% quantile is 0.04 standard errors of an accuracy."""

_MOST_DRAWN = 200
"""Settings that are all drawn; of more, those that have a chance: the time grows with the third power."""
_NEVER = 12.0
"""Standard errors behind the best at which a setting is the highest of no draw: 1e-32 for a normal variate."""

_FEWEST_TO_MODERATE = 3
"""Settings, for it to be seen how alike their spreads between seeds are."""

_MISS = 0.05
"""Share of the studies drawn in which the interval of the best one may miss: 1 less its confidence."""


@dataclass(frozen=True)
class Noise:
    """How far the accuracies of S settings would move if the study were done again.

    Attributes:
        images: (S, S) covariance for the draw of images.
        seeds: (S,) squared standard errors for the draw of seeds; 0 where no setting has several.
        freedom: degrees of freedom of ``seeds``.
    """

    images: Floats
    seeds: Floats
    freedom: float

    @property
    def covariance(self) -> Floats:
        """(S, S) of both."""
        return np.asarray(self.images + np.diag(self.seeds))


@dataclass(frozen=True)
class Rung:
    """A rung at which some of the settings were given up, for the studies that are drawn.

    Attributes:
        passed: how many settings were let through.
        kept: the correlation of a setting's luck there with its luck at the end, from 0 to 1
            (:func:`nfnet_ray.analysis.inference.kept_luck.luck_kept`).
    """

    passed: int
    kept: float


@dataclass(frozen=True)
class Optimism:
    """What the choice of the best does to its accuracy, in fractions.

    Attributes:
        best: index of the setting with the highest mean.
        mean: by how much the best one's accuracy is too high on average.
        low: the lower bound of the 95% interval of its accuracy, which allows for the choice. The upper one is that of
            the best one by itself.
    """

    best: int
    mean: float
    low: float


def noise_of(moments: Moments, seeds: Sequence[int]) -> Noise:
    """The noise of settings of which the trials are, ``seeds[s]`` of setting s, in this order.

    The spreads between seeds are :func:`moderated_variances`. They count only if every setting has two seeds or more.
    """
    starts = np.cumsum([0, *seeds])
    average = np.zeros((len(seeds), starts[-1]))
    for setting, number in enumerate(seeds):
        average[setting, starts[setting] : starts[setting + 1]] = 1 / number
    images = average @ moments.covariance @ average.T / moments.images
    if min(seeds) == 1:
        return Noise(images, np.zeros(len(seeds)), 1)
    spreads = np.zeros(len(seeds))
    for setting in range(len(seeds)):
        own = moments.only(range(starts[setting], starts[setting + 1]))
        spreads[setting] = own.mean.var(ddof=1)
        images[setting, setting] -= float(interaction(own))  # the variance over seeds contains it
    values, vectors = np.linalg.eigh(images)  # what was taken away may leave too little
    images = (vectors * np.maximum(values, 0.0)) @ vectors.T
    each = np.asarray(seeds, float)
    moderated, freedom = moderated_variances(spreads, each - 1)
    return Noise(images, moderated / each, freedom)


def moderated_variances(variances: Floats, freedom: Floats) -> tuple[Floats, float]:
    """Each variance pulled towards that of all, as far as they are alike, and their degrees of freedom then.

    The empirical Bayes method of Smyth (2004, section 6.2), limma's: variances that differ no more than chance are
    pooled; where some settings, at the edge of divergence, have a much larger spread than others, each keeps its own.
    Chance here is the expected variance of their logarithms and one standard error of it. Without that error, half of
    all studies whose spreads are truly alike would be taken to have different ones.

    Args:
        variances: (S,) of each setting over its seeds.
        freedom: (S,) their degrees of freedom.
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
    """How optimistic the highest of ``accuracies`` (S,) is. The same arguments give the same numbers.

    The interval is the best one's own, :math:`x \\pm h`, with a lower bound that is :math:`a \\ge 0` further below.
    In the studies that are drawn the highest accuracy is too high by :math:`e`, and its own half-width is :math:`h'`,
    from the spread that its seeds show there. With few seeds that is often wide enough, whatever was chosen. So
    :math:`a` is the least for which

    .. math:: P(e > h' + a) + P(e < -h') \\le 5\\%.

    The seeds' variance is drawn too, from what all settings tell about it, and :math:`h'` and :math:`e` follow it.
    The width itself is never pooled: a setting at the edge of divergence, with more spread than the others, is more
    often the best one than they are, and their spread says little about its own.

    Args:
        noise: how far the accuracies would move.
        own_low: the lower bound of the 95% interval of the best one by itself.
        seeds: how many the best one has.
        draws: how many studies are drawn.
        rungs: those at which some of the settings were given up, the earliest first. A study that is drawn gives up
            as many there, by accuracies whose luck has the correlation ``kept`` with that at the end.
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

    by_images, by_seeds = drawn()
    anew = [drawn() for _ in rungs]
    moved = by_images + by_seeds
    at_rungs = _luck_at(rungs, moved, [of_images + of_seeds for of_images, of_seeds in anew])
    own_mean = float(moved[:, winner].mean())  # 0 but for the draw
    first = _errors(moved, _behind(accuracies[near], covariance, 0.0), at_rungs)
    behind = _behind(accuracies[near], covariance, max(0.0, float(first.mean()) - own_mean))
    errors = _errors(moved, behind, at_rungs)
    mean = max(0.0, float(errors.mean()) - own_mean)
    half = np.full(draws, Z_95 * math.sqrt(images[winner, winner]))
    if seeds > 1 and variances.any():
        true = noise.freedom / draw.chisquare(noise.freedom, draws)  # in units of the variance that is seen
        shown = true * draw.chisquare(seeds - 1, draws) / (seeds - 1)
        scale = np.sqrt(true)[:, None]
        moved = by_images + by_seeds * scale
        at_rungs = _luck_at(rungs, moved, [of_images + of_seeds * scale for of_images, of_seeds in anew])
        errors = _errors(moved, behind, at_rungs)
        half = setting_half_width(images[winner, winner], variances[winner] * shown, seeds - 1)
    miss = max(_MISS - float((errors < -half).mean()), 1 / draws)
    further = max(0.0, float(np.quantile(errors - half, 1 - miss)))
    return Optimism(best, mean, max(0.0, own_low - further))


def _near(accuracies: Floats, best: int, noise: Noise) -> NDArray[np.bool_]:
    """(S,) the settings that have a chance to be drawn as the highest, if there are so many that drawing takes time."""
    if len(accuracies) <= _MOST_DRAWN:
        return np.ones(len(accuracies), bool)
    covariance = noise.covariance
    errors = np.sqrt(_of_gaps(covariance, best))
    near = np.asarray(_behind(accuracies, covariance, 0.0) <= _NEVER * errors)
    near[best] = True
    return near


def _of_gaps(covariance: Floats, best: int) -> Floats:
    """(S,) the variance of the best one's lead over each."""
    return np.asarray(covariance[best, best] + np.diag(covariance) - 2 * covariance[best])


def _behind(accuracies: Floats, covariance: Floats, too_high: float) -> Floats:
    """(S,) how far each is truly behind the best one, whose accuracy is ``too_high`` by that much."""
    best = int(np.argmax(accuracies))
    gaps = np.maximum(accuracies[best] - too_high - accuracies, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(gaps > 0, np.maximum(1 - _of_gaps(covariance, best) / gaps**2, 0.0), 0.0)
    return np.asarray(gaps * kept)


def _luck_at(rungs: Sequence[Rung], end: Floats, anew: Sequence[Floats]) -> list[tuple[int, Floats]]:
    """Of each rung how many pass, and the settings' luck there, (draws, S) like that at the ``end``.

    Going back from the end each rung keeps a part of the luck at the next one; the rest of it is drawn ``anew``.
    """
    found: list[tuple[int, Floats]] = []
    luck, later = end, 1.0
    for rung, other in zip(reversed(rungs), reversed(anew), strict=True):
        kept = min(1.0, rung.kept / later) if later > 0 else 0.0
        luck = kept * luck + math.sqrt(1 - kept**2) * other
        later = min(later, rung.kept)
        found.append((rung.passed, luck))
    return found[::-1]


def _errors(moved: Floats, behind: Floats, at_rungs: Sequence[tuple[int, Floats]]) -> Floats:
    """(draws,) by how much the highest of each study drawn is too high, among those that pass its rungs."""
    given_up = np.zeros(moved.shape, bool)
    for passed, luck in at_rungs:
        if passed < moved.shape[1]:
            seen = np.where(given_up, -np.inf, luck - behind)
            given_up |= seen < np.partition(seen, -passed, axis=1)[:, [-passed]]
    chosen = np.where(given_up, -np.inf, moved - behind).argmax(axis=1)
    return np.asarray(moved[np.arange(len(moved)), chosen])
