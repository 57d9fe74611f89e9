"""Draws the chart of a study of budgets: the accuracy of complete schedules against their training time.

A line joins the budgets of a setting, at the means over seeds. Each seed is a small mark.
"""

from __future__ import annotations

import math
from typing import Any

from dashboards.figures.level_styles import levels_of, looks_of, short_labels
from dashboards.figures.time_axes import ACCURACY_TICKS, logarithmic_axis
from dashboards.figures.time_charts import Figure, asked_value, levels, time_unit
from nfnet_ray.analysis import StudyRecord
from nfnet_ray.analysis.frontier import BUDGET, Curve, curves
from nfnet_ray.wording import count, duration, percent

_LARGEST_RATIO_LINEAR = 4.0
"""The largest ratio of the longest to the shortest time for which a linear axis shows every budget well."""


def budget_chart(record: StudyRecord) -> Figure | None:
    """Returns the chart; None for a study that sweeps no budget, or in which no trial has finished."""
    found = curves(record)
    if not found:
        return None
    # As in the other charts, except that each setting has its own look if the budget itself is in question.
    by_label = record.fields[0] == BUDGET
    all_levels = levels_of(curve.label for curve in found) if by_label else levels(record)
    looks, texts = looks_of(all_levels), short_labels(all_levels.labels)
    times = [seconds for curve in found for budget in curve.budgets for seconds in budget.train_seconds]
    tops = [top1 for curve in found for budget in curve.budgets for top1 in budget.top1]
    unit_seconds, unit = time_unit(max(times))
    is_log = max(times) > _LARGEST_RATIO_LINEAR * min(times)
    margin = max(0.01, 0.06 * (max(tops) - min(tops)))
    data: list[dict[str, Any]] = []
    for curve in found:
        level = all_levels.index[curve.label if by_label else asked_value(record, curve.point)]
        look = looks[level]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [seconds / unit_seconds for budget in curve.budgets for seconds in budget.train_seconds],
                "y": [top1 for budget in curve.budgets for top1 in budget.top1],
                "marker": {"size": 5, "symbol": f"{look.symbol}-open", "opacity": 0.6},
                "hoverinfo": "skip",
                "meta": {"level": level},
            }
        )
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [budget.mean_seconds / unit_seconds for budget in curve.budgets],
                "y": [budget.mean_top1 for budget in curve.budgets],
                "line": {"width": 2, "dash": look.dash},
                "marker": {"size": 9, "symbol": look.symbol},
                "hovertext": _hover(curve),
                "hoverinfo": "text",
                "meta": {"level": level},
            }
        )
    low, high = min(times) / unit_seconds, max(times) / unit_seconds
    axis: dict[str, Any] = {"range": [0, 1.15 * high]}
    if is_log:
        axis = logarithmic_axis(low, high)
    return {
        "data": data,
        "layout": {
            "meta": {
                "top": None,
                "ends": [
                    {
                        "text": texts[all_levels.index[curve.label]],
                        "x": math.log10(last) if is_log else last,
                        "y": curve.budgets[-1].mean_top1,
                        "level": all_levels.index[curve.label],
                    }
                    for curve in found
                    for last in [curve.budgets[-1].mean_seconds / unit_seconds]
                ],
            },
            "xaxis": {"title": {"text": f"training time ({unit})"}, **axis},
            "yaxis": {
                "title": {"text": "validation top-1"},
                "tickformat": ACCURACY_TICKS,
                "range": [max(0, min(tops) - margin), min(1.005, max(tops) + margin)],
            },
        },
    }


def _hover(curve: Curve) -> list[str]:
    return [
        f"{curve.label}, {count(budget.epochs, 'epoch')}\ntop-1 {percent(budget.mean_top1)}, "
        f"{duration(budget.mean_seconds)}\nmean of {count(len(budget.top1), 'seed')}"
        for budget in curve.budgets
    ]
