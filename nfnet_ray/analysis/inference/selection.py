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

from nfnet_ray.analysis.inference.intervals import Z_95, images_like, setting_half_width, wilson_bounds
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

    def of_images(self, weights: Floats) -> Floats:
        """(rows,) the variance of ``weights @ accuracies``, (rows, S), for the draw of images.

        Of settings that judge every image alike a difference has none, and rounding may leave less.
        """
        return np.asarray(np.maximum(np.einsum("ij,jk,ik->i", weights, self.images, weights), 0.0))


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


def kept_of_one_seed(noise: Noise, seeds: float) -> float:
    """The correlation of a setting's luck with its first seed and that of its mean over ``seeds``, as in :class:`Rung`.

    The luck in the images is that of both; what all settings share of it moves no order.
    """
    settings = len(noise.seeds)
    own = float(np.trace(noise.images))
    shared = (float(noise.images.sum()) - own) / max(settings * (settings - 1), 1)
    images, of_seeds = max(own / settings - shared, 0.0), float(noise.seeds.mean())
    of_one = images + seeds * of_seeds
    return math.sqrt((images + of_seeds) / of_one) if of_one > 0 else 1.0


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


def noise_of(moments: Moments, seeds: Sequence[int], *, singles_like_others: bool = False) -> Noise:
    """The noise of settings of which the trials are, ``seeds[s]`` of setting s, in this order.

    The spreads between seeds are :func:`moderated_variances`. They count only if every setting has two seeds or more.

    Args:
        singles_like_others: that settings with a single seed have the noise that they would have with as many seeds as
            the others, and spread as these do.
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
    images[np.diag_indices(len(seeds))] -= luck  # the variance over seeds contains it
    values, vectors = np.linalg.eigh(images)  # what was taken away may leave too little
    images = (vectors * np.maximum(values, 0.0)) @ vectors.T
    each = np.asarray(seeds, float)[several]
    moderated, freedom = moderated_variances(spreads[several], each - 1)
    of_seeds = np.full(len(seeds), (moderated / each).mean())
    of_seeds[several] = moderated / each
    return Noise(images, of_seeds, freedom)


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

    The interval is the best one's own, with a lower bound that is :math:`a \\ge 0` further below. In the studies that
    are drawn the highest accuracy is too high by :math:`e`, and its own interval reaches from :math:`l` below it to
    :math:`u` above, by the accuracy and the spread of seeds that it shows there. With few seeds or images that is often
    wide enough, whatever was chosen. So :math:`a` is the least for which

    .. math:: P(e > l + a) + P(e < -u) \\le 5\\%.

    The images' noise is that of the true accuracies: where they are high, the best one shows less than it has. The
    seeds' variance is drawn too, from what all settings tell about it, and :math:`e`, :math:`l` and :math:`u` follow.
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
        varied = noise.freedom / draw.chisquare(noise.freedom, draws)  # in units of the variance that is seen
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
    squares = covariance[best, best] + np.diag(covariance) - 2 * covariance[best]
    return np.asarray(np.maximum(squares, 0.0))  # rounding, where two settings judge every image alike


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


def _chosen(moved: Floats, behind: Floats, at_rungs: Sequence[tuple[int, Floats]]) -> NDArray[np.intp]:
    """(draws,) which setting is the highest of each study drawn, among those that pass its rungs."""
    given_up = np.zeros(moved.shape, bool)
    for passed, luck in at_rungs:
        if passed < moved.shape[1]:
            seen = np.where(given_up, -np.inf, luck - behind)
            given_up |= seen < np.partition(seen, -passed, axis=1)[:, [-passed]]
    return np.asarray(np.where(given_up, -np.inf, moved - behind).argmax(axis=1))


def _optimism(moved: Floats, winner: int, chosen: NDArray[np.intp]) -> float:
    """By how much the highest is too high on average; what the draw gave the best one by itself is taken off."""
    errors = moved[np.arange(len(moved)), chosen]
    return max(0.0, float(errors.mean() - moved[:, winner].mean()))


def _noise_at(true: Floats, seen: Floats) -> Floats:
    """(S,) how much wider the images' noise is at the ``true`` accuracies than at those that were ``seen``."""
    variance = seen * (1 - seen)
    # All images right, or none: the bits show no noise that could be widened.
    return np.asarray(
        np.sqrt(np.where(variance > 0, true * (1 - true) / np.where(variance > 0, variance, 1), 1))
    )


def _own_half_widths(
    accuracies: Floats, images: float, of_seeds: Floats | None, seeds: int
) -> tuple[Floats, Floats]:
    """(draws,) below and above each accuracy, of the interval that the highest of each study drawn has by itself.

    Args:
        images: how many independent images would have its standard error; 0 if the bits show none.
        of_seeds: (draws,) its squared standard error for the seeds; None where it is not known.
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
