"""Tests whether the lead of the best setting is larger than it would be by chance if all settings were equal.

Even if several settings are equal, the best one leads by chance, and its lead is largest over the unluckiest. If the
best of six equal settings is compared with that one as if the two had been named in advance, it is found better in 27
to 39% of studies at a level of 5%. The lead is therefore compared with the leads in simulated studies of equal settings
with the same noise. For settings with independent noise of equal size, this is Tukey's (1953) test of the studentised
range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nfnet_ray.analysis.inference.paired import Floats
from nfnet_ray.analysis.inference.selection import Noise

DRAWS = 4000
"""The number of simulated studies. The standard error of a p value of 5% is then 0.3%."""

_MOST_TOGETHER = 500
"""The most settings for which the covariances of the images are simulated, as the time grows with the third power. For
more settings, the mean covariance, which affects no difference, is subtracted from each variance, the other covariances
are ignored, and fewer studies are simulated."""
_FEWEST_DRAWS = 400
"""The fewest simulated studies. The standard error of a p value of 5% is then 1%."""

_KNOWN = 1e6
"""The degrees of freedom of a variance that is assumed rather than estimated."""


def with_assumed_spread(noise: Noise, spread: float) -> Noise:
    """Returns the noise of single-seed settings with an assumed standard deviation between seeds, a fraction."""
    return replace(noise, seeds=np.full(len(noise.seeds), spread**2), freedom=_KNOWN)


def chance_of_lead(accuracies: Floats, noise: Noise, rival: int | None = None) -> float:
    """Returns how often the best of S equal settings leads another one by as much as observed: a p value.

    A lead is measured in its own standard errors, which each simulated study estimates anew.

    Args:
        accuracies: (S,) the accuracies of the settings, fractions.
        noise: the noise of the accuracies.
        rival: the index of a setting that was named in advance; None for the one with the largest lead over it.
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
        own: (S,) the variance of each setting for the draw of images.
        together: (S, S) the covariances of the settings; None if they count as 0.
        seeds: (S,) the variance of each setting for the draw of seeds.
    """

    own: Floats
    together: Floats | None
    seeds: Floats

    def in_errors(self, accuracies: Floats, estimated: Floats, rival: int | None) -> Floats:
        """Returns (draws,) the lead of the best over the rival, or the largest lead, in standard errors.

        Args:
            accuracies: (draws, S) the accuracies in each simulated study.
            estimated: (draws,) the estimated variance of seeds in each study, in units of the true one.
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
