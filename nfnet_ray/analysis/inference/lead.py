"""Whether the best of several settings would be as far ahead of another one if all of them were equal.

The best of several equal settings is ahead of each other one by luck, and furthest ahead of the one that had least.
Compared with that one as if the two had been named beforehand, the best of six equal settings is better in 27 to 39% of
studies at a level of 5%. So the lead is compared with the leads in studies of equal settings, with the same noise: for
settings with independent noise of one size that is Tukey's (1953) test of the studentised range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nfnet_ray.analysis.inference.paired import Floats
from nfnet_ray.analysis.inference.selection import Noise

DRAWS = 4000
"""Studies that are drawn. The standard error of a p value of 5% is 0.3%."""

_MOST_TOGETHER = 500
"""Settings up to which the covariances of the images are drawn: the time grows with the third power. Of more, each has
what is its own, and what all share on average is left out, which moves no difference; and fewer studies are drawn."""
_FEWEST_DRAWS = 400
"""The standard error of a p value of 5% is then 1%."""

_KNOWN = 1e6
"""Degrees of freedom of a variance that is assumed, and not estimated."""


def with_assumed_spread(noise: Noise, spread: float) -> Noise:
    """The noise of settings with a single seed, and a spread between seeds: a standard deviation, a fraction."""
    return replace(noise, seeds=np.full(len(noise.seeds), spread**2), freedom=_KNOWN)


def chance_of_lead(accuracies: Floats, noise: Noise, rival: int | None = None) -> float:
    """How often the best of S equal settings is as far ahead of any other one as here: a p value.

    A lead is measured in its own standard errors, which each study that is drawn estimates anew.

    Args:
        accuracies: (S,) of the settings, fractions.
        noise: how far they would move.
        rival: the number of a setting that was named beforehand; None for whichever is furthest behind.
    """
    settings = len(accuracies)
    if settings < 2 or int(np.argmax(accuracies)) == rival:
        return 1.0
    draw, draws = np.random.default_rng(0), DRAWS
    if settings <= _MOST_TOGETHER:
        values, vectors = np.linalg.eigh(noise.images)
        roots = (vectors * np.sqrt(np.maximum(values, 0.0))).T
        gaps = _Gaps(np.diag(noise.images), noise.images, noise.seeds)
        moved = draw.standard_normal((draws, settings)) @ roots
    else:
        draws = max(_FEWEST_DRAWS, DRAWS * _MOST_TOGETHER // settings)
        own = np.diag(noise.images)
        shared = (noise.images.sum() - own.sum()) / (settings * (settings - 1))
        apart = np.maximum(own - shared, 0.0)
        gaps = _Gaps(apart, None, noise.seeds)
        moved = draw.standard_normal((draws, settings)) * np.sqrt(apart)
    moved += draw.standard_normal((draws, settings)) * np.sqrt(noise.seeds)
    estimated = draw.chisquare(noise.freedom, draws) / noise.freedom
    lead = gaps.in_errors(accuracies[None, :], np.ones(1), rival)
    return float((gaps.in_errors(moved, estimated, rival) >= lead[0]).mean())


@dataclass(frozen=True)
class _Gaps:
    """The noise of the differences between settings.

    Attributes:
        own: (S,) the variance of each for the draw of images.
        together: (S, S) their covariances; None where they count as 0.
        seeds: (S,) the variance of each for the draw of seeds.
    """

    own: Floats
    together: Floats | None
    seeds: Floats

    def in_errors(self, accuracies: Floats, estimated: Floats, rival: int | None) -> Floats:
        """(draws,) the lead of the best, over the rival or the one with the largest lead, in standard errors.

        Args:
            accuracies: (draws, S).
            estimated: (draws,) the variance of seeds that each study shows, in units of the true one.
        """
        best = accuracies.argmax(axis=1)
        behind = accuracies.max(axis=1)[:, None] - accuracies
        squares = self.own[best][:, None] + self.own
        squares += (self.seeds[best][:, None] + self.seeds) * estimated[:, None]
        if self.together is not None:
            squares -= 2 * self.together[best]
        with np.errstate(divide="ignore", invalid="ignore"):
            leads = np.where(behind > 0, behind / np.sqrt(np.maximum(squares, 0.0)), 0.0)
        return np.asarray(leads.max(axis=1) if rival is None else leads[:, rival])
