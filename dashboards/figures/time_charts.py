"""Draws the report's charts of accuracy against time as Plotly figures: plain dictionaries without colours.

A colour depends on whether the reader's screen is light or dark. A trace therefore names a *level* of the first swept
field in ``meta``, and the page's script applies the colour of the level in the theme
(:mod:`dashboards.figures.level_styles`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashboards.figures.level_styles import (
    LEVELS_AT_MOST,
    Levels,
    Look,
    levels_of,
    looks_of,
    short_labels,
)
from dashboards.figures.plotly_texts import marked_up, wrapped
from dashboards.figures.time_axes import (
    ACCURACY_TICKS,
    NUMBERS_AT_MOST,
    Axis,
    hover_template,
    metric_axis,
    series_of,
    x_axes,
    y_axes,
)
from nfnet_ray.analysis import StudyRecord
from nfnet_ray.analysis.effects.levels import is_number
from nfnet_ray.analysis.frontier import BUDGET, curve_label
from nfnet_ray.analysis.tables import once_of_a_record
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.labels import ABSENT, point_label, stratum_label
from nfnet_ray.wording import duration

Figure = dict[str, Any]

END_MARKS = {
    "finished": ("circle", "●", "finished"),
    "paused": ("diamond-open", "◇", "paused"),
    "stopped": ("square-open", "□", "stopped early"),
    "diverged": ("x", "✕", "diverged"),
    "failed": ("x", "✕", "failed"),
    "interrupted": ("diamond-open", "◇", "interrupted"),
    "unfinished": ("diamond-open", "◇", "unfinished"),
}
"""{state: (Plotly's symbol at the end of a curve, the letter for it, its meaning)}."""

PANELS_AT_MOST = 6
"""With more strata, all trials share one panel."""
CURVES_AT_MOST = 40
"""With more curves, a panel first shows the best ones and the spread of all curves."""
BEST_CURVES = 10
_BAND_STEPS = 80
_TRIALS_FOR_A_QUANTILE = 5
_EPOCHS_WITH_MARKERS = 40
_POINTS_OF_ALL = 50
"""The points of a curve among all those of many trials, which is a thin line of at most a few hundred pixels."""


@dataclass(frozen=True)
class Panel:
    """A chart of accuracy against time. ``summarised``: it first shows only the best curves and bands."""

    title: str
    figure: Figure
    curves: int
    summarised: bool


@once_of_a_record
def levels(record: StudyRecord) -> Levels:
    """Returns the levels of :func:`asked_value` over all trials; none if no field was swept."""
    if not record.fields:
        return levels_of([])
    return levels_of(asked_value(record, trial) for trial in record.trials.to_dict("records"))


def has_points(record: StudyRecord) -> bool:
    """Whether the study has a plain list of points that differ in several fields, none of which is in question."""
    return "points" in record.study and len(record.fields) > 1


def asked_value(record: StudyRecord, point: Mapping[str, Any] | Mapping[Hashable, Any]) -> Any:
    """Returns the value by which a point is compared: that of the first swept field, or its label in a list of points.

    The label does not contain the budget, because all budgets belong to the same setting.
    """
    if not has_points(record):
        return point[record.fields[0]]
    fields = [field for field in record.fields if field != BUDGET]
    if record.parts or BUDGET in record.fields:
        return curve_label(record, {field: point[field] for field in fields})
    return point_label({field: point[field] for field in fields}, record.names)


def strata(record: StudyRecord) -> list[dict[str, Any]]:
    """Returns each combination of the conditions, absent ones first, then numbers; one empty one without conditions."""
    fields = record.conditions
    found = dict.fromkeys(tuple(row[field] for field in fields) for row in record.trials.to_dict("records"))
    order = [list(dict.fromkeys(record.trials[field])) for field in fields]

    def position(stratum: tuple[Any, ...]) -> list[Any]:
        return [
            (-1, 0) if value is ABSENT else (0, value) if is_number(value) else (1, values.index(value))
            for value, values in zip(stratum, order, strict=True)
        ]

    return [dict(zip(fields, stratum, strict=True)) for stratum in sorted(found, key=position)]


def accuracy_against_time(record: StudyRecord) -> list[Panel]:
    """Returns a panel for each stratum, with the same axes and a curve for each trial, or one panel for all trials.

    A layout's ``meta.top`` is a range of its Y axis in which the best finished trials of the panel can be
    distinguished; None if there are too few. ``meta.ends`` are the labels at the ends of curves. ``meta.x`` and
    ``meta.y`` are the other available axes (:mod:`dashboards.figures.time_axes`).
    """
    all_levels = levels(record)
    looks = looks_of(all_levels)
    seconds = _numbers(record, "train_seconds")
    longest_seconds = float(seconds[np.isfinite(seconds)].max(initial=0.0))
    unit_seconds, unit = time_unit(longest_seconds)
    accuracies = _numbers(record, METRIC)
    accuracies = accuracies[np.isfinite(accuracies)]
    top, bottom = (float(accuracies.max()), float(accuracies.min())) if len(accuracies) else (1.0, 0.0)
    margin = max(0.02, 0.06 * (top - bottom))
    longest = longest_seconds / unit_seconds
    across, up = x_axes(record, unit_seconds, unit), y_axes(record)
    measured = _measured(record, unit_seconds)
    trials = record.trials.to_dict("records")
    conditions = strata(record)
    if len(conditions) > PANELS_AT_MOST:
        conditions = [{}]
    panels = []
    for stratum in conditions:
        curves = [
            _Curve(trial, _level(record, all_levels, trial), *measured[trial["trial"]])
            for trial in trials
            if trial["trial"] in measured and all(trial[field] == value for field, value in stratum.items())
        ]
        summarised = len(curves) > CURVES_AT_MOST
        best = sorted(curves, key=lambda curve: -curve.top1[-1])[:BEST_CURVES] if summarised else curves
        rows_of = _rows(record, best, unit_seconds, [axis["name"] for axis in up])
        figure: Figure = {
            "data": [
                *(_bands(curves) + _all_curves(record, curves, looks) if summarised else []),
                *_curves(record, best, rows_of, looks, up, NUMBERS_AT_MOST // len(conditions)),
            ],
            "layout": {
                "meta": {
                    "top": _close_up([curve.trial for curve in curves]),
                    "ends": [] if summarised else _ends(curves, all_levels),
                    "x": across,
                    "y": up,
                },
                "xaxis": {
                    "title": {"text": f"training time ({unit})"},
                    "range": [0, 1.04 * longest or 1],
                },
                "yaxis": {
                    "title": {"text": "validation top-1"},
                    "tickformat": ACCURACY_TICKS,
                    "range": [max(0, bottom - margin), min(1.005, top + margin)],
                },
            },
        }
        panels.append(Panel(stratum_label(stratum, record.names), figure, len(curves), summarised))
    return panels


@dataclass(frozen=True)
class _Curve:
    """A trial with its measured epochs: their numbers, their end times in the panel's unit, and their accuracies."""

    trial: Mapping[Hashable, Any]
    level: int
    epochs: list[int]
    times: list[float]
    top1: list[float]


def _numbers(record: StudyRecord, name: str) -> NDArray[np.float64]:
    """Returns a column of the table of epochs; NaN for values that are not numbers."""
    import pandas as pd

    if name not in record.epochs:
        return np.full(len(record.epochs), np.nan)
    return pd.to_numeric(record.epochs[name], errors="coerce").to_numpy(float)


def _measured(
    record: StudyRecord, unit_seconds: float
) -> dict[str, tuple[list[int], list[float], list[float]]]:
    """Returns {trial: (epochs, times, accuracies)} of the epochs that have a time and an accuracy."""
    seconds, top1 = _numbers(record, "train_seconds"), _numbers(record, METRIC)
    known = np.flatnonzero(np.isfinite(seconds) & np.isfinite(top1))
    names = record.epochs["trial"].to_numpy()[known]
    found: dict[str, tuple[list[int], list[float], list[float]]] = {}
    columns = (record.epochs["epoch"].to_numpy(), seconds / unit_seconds, top1)
    for name, epoch, time, accuracy in zip(
        names, *(column[known].tolist() for column in columns), strict=True
    ):
        epochs, times, accuracies = found.setdefault(name, ([], [], []))
        epochs.append(epoch)
        times.append(time)
        accuracies.append(accuracy)
    return found


def _rows(
    record: StudyRecord, curves: Sequence[_Curve], unit_seconds: float, metrics: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Returns {trial: measured epochs}, each with ``epoch``, ``seconds``, ``time`` in the panel's unit, and metrics."""
    found: dict[str, list[dict[str, Any]]] = {}
    if not curves:
        return found
    wanted = dict.fromkeys(["trial", "epoch", METRIC, "train_seconds", *metrics])
    table = record.epochs[record.epochs["trial"].isin([curve.trial["trial"] for curve in curves])]
    for row in table[list(wanted)].to_dict("records"):
        if is_number(row[METRIC]) and is_number(row["train_seconds"]):
            timed = {"seconds": row["train_seconds"], "time": row["train_seconds"] / unit_seconds}
            known = {str(name): value for name, value in row.items()}
            found.setdefault(row["trial"], []).append(known | timed)
    return found


def _level(record: StudyRecord, all_levels: Levels, trial: Mapping[Hashable, Any]) -> int:
    return all_levels.index[asked_value(record, trial)] if record.fields else 0


def _close_up(trials: Sequence[Mapping[Hashable, Any]]) -> list[float] | None:
    """Returns a range of accuracies that is hardly wider than the better half of the finished trials needs."""
    last = sorted(trial["last_top1"] for trial in trials if trial["state"] == "finished")
    last = [value for value in last if is_number(value)]
    if len(last) < 2:
        return None
    better = last[min(len(last) // 2, len(last) - 2) :]
    # The range extends below them by as much as they spread, so that the curves are seen to enter it.
    return [max(0.0, 2 * better[0] - better[-1] - 0.01), min(1.005, better[-1] + 0.01)]


def _ends(curves: Sequence[_Curve], all_levels: Levels) -> list[dict[str, Any]]:
    """Returns a label for each level at the end of its longest curve; none for a single level, or very many."""
    if not 1 < len(all_levels) <= LEVELS_AT_MOST:
        return []
    last: dict[int, _Curve] = {}
    for curve in curves:
        if curve.level not in last or curve.epochs[-1] > last[curve.level].epochs[-1]:
            last[curve.level] = curve
    texts = short_labels(all_levels.labels)
    return [
        {"text": texts[level], "x": curve.times[-1], "y": curve.top1[-1], "level": level}
        for level, curve in sorted(last.items())
    ]


def _curves(
    record: StudyRecord,
    curves: Sequence[_Curve],
    rows_of: Mapping[str, list[dict[str, Any]]],
    looks: Sequence[Look],
    axes: Sequence[Axis],
    room: int,
) -> list[dict[str, Any]]:
    """Returns a trace for each curve, with its metrics as long as there is room for that many numbers."""
    traces = []
    for curve in curves:
        rows = rows_of[curve.trial["trial"]]
        series, room = series_of(rows, axes, room)
        traces.append(_curve(record, curve, rows, looks[curve.level], series))
    return traces


def _curve(
    record: StudyRecord,
    curve: _Curve,
    rows: list[dict[str, Any]],
    look: Look,
    series: dict[str, list[float | None]],
) -> dict[str, Any]:
    trial = curve.trial
    symbol, meaning = END_MARKS[trial["state"]][0], state_words(record, trial["state"])
    earlier = len(rows) - 1
    small = 5.0 if len(rows) <= _EPOCHS_WITH_MARKERS else 0.0
    label = marked_up(wrapped(trial_label(record, trial)))
    hover = f"{label}<br>epoch %{{customdata[0]}}, %{{customdata[1]}}<br>{{metric}}%{{customdata[2]}}<extra></extra>"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": trial["trial"],
        "x": list(map(_short, curve.times)),
        "y": list(map(_short, curve.top1)),
        "line": {"width": 1.8, "dash": look.dash},
        "marker": {
            "size": [small] * earlier + [9],
            "symbol": [look.symbol] * earlier + [symbol],
            "opacity": 1,
        },
        "customdata": [
            [row["epoch"], duration(row["seconds"]), f"<br>{meaning}" if row is rows[-1] else ""]
            for row in rows
        ],
        "hovertemplate": hover_template(hover, metric_axis(METRIC)),
        "meta": {"level": curve.level, "hover": hover, "series": series},
    }


def _all_curves(record: StudyRecord, curves: Sequence[_Curve], looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Draws all curves as one trace for each level, because each trace takes a browser time; hidden at first.

    A long curve is thinned. ``meta.trials`` has the label and the number of points of each curve.
    """
    traces = []
    for level, look in enumerate(looks):
        mine = [curve for curve in curves if curve.level == level]
        if mine:
            points = [_thinned(curve) for curve in mine]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [x for times, _ in points for x in (*map(_short, times), None)],
                    "y": [y for _, top1 in points for y in (*map(_short, top1), None)],
                    "hovertemplate": "%{text}<br>top-1 %{y:.1%}<extra></extra>",
                    "line": {"width": 0.8, "dash": look.dash},
                    "opacity": 0.45,
                    "meta": {
                        "level": level,
                        "all": True,
                        "trials": [
                            [wrapped(trial_label(record, curve.trial)), len(times)]
                            for curve, (times, _) in zip(mine, points, strict=True)
                        ],
                    },
                }
            )
    return traces


def _thinned(curve: _Curve) -> tuple[list[float], list[float]]:
    """Returns (times, accuracies) of about :data:`_POINTS_OF_ALL` epochs, evenly spaced, including the best one."""
    number = len(curve.times)
    if number <= _POINTS_OF_ALL:
        return curve.times, curve.top1
    best = max(range(number), key=curve.top1.__getitem__)
    kept = sorted({best, *np.linspace(0, number - 1, _POINTS_OF_ALL).round().astype(int).tolist()})
    return [curve.times[at] for at in kept], [curve.top1[at] for at in kept]


def _bands(curves: Sequence[_Curve]) -> list[dict[str, Any]]:
    """Draws the spread of the accuracies of the trials that were training at a time: middle 90% and 50%, median."""
    times = np.linspace(0, max(curve.times[-1] for curve in curves), _BAND_STEPS)
    at_time = np.full((len(curves), len(times)), np.nan)
    for number, curve in enumerate(curves):
        own = curve.times
        training = (times >= own[0]) & (times <= own[-1])
        at_time[number, training] = np.interp(times[training], own, curve.top1)
    enough = (~np.isnan(at_time)).sum(axis=0) >= _TRIALS_FOR_A_QUANTILE
    if not enough.any():
        return []
    quantiles = np.nanquantile(at_time[:, enough], (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    low, quarter, median, three_quarters, high = (
        [_short(value) for value in row] for row in quantiles.tolist()
    )
    x = [_short(value) for value in times[enough].tolist()]

    def band(below: list[float], above: list[float], strength: int) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "lines",
            "x": x + x[::-1],
            "y": above + below[::-1],
            "fill": "toself",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "meta": {"band": strength},
        }

    middle = {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": median,
        "line": {"width": 2},
        "hovertemplate": "median %{y:.1%}<extra></extra>",
        "meta": {"band": 0},
    }
    return [band(low, high, 1), band(quarter, three_quarters, 2), middle]


def _short(value: float) -> float:
    """Rounds to the digits that a chart can show, because a page has tens of thousands of numbers."""
    return float(f"{value:.5g}")


def differ_in_seeds(record: StudyRecord) -> bool:
    """Whether a study's trials have several seeds, for all settings or only for contenders."""
    return len(record.study["seeds"]) > 1 or record.trials["seed"].nunique() > 1


def trial_label(record: StudyRecord, trial: Mapping[Hashable, Any]) -> str:
    """Describes a row of ``record.trials``: the swept values, and the seed if there are several."""
    point = {field: trial[field] for field in record.fields}
    if differ_in_seeds(record):
        point["seed"] = trial["seed"]
    return point_label(point, record.names) or str(trial["trial"])


def state_words(record: StudyRecord, state: str) -> str:
    """Describes a trial's state. In a study that has not ended, a trial without an end counts as running."""
    if state == "unfinished" and record.state == "unfinished":
        return "running or cut off" if record.is_silent else "running"
    return END_MARKS[state][2] if state in END_MARKS else state


def time_unit(longest_seconds: float) -> tuple[float, str]:
    """Returns (seconds, name) of the unit of an axis of time."""
    if longest_seconds > 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest_seconds > 180 else (1.0, "seconds")
