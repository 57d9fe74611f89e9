"""Whether the best of several settings would be as far ahead of another one if all of them were equal.

The best of several equal settings is ahead of each other one by luck, and furthest ahead of the one that had least.
Compared with that one as if the two had been named beforehand, the best of six equal settings is better in 27 to 39% of
studies at a level of 5%. So the lead is compared with the leads in studies of equal settings, with the same noise: for
settings with independent noise of one size that is Tukey's (1953) test of the studentised range.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nfnet_ray.analysis.inference.paired import Floats
from nfnet_ray.analysis.inference.selection import Noise

DRAWS = 4000
"""Studies that are drawn. The standard error of a p value of 5% is 0.3%."""

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
    gaps = _Gaps(noise)
    best = int(np.argmax(accuracies))
    if len(accuracies) < 2 or best == rival:
        return 1.0
    leads = gaps.in_errors(accuracies[None, :], np.ones(1), rival)
    draw = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(noise.images)
    by_images = draw.standard_normal((DRAWS, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    by_seeds = draw.standard_normal((DRAWS, len(values))) * np.sqrt(noise.seeds)
    estimated = draw.chisquare(noise.freedom, DRAWS) / noise.freedom
    drawn = gaps.in_errors(by_images + by_seeds, estimated, rival)
    return float((drawn >= leads[0]).mean())


class _Gaps:
    """The differences between settings."""

    def __init__(self, noise: Noise) -> None:
        own = np.diag(noise.images)
        self._images = own[:, None] + own[None, :] - 2 * noise.images
        self._seeds = noise.seeds[:, None] + noise.seeds[None, :]

    def in_errors(self, accuracies: Floats, estimated: Floats, rival: int | None) -> Floats:
        """(draws,) the lead of the best, over the rival or the one with the largest lead, in standard errors.

        Args:
            accuracies: (draws, S).
            estimated: (draws,) the variance of seeds that each study shows, in units of the true one.
        """
        best = accuracies.argmax(axis=1)
        behind = accuracies.max(axis=1)[:, None] - accuracies
        errors = np.sqrt(np.maximum(self._images[best] + self._seeds[best] * estimated[:, None], 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            leads = np.where(behind > 0, behind / errors, 0.0)
        return np.asarray(leads.max(axis=1) if rival is None else leads[:, rival])
