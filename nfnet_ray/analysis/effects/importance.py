"""Computes the share of the variation of accuracy that each field explains, at the first rung and at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nfnet_ray.analysis.effects.design import design_of, fit, terms_of
from nfnet_ray.analysis.effects.marginal import settings_at
from nfnet_ray.analysis.effects.stages import stages
from nfnet_ray.analysis.tables import StudyTables
from nfnet_ray.wording import agree, count

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("where", "field", "importance", "low", "high", "p_value", "settings", "of")
LEAST_FREEDOM = 3
"""The least number of settings beyond the number of effects, so that the noise can be estimated."""


def importance(tables: StudyTables) -> pd.DataFrame:
    """Returns the share of the variance of accuracy between settings that each field explains on its own.

    All settings are present at the first rung, but only those that were not given up at the end. The latter were
    selected by their accuracy, so a field whose poor values are gone explains little there, however much it matters.
    The importance at the first rung describes the space, and that at the end the choice between good settings.

    Returns:
        A row for each stage (the first rung and the end; only the end if nothing was given up) and field: ``where``,
        ``field``, ``importance`` (a share, corrected for what the same number of null effects would explain, and
        without the part that other fields explain as well), its 95% interval ``low`` to ``high`` (from the noncentral F
        distribution: Steiger 2004), ``p_value`` of its F test, ``settings`` and ``of`` (the number of settings that
        were compared, and of all settings). All values are NaN at a stage with too few settings for its number of
        effects. The remainder to 1 is due to interactions, seeds and images.
    """
    import pandas as pd

    found = [] if "points" in tables.study else stages(tables)
    both = [found[0], *([found[-1]] if len(found) > 1 else [])] if found else []
    total = len(tables.trials[[*tables.fields]].drop_duplicates()) if tables.fields else 0
    rows = []
    for stage in both:
        settings = settings_at(tables, stage)
        n = len(settings.points)
        terms = terms_of(tables, settings.points) if n else ()
        whole = fit(design_of(terms, n), settings.top1) if terms else None
        shares = {}
        if whole is not None and whole.freedom >= LEAST_FREEDOM:
            tests = {}
            for term in terms:
                rest = fit(design_of([one for one in terms if one is not term], n), settings.top1)
                more = rest.freedom - whole.freedom
                if more and whole.spread[0] > 0:
                    ratio = float((rest.squares[0] - whole.squares[0]) / more / whole.spread[0])
                    tests[term.field] = _FTest(max(0.0, ratio), more, whole.freedom)
            shares = _shares(tests, n)
        unknown = (math.nan,) * 4
        rows += [(stage.where, field, *shares.get(field, unknown), n, total) for field in tables.fields]
    return pd.DataFrame(rows, columns=list(COLUMNS))


_LARGEST_RATIO = 1e6
_FIELDS_TOLD = 3
"""The most fields in a sentence; the figure shows all."""


@dataclass(frozen=True)
class _FTest:
    """The F test of a field: the ratio F, the field's degrees of freedom, and those of the residuals."""

    ratio: float
    more: int
    freedom: int


def _shares(tests: dict[str, _FTest], n: int) -> dict[str, tuple[float, float, float, float]]:
    """Returns {field: (share, low, high, p value)} from noncentralities, relative to those of all fields plus n."""
    from scipy.special import fdtrc

    central = {field: max(0.0, (test.ratio - 1) * test.more) for field, test in tests.items()}
    found = {}
    for field, test in tests.items():
        rest = sum(central.values()) - central[field] + n
        bounds = [_noncentrality(test, level) for level in (0.975, 0.025)]
        share, low, high = (value / (value + rest) for value in (central[field], *bounds))
        found[field] = (share, low, high, float(fdtrc(test.more, test.freedom, test.ratio)))
    return found


def _noncentrality(test: _FTest, level: float) -> float:
    """Returns the noncentrality at which an F up to the test's has the probability ``level``; 0 if there is none."""
    from scipy.special import ncfdtr  # scipy.stats and scipy.optimize take a second to import

    # The noncentrality of a large ratio is proportional to the ratio, and scipy's function is NaN for very large ones.
    scale = max(1.0, test.ratio / _LARGEST_RATIO)
    ratio = test.ratio / scale

    def above(noncentrality: float) -> float:
        return float(ncfdtr(test.more, test.freedom, noncentrality, ratio)) - level

    low = 1e-9
    if above(low) <= 0:
        return 0.0
    high = max(4.0, 4 * ratio * test.more)
    while above(high) > 0 and high < 1e9:
        high *= 2
    while high > low * (1 + 1e-6):  # bisection of the logarithm
        middle = math.sqrt(low * high)
        low, high = (middle, high) if above(middle) > 0 else (low, middle)
    return scale * low


def importance_sentence(table: pd.DataFrame, names: dict[str, str]) -> str:
    """Says which fields matter, at both stages; empty if that is unknown, or if only one field was swept."""
    if table["field"].nunique() < 2:
        return ""
    parts = []
    stages_told = list(dict.fromkeys(table["where"]))
    for where in stages_told:
        rows = table[table["where"] == where].dropna(subset=["importance"])
        if rows.empty:
            continue
        ranked = rows.sort_values("importance", ascending=False, kind="stable").to_dict("records")
        shares = [
            f"{100 * row['importance']:.0f}% ({100 * row['low']:.0f} to {100 * row['high']:.0f}%)"
            for row in ranked
        ]
        first, *others = [names[row["field"]] for row in ranked]
        told = [f"{first} explains {shares[0]}", *map(" ".join, zip(others, shares[1:], strict=True))]
        n, of = int(rows["settings"].iloc[0]), int(rows["of"].iloc[0])
        scope = f"all {of:,}" if n == of else f"{n:,} of {of:,}"
        rest = len(told) - _FIELDS_TOLD
        more = f", and {count(rest, 'other field')} {agree(rest, 'less', 'less each')}" if rest > 0 else ""
        parts.append(f"{where} ({scope} settings), {', '.join(told[:_FIELDS_TOLD])}{more}")
    if not parts:
        return ""
    note = ""
    if len(stages_told) > 1:
        note = (
            "; those at the end were chosen by their accuracy, and a field whose poor values are gone explains less"
            if len(parts) > 1
            else "; too few settings are left at the end"
        )
    return f"Of the differences in accuracy {'; '.join(parts)}{note}"
