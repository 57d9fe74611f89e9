"""Estimates marginal and pairwise effects of the fields from trials of unequal length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nfnet_ray.analysis.effects.completion import Completed, completed_stages
from nfnet_ray.analysis.effects.design import Term, design_of, fit, terms_of
from nfnet_ray.analysis.effects.stages import Stage, stages
from nfnet_ray.analysis.inference.paired import Floats
from nfnet_ray.analysis.setting import trials_by_setting
from nfnet_ray.analysis.tables import StudyTables

if TYPE_CHECKING:
    import pandas as pd

EFFECTS = ("where", "field", "value", "top1", "effect", "low", "high", "measured", "imputed")
PAIRWISE = (
    "where",
    "field_a",
    "value_a",
    "field_b",
    "value_b",
    "top1",
    "interaction",
    "low",
    "high",
    "p_value",
)
_PAIR_BINS = 3


@dataclass(frozen=True)
class CompletedSettings:
    """The settings whose trials are all complete at a stage, further seeds of contenders excepted.

    Attributes:
        where: the stage in words.
        points: {field: value} of each setting.
        top1: (draws, settings) the mean over seeds, fractions.
        measured: the number of trials that were measured; ``imputed``: the number of those that were not.
    """

    where: str
    points: tuple[Mapping[str, Any], ...]
    top1: Floats
    measured: int
    imputed: int


def marginal_effects(tables: StudyTables) -> pd.DataFrame:
    """Estimates how each value of each field changes the accuracy, over all settings, including those given up.

    Returns:
        A row for each stage, field and value (or bin): ``where`` (the stage), ``field`` (dotted name), ``value`` (as
        text), ``top1`` (the accuracy with this value, with equal weights for all values of the other fields),
        ``effect`` (its difference from the mean over the field's values, a fraction) with its 95% interval ``low`` to
        ``high``, ``measured`` and ``imputed`` (the number of trials that were measured at the stage, and of those that
        were given up before and imputed by :mod:`nfnet_ray.analysis.effects.completion`). The interval covers the
        deviations from the sum of the fields' effects: interactions, seeds and images. It is NaN if the model has at
        least as many effects as there are settings. Empty without two settings to compare.
    """
    import pandas as pd

    rows = []
    for stage in completed_settings(tables):
        terms = terms_of(tables, stage.points)
        fitted = fit(design_of(terms, len(stage.points)), stage.top1)
        start = 1
        for term in terms:
            width = term.columns.shape[1]
            contrast = np.zeros((len(term.levels), fitted.design.shape[1]))
            for level in range(len(term.levels)):
                contrast[level, start : start + width] = term.row(level)
            effect, half = fitted.estimate(contrast)
            known = fitted.can_estimate(contrast)
            centre = float(fitted.beta[:, 0].mean())
            for level, label in enumerate(term.levels.labels):
                value = effect[level] if known[level] else math.nan
                rows.append(
                    (
                        *(stage.where, term.field, label, _accuracy(centre + value), value),
                        *(value - half[level], value + half[level], stage.measured, stage.imputed),
                    )
                )
            start += width
    return pd.DataFrame(rows, columns=list(EFFECTS))


def pairwise_effects(tables: StudyTables) -> pd.DataFrame:
    """Estimates the effect of pairs of values beyond the sum of their effects, at the last stage that can be completed.

    Returns:
        A row for each pair of fields and of their values (ranges in three bins): ``where``, ``field_a``, ``value_a``,
        ``field_b``, ``value_b``, ``top1`` (the accuracy with both values), ``interaction`` (its difference
        from the sum of the effects) with its 95% interval ``low`` to ``high``, and ``p_value`` of the hypothesis that
        the fields do not interact (the median over draws of the F test: Eekhout et al. 2017). Pairs whose values were
        not tried together are left out. Intervals and ``p_value`` are NaN if no degrees of freedom are left to estimate
        the noise.
    """
    import pandas as pd

    found = completed_settings(tables)
    rows = []
    if found:
        stage = found[-1]
        terms = terms_of(tables, stage.points, bins=_PAIR_BINS)
        for a, b in itertools.combinations(terms, 2):
            rows += _pair(stage, terms, a, b)
    return pd.DataFrame(rows, columns=list(PAIRWISE))


def completed_settings(tables: StudyTables) -> list[CompletedSettings]:
    """Returns the stages with the accuracies of all settings.

    The list is empty with fewer than two settings, before a trial has ended, and for a plain list of points, whose
        settings differ in unrelated ways.
    """
    if "points" in tables.study:
        return []
    all_stages = stages(tables)
    trials = tables.trials
    given_up = trials["trial"][trials["state"] == "stopped"].tolist()
    images = tables.study["data"]["validation_images"]
    found = []
    for complete in completed_stages(all_stages, given_up, images):
        points, means = _means(tables, complete)
        if len(points) < 2:
            continue
        measured = len(complete.trials) - complete.imputed
        found.append(CompletedSettings(complete.where, points, means, measured, complete.imputed))
    return found


def settings_at(tables: StudyTables, stage: Stage) -> CompletedSettings:
    """Returns the settings whose trials were all measured at a stage, without imputation."""
    trials = tuple(stage.top1)
    alone = Completed(stage.where, trials, np.array([list(stage.top1.values())]), 0)
    points, means = _means(tables, alone)
    return CompletedSettings(stage.where, points, means, len(trials), 0)


def _means(tables: StudyTables, complete: Completed) -> tuple[tuple[Mapping[str, Any], ...], Floats]:
    """Returns the settings whose trials are all present, and the means over their seeds.

    Further seeds of contenders pass no rungs: they are used where present, but not required.
    """
    place = {trial: number for number, trial in enumerate(complete.trials)}
    points, columns = [], []
    for point, rows in trials_by_setting(tables):
        trials = [str(row["trial"]) for row in rows]
        if all(trial in place or trial in tables.further for trial in trials):
            points.append(point)
            columns.append(complete.top1[:, [place[one] for one in trials if one in place]].mean(axis=1))
    return tuple(points), np.column_stack(columns) if columns else np.empty((1, 0))


def _accuracy(of_model: float) -> float:
    """Limits a sum of effects to 0 and 1, which it may exceed if few settings had the other fields' values."""
    return min(max(of_model, 0.0), 1.0) if math.isfinite(of_model) else math.nan


def _pair(stage: CompletedSettings, terms: Sequence[Term], a: Term, b: Term) -> list[tuple[Any, ...]]:
    from scipy.special import fdtrc

    n = len(stage.points)
    plain = design_of(terms, n)
    product = (a.columns[:, :, None] * b.columns[:, None, :]).reshape(n, -1)
    whole = fit(np.column_stack([plain, product]), stage.top1)
    without = fit(plain, stage.top1)
    more = without.freedom - whole.freedom
    if not more:
        return []
    p_value = math.nan
    if whole.freedom:
        ratio = (without.squares - whole.squares) / more / np.maximum(whole.spread, 1e-300)
        p_value = float(np.median(fdtrc(more, whole.freedom, np.maximum(ratio, 0.0))))
    starts = {}
    start = 1
    for term in terms:
        starts[term.field] = start
        start += term.columns.shape[1]
    rows = []
    cells = list(itertools.product(range(len(a.levels)), range(len(b.levels))))
    alone = np.zeros((len(cells), whole.design.shape[1]))
    both = np.zeros_like(alone)
    for number, (level_a, level_b) in enumerate(cells):
        alone[number, plain.shape[1] :] = np.outer(a.row(level_a), b.row(level_b)).ravel()
        both[number, 0] = 1.0
        for term, level in ((a, level_a), (b, level_b)):
            begin = starts[term.field]
            both[number, begin : begin + term.columns.shape[1]] = term.row(level)
    both += alone
    interaction, half = whole.estimate(alone)
    top1, _ = whole.estimate(both)
    known = whole.can_estimate(both)
    for number, (level_a, level_b) in enumerate(cells):
        if known[number]:
            value, width = float(interaction[number]), float(half[number])
            rows.append(
                (
                    *(stage.where, a.field, a.levels.labels[level_a], b.field, b.levels.labels[level_b]),
                    *(_accuracy(float(top1[number])), value, value - width, value + width, p_value),
                )
            )
    return rows
