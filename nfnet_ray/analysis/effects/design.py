"""Builds the least-squares model of a study: a sum of one effect of each field, and of products of two fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nfnet_ray.analysis.effects.levels import FieldLevels, field_levels
from nfnet_ray.analysis.inference.paired import Floats
from nfnet_ray.analysis.tables import StudyTables
from nfnet_ray.tracking.labels import ABSENT
from nfnet_ray.tracking.swept import swept_range

MOST_LISTED, MOST_BINS, FEWEST_BINS = 8, 6, 3
"""The most listed numbers that are separate levels; the most and the fewest bins for ranges and longer lists."""
_SETTINGS_FOR_A_BIN = 12
_SMALL = 1e-8


@dataclass(frozen=True)
class Term:
    """The columns of a field in the design. The effects of its levels sum to 0; where it is absent its effect is 0.

    Attributes:
        field: dotted name.
        levels: the levels of the field without the absent one.
        columns: (n, levels - 1).
    """

    field: str
    levels: FieldLevels
    columns: Floats

    def row(self, level: int) -> Floats:
        """Returns (levels - 1,) the columns at a level."""
        return _coding(len(self.levels))[level]


def terms_of(
    tables: StudyTables, points: Sequence[Mapping[str, Any]], bins: int | None = None
) -> tuple[Term, ...]:
    """Returns a term for each field that has at least two levels among the points."""
    terms = []
    by_settings = min(max(len(points) // _SETTINGS_FOR_A_BIN, FEWEST_BINS), MOST_BINS)
    for field in tables.fields:
        values = [point[field] for point in points]
        present = [value for value in values if value is not ABSENT]
        listed = swept_range(tables.study, field) is None and len(set(present)) <= MOST_LISTED
        levels = field_levels(present, MOST_LISTED if listed else bins or by_settings)
        if len(levels) < 2:
            continue
        coding = np.vstack([_coding(len(levels)), np.zeros(len(levels) - 1)])
        rows = [len(levels) if value is ABSENT else levels.index[value] for value in values]
        terms.append(Term(field, levels, coding[rows]))
    return tuple(terms)


@dataclass(frozen=True)
class Fit:
    """A least-squares fit to the accuracies of n settings, for any number of draws at once.

    Attributes:
        design: (n, p) the columns of the model.
        beta: (draws, p) the coefficients.
        spread: (draws,) the variance of the residuals; NaN without degrees of freedom.
        freedom: n minus the rank of the design.
        squares: (draws,) the sum of the squared residuals.
    """

    design: Floats
    beta: Floats
    spread: Floats
    freedom: int
    squares: Floats

    def can_estimate(self, rows: Floats) -> np.ndarray:
        """Returns (rows,) whether the settings determine ``rows @ beta``."""
        hat = np.linalg.pinv(self.design) @ self.design
        return np.asarray(np.abs(rows @ hat - rows).max(axis=1) < _SMALL)

    def estimate(self, rows: Floats) -> tuple[Floats, Floats]:
        """Returns (rows,) the mean of ``rows @ beta`` over draws, and half its 95% interval (Rubin's rules).

        The degrees of freedom are those of Barnard & Rubin (1999), for few settings. The interval is NaN without
        degrees of freedom.
        """
        from scipy.special import stdtrit

        each = self.beta @ rows.T
        mean = each.mean(axis=0)
        # The pseudoinverse of the design itself is used: that of its square can be negative if columns nearly coincide.
        weights = rows @ np.linalg.pinv(self.design)
        within = (weights**2).sum(axis=1) * self.spread.mean()
        draws = len(self.beta)
        if self.freedom < 1:
            return mean, np.full(len(rows), np.nan)
        freedom = np.full(len(rows), float(self.freedom))
        total = within
        if draws > 1:
            between = (1 + 1 / draws) * each.var(axis=0, ddof=1)
            total = within + between
            with np.errstate(divide="ignore", invalid="ignore"):
                missing = np.where(total > 0, between / total, 0.0)
                of_draws = (draws - 1) / missing**2
                observed = (self.freedom + 1) / (self.freedom + 3) * self.freedom * (1 - missing)
                freedom = 1 / (1 / of_draws + 1 / np.maximum(observed, _SMALL))
        # With less than one degree of freedom, the interval would be practically infinite.
        return mean, np.asarray(stdtrit(np.maximum(freedom, 1.0), 0.975) * np.sqrt(total))


ROUNDING = 1e-12
"""The size of rounding errors in a residual or in the height of a curve; accuracies are fractions."""


def fit(design: Floats, top1: Floats) -> Fit:
    """Fits accuracies (draws, n) by the columns of ``design`` (n, p)."""
    beta = top1 @ np.linalg.pinv(design).T
    freedom = len(design) - int(np.linalg.matrix_rank(design))
    squares = ((top1 - beta @ design.T) ** 2).sum(axis=1)
    # Residuals that consist of rounding errors count as 0: without noise, accuracies may be exactly a sum of effects.
    squares = np.where(squares < len(design) * ROUNDING**2, 0.0, squares)
    spread = squares / freedom if freedom else np.full(len(top1), np.nan)
    return Fit(design, beta, spread, freedom, squares)


def design_of(terms: Sequence[Term], n: int) -> Floats:
    """Returns (n, p) a column of ones, then the columns of the terms."""
    return np.column_stack([np.ones(n), *(term.columns for term in terms)])


def _coding(levels: int) -> Floats:
    """Returns (levels, levels - 1) the coding of effects that sum to 0."""
    return np.vstack([np.eye(levels - 1), -np.ones(levels - 1)])
