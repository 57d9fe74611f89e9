"""Estimates the accuracies that trials given up would have reached: multiple imputation, rung by rung.

A trial is given up because of its accuracy at a rung, which is known. The missing accuracies are therefore missing at
random (Rubin 1976): the regression of the next stage on the present one among the trials that continued also holds for
the others, provided that it is the same line for all. The accuracies are drawn several times, each with a line drawn
from its posterior and a residual, so that the spread of the draws represents the uncertainty (Rubin 1987, chapter 5; a
monotone pattern, as here, takes one regression for each stage: Little & Rubin 2019, section 7.4). Accuracies are on the
logit scale, so that they stay between 0 and 1. A mean over only the trials that reached the end would be too high for
every value of a field, and most of all for the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nfnet_ray.analysis.effects.stages import Stage
from nfnet_ray.analysis.inference.paired import Floats

DRAWS = 40
"""The number of draws. If half of the information is missing, standard errors are 0.6% larger than with infinitely many
draws (Rubin 1987)."""
LEAST_CONTINUED = 4
"""The least number of trials that continued from a rung, for a line with two coefficients and the spread around it."""


@dataclass(frozen=True)
class Completed:
    """The accuracies of all trials at a stage.

    Attributes:
        where: the stage in words.
        trials: the names of the trials.
        top1: (draws, trials) fractions; a single draw if nothing is missing.
        imputed: the number of trials that were not measured at the stage.
    """

    where: str
    trials: tuple[str, ...]
    top1: Floats
    imputed: int


def completed_stages(stages: Sequence[Stage], given_up: Sequence[str], images: int) -> list[Completed]:
    """Returns each stage with the accuracies of all ended trials of the first stage, measured or imputed.

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
            # A diverged trial does not follow the regression line.
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
    """Returns (draws, trials) at the next stage: ``now`` where known, else drawn from the line through ``to_fit``."""
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
    # Keeps half an image away from 0 and 1, where the logit is infinite.
    shares = np.clip(top1, 0.5 / images, 1 - 0.5 / images)
    return np.asarray(np.log(shares / (1 - shares)))


def _accuracy(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))
