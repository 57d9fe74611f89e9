"""What trials that were given up would have reached: multiple imputation, rung by rung.

A trial is given up for its accuracy at a rung, which is known. So what is missing is missing at random (Rubin 1976):
the regression of the next stage on this one among the trials that continued holds for the others too, as far as it is
the same line for all of them. It is drawn several times, each with a line drawn from its posterior and a residual, so
that the spread of the draws is the uncertainty (Rubin 1987, chapter 5; a monotone pattern, as here, takes one
regression for each stage: Little & Rubin 2019, section 7.4). Accuracies are on the logit scale, so that none leaves the
range from 0 to 1. The mean over the trials that reached the end alone would be too high for every value of a field, and
most for the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nfnet_ray.analysis.effects.stages import Stage
from nfnet_ray.analysis.inference.paired import Floats

DRAWS = 40
"""With half of the information missing, 40 draws make standard errors 0.6% larger than endless ones (Rubin 1987)."""
LEAST_CONTINUED = 4
"""Trials that continued from a rung: a line has two coefficients, and two more for the spread around it."""


@dataclass(frozen=True)
class Completed:
    """Accuracies of all trials at a stage.

    Attributes:
        where: the stage in words.
        trials: their names.
        top1: (draws, trials) fractions; a single draw if nothing is missing.
        imputed: how many of the trials were not measured there.
    """

    where: str
    trials: tuple[str, ...]
    top1: Floats
    imputed: int


def completed_stages(stages: Sequence[Stage], given_up: Sequence[str], images: int) -> list[Completed]:
    """Each stage with the accuracies of all trials that were at the first one and ended, whether given up or not.

    Stages after one from which fewer than :data:`LEAST_CONTINUED` trials continued are left out.

    Args:
        given_up: the trials that early stopping ended.
        images: the number of validation images.
    """
    if not stages:
        return []
    ended = set(given_up) | set(stages[-1].top1)
    trials = tuple(trial for trial in stages[0].top1 if trial in ended)
    if not trials:
        return []
    draw = np.random.default_rng(0)
    missing_ever = any(trial not in stage.top1 for stage in stages for trial in trials)
    draws = DRAWS if missing_ever else 1
    before = _logit(np.array([stages[0].top1[trial] for trial in trials]), images)
    drawn = np.tile(before, (draws, 1))
    found = [Completed(stages[0].where, trials, _accuracy(drawn[:1]), 0)]
    for stage in stages[1:]:
        there = np.array([trial in stage.top1 for trial in trials])
        now = _logit(np.array([stage.top1.get(trial, 0.5) for trial in trials]), images)
        if not there.all():
            # A diverged trial follows no line.
            to_fit = np.array([trial in stage.epoch for trial in trials])
            following = _next(drawn, now, to_fit, ~there, draw)
            if following is None:
                break
            drawn = following
        else:
            drawn = np.tile(now, (draws, 1))
        found.append(Completed(stage.where, trials, _accuracy(drawn), int((~there).sum())))
    return found


def _next(
    drawn: Floats, now: Floats, to_fit: np.ndarray, missing: np.ndarray, draw: np.random.Generator
) -> Floats | None:
    """(draws, trials) at the next stage: ``now`` where it is known, else drawn from the line through ``to_fit``."""
    continued = int(to_fit.sum())
    if continued < LEAST_CONTINUED:
        return None
    following = np.tile(now, (len(drawn), 1))
    for number, earlier in enumerate(drawn):
        design = np.column_stack([np.ones(continued), earlier[to_fit]])
        solver = np.linalg.pinv(design)
        beta = solver @ now[to_fit]
        freedom = continued - np.linalg.matrix_rank(design)
        squares = float(((now[to_fit] - design @ beta) ** 2).sum())
        spread = np.sqrt(squares / draw.chisquare(freedom))
        beta = beta + spread * (solver @ draw.standard_normal(continued))
        line = beta[0] + beta[1] * earlier[missing]
        following[number, missing] = line + spread * draw.standard_normal(int(missing.sum()))
    return following


def _logit(top1: Floats, images: int) -> Floats:
    # Half an image from 0 and 1, where the logit is infinite.
    shares = np.clip(top1, 0.5 / images, 1 - 0.5 / images)
    return np.asarray(np.log(shares / (1 - shares)))


def _accuracy(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))
