"""How much of the accuracy of the best of several settings is luck, and an interval that knows of the choice.

The best of several is chosen because it did well on these images and with these seeds, so its accuracy is on average
above what other images and seeds would show: the optimism of the best of n, or the winner's curse. It is estimated by
drawing the study again many times, with the noise that the bits show (images with their covariances between settings,
seeds with Student's t), around accuracies that are pulled towards the best one where noise explains their distance:
the positive-part James-Stein rule for each gap. Drawing around the accuracies as they were seen, as a bootstrap over
images does, finds a half to two thirds of the optimism of equal settings: what was seen is already spread by the noise.

In simulation of 2 to 50 settings, equal or with a clear winner, what is left of the bias is at most 0.4 standard errors
where it was 2.2 for fifty equal settings, and the interval covers 93 to 98%, 99% of two settings with two seeds each
(``benchmarks/coverage.py`` simulates them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nfnet_ray.analysis.inference.paired import Floats, Moments, interaction

DRAWS = 4000
"""Studies that are drawn. The standard error of the 97.5% quantile is 0.04 standard errors of an accuracy."""

_MOST_DRAWN = 200
"""Settings that are all drawn; of more, those that have a chance: the time grows with the third power."""
_NEVER = 12.0
"""Standard errors behind the best at which a setting is the highest of no draw: 1e-32 for a normal variate."""

_FEWEST_TO_MODERATE = 3
"""Settings, for it to be seen how alike their spreads between seeds are."""


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
class Optimism:
    """What the choice of the best does to its accuracy, in fractions.

    Attributes:
        best: index of the setting with the highest mean.
        mean: by how much the best one's accuracy is too high on average.
        lower: by how much the lower bound of its 95% interval has to be lower, for the choice.
    """

    best: int
    mean: float
    lower: float


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
    beyond_chance = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
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


def optimism(accuracies: Floats, noise: Noise, draws: int = DRAWS) -> Optimism:
    """How optimistic the highest of ``accuracies`` (S,) is. The same arguments give the same numbers."""
    best = int(np.argmax(accuracies))
    covariance = noise.covariance
    gaps = accuracies[best] - accuracies
    of_gaps = covariance[best, best] + np.diag(covariance) - 2 * covariance[best]
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(gaps > 0, np.maximum(1 - of_gaps / gaps**2, 0.0), 0.0)
    if len(gaps) > _MOST_DRAWN:  # those that are never drawn as the highest only take time
        with np.errstate(invalid="ignore"):
            near = gaps * kept <= _NEVER * np.sqrt(of_gaps)
        near[best] = True
        if not near.all():
            nearest = Noise(noise.images[np.ix_(near, near)], noise.seeds[near], noise.freedom)
            found = optimism(accuracies[near], nearest, draws)
            return Optimism(best, found.mean, found.lower)
    draw = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(noise.images)
    moved = draw.standard_normal((draws, len(gaps))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    if noise.seeds.any():
        tails = np.sqrt(noise.freedom / draw.chisquare(noise.freedom, (draws, 1)))
        moved = moved + draw.standard_normal((draws, len(gaps))) * np.sqrt(noise.seeds) * tails
    chosen = (moved - gaps * kept).argmax(axis=1)
    errors = moved[np.arange(draws), chosen]
    lower = np.quantile(errors, 0.975) - np.quantile(moved[:, best], 0.975)
    own = float(moved[:, best].mean())  # 0 but for the draw
    return Optimism(best, max(0.0, float(errors.mean()) - own), max(0.0, float(lower)))
