"""The report's charts as Plotly figures: plain dictionaries, with roles in place of colours.

A colour depends on whether the reader's screen is light or dark, so a trace names a *level* of the first
swept field in ``meta`` and the page's script gives it the colour that the level has in the theme
(:func:`palettes`). Levels of numbers are a sequence from Plotly's Plasma scale, which grows evenly in
lightness and so keeps its order for colour-blind readers and in print; ``none`` is grey and dotted, apart
from the sequence, since it is not one more number.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from nfnet_ray.analysis import StudyRecord, setting_results
from nfnet_ray.analysis.record import METRIC
from nfnet_ray.tracking.labels import point_label, value_label

Figure = dict[str, Any]

END_MARKS = {
    "finished": ("circle", "●", "finished"),
    "stopped": ("square-open", "□", "stopped early"),
    "diverged": ("x", "✕", "diverged"),
    "failed": ("x", "✕", "failed"),
    "interrupted": ("diamond-open", "◇", "interrupted"),
    "unfinished": ("diamond-open", "◇", "unfinished"),
}
"""{state: (Plotly's symbol at the end of a curve, the letter for it, what it means)}."""

STRATUM_MARKS = (
    ("circle", "●"),
    ("square", "■"),
    ("diamond", "◆"),
    ("triangle-up", "▲"),
    ("triangle-down", "▼"),
    ("star", "★"),
)
"""(Plotly's symbol, the letter for it) of the strata, in their order."""

# The yellow end of the scale vanishes on white, the blue end on black.
_LIGHT_THEME_RANGE, _DARK_THEME_RANGE = (0.0, 0.8), (0.35, 1.0)
_GREY = {"light": "#767676", "dark": "#9a9a9a"}
# Okabe and Ito's palette, for values without an order; black is left out, as it would vanish on a dark page.
_UNORDERED = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def levels(record: StudyRecord) -> list[Any]:
    """The values of the first swept field in the order of the legend: numbers upwards, then words, then none."""
    if not record.fields:
        return []
    values = list(dict.fromkeys(record.trials[record.fields[0]]))
    numbers = [value for value in values if _is_number(value)]
    words = [value for value in values if not _is_number(value) and value is not None]
    return [*sorted(numbers), *words, *([None] if None in values else [])]


def palettes(record: StudyRecord) -> dict[str, list[str]]:
    """``{"light": [colour of each level], "dark": […]}``; one colour where nothing was swept."""
    from plotly.colors import sample_colorscale

    values = levels(record) or [0]
    colored = [value for value in values if value is not None]
    ordered = all(_is_number(value) for value in colored)
    result = {}
    for theme, (low, high) in {"light": _LIGHT_THEME_RANGE, "dark": _DARK_THEME_RANGE}.items():
        if ordered and colored:
            steps = [low + (high - low) * i / max(1, len(colored) - 1) for i in range(len(colored))]
            colors = list(sample_colorscale("Plasma", steps))
        else:
            colors = [_UNORDERED[i % len(_UNORDERED)] for i in range(len(colored))]
        result[theme] = [*colors, *([_GREY[theme]] if None in values else [])]
    return result


def strata(record: StudyRecord) -> list[dict[str, Any]]:
    """Each combination of the fields after the first, numbers upwards; one empty one if there are none."""
    fields = record.fields[1:]
    found = {tuple(row[field] for field in fields) for row in record.trials.to_dict("records")}
    order = [record.study["space"][field] for field in fields]

    def position(stratum: tuple[Any, ...]) -> list[Any]:
        return [
            (0, value) if _is_number(value) else (1, values.index(value) if value in values else -1)
            for value, values in zip(stratum, order, strict=True)
        ]

    return [dict(zip(fields, stratum, strict=True)) for stratum in sorted(found, key=position)]


def accuracy_against_time(record: StudyRecord) -> list[tuple[str, Figure]]:
    """A panel for each stratum, ``(title, figure)``; all with the same axes, a curve for each trial.

    The layout's ``meta.top`` is a range of the Y axis in which the last accuracies of the finished trials
    can be told from each other; None where there is nothing to tell apart.
    """
    all_values = levels(record)
    unit_seconds, unit = _time_unit(_maximum(record.epochs.get("train_seconds", [])))
    top = _maximum(record.epochs[METRIC], default=1.0)
    bottom = min((value for value in record.epochs[METRIC] if _is_number(value)), default=0.0)
    margin = max(0.02, 0.06 * (top - bottom))
    longest = _maximum(record.epochs.get("train_seconds", [])) / unit_seconds
    last = [
        value for value in record.trials[record.trials["state"] == "finished"]["last_top1"] if value == value
    ]
    # As much again below the finished trials as they spread, so that one sees the curves come in.
    close_up = [max(0.0, 2 * min(last) - top - 0.01), min(1.005, top + 0.01)] if len(last) > 1 else None
    panels = []
    for stratum in strata(record):
        traces = []
        for trial in record.trials.to_dict("records"):
            if any(trial[field] != value for field, value in stratum.items()):
                continue
            rows = record.epochs[record.epochs["trial"] == trial["trial"]].to_dict("records")
            rows = [row for row in rows if _is_number(row[METRIC]) and _is_number(row.get("train_seconds"))]
            if rows:
                traces.append(_curve(record, trial, rows, all_values, unit_seconds))
        panels.append(
            (
                point_label(stratum, record.names),
                {
                    "data": traces,
                    "layout": {
                        "meta": {"top": close_up},
                        "xaxis": {
                            "title": {"text": f"training time ({unit})"},
                            "range": [0, 1.04 * longest or 1],
                        },
                        "yaxis": {
                            "title": {"text": "validation top-1"},
                            "tickformat": ".0%",
                            "range": [max(0, bottom - margin), min(1.005, top + margin)],
                        },
                    },
                },
            )
        )
    return panels


def last_accuracy(record: StudyRecord) -> Figure | None:
    """Accuracy after the last epoch against the first swept field, a line for each stratum, with intervals.

    None where no two settings can be compared.
    """
    results = setting_results(record)
    if len(results) < 2 or not record.fields:
        return None
    question, all_values = record.fields[0], levels(record)
    traces = []
    columns = strata(record)
    for number, stratum in enumerate(columns):
        mine = sorted(
            (
                (all_values.index(result.point[question]), result)
                for result in results
                if all(result.point[field] == value for field, value in stratum.items())
            ),
            key=lambda item: item[0],
        )
        if not mine:
            continue
        shift = 0.12 * (number - (len(columns) - 1) / 2)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": point_label(stratum, record.names) or "all trials",
                "x": [level + shift for level, _ in mine],
                "y": [result.top1 for _, result in mine],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [result.high - result.top1 for _, result in mine],
                    "arrayminus": [result.top1 - result.low for _, result in mine],
                    "thickness": 1.2,
                    "width": 3,
                },
                "line": {"width": 1.2, "dash": ("solid", "dash", "dot", "dashdot")[number % 4]},
                "marker": {"size": 9, "symbol": STRATUM_MARKS[number % len(STRATUM_MARKS)][0]},
                "hovertext": [
                    f"{point_label(result.point, record.names)}<br>top-1 {result.top1:.1%} "
                    f"({result.low:.1%} to {result.high:.1%})<br>{_seeds(result.seed_top1)}"
                    for _, result in mine
                ],
                "hoverinfo": "text",
                "meta": {"levels": [level for level, _ in mine]},
            }
        )
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": record.names[question]},
                "tickmode": "array",
                "tickvals": list(range(len(all_values))),
                "ticktext": [value_label(value) for value in all_values],
                "range": [-0.5, len(all_values) - 0.5],
                "showgrid": False,
            },
            "yaxis": {"title": {"text": "validation top-1"}, "tickformat": ".0%"},
        },
    }


def _curve(
    record: StudyRecord,
    trial: Mapping[Hashable, Any],
    rows: list[dict[Hashable, Any]],
    all_values: list[Any],
    unit_seconds: float,
) -> dict[str, Any]:
    label = trial_label(record, trial)
    symbol, meaning = END_MARKS[trial["state"]][0], state_words(record, trial["state"])
    value = trial[record.fields[0]] if record.fields else 0
    earlier = len(rows) - 1
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": trial["trial"],
        "x": [row["train_seconds"] / unit_seconds for row in rows],
        "y": [row[METRIC] for row in rows],
        "line": {"width": 1.8, "dash": "dot" if value is None else "solid"},
        "marker": {"size": [3.5] * earlier + [8.5], "symbol": ["circle"] * earlier + [symbol], "opacity": 1},
        "hovertext": [
            f"{label}<br>epoch {row['epoch']}, {duration(row['train_seconds'])}<br>top-1 {row[METRIC]:.1%}"
            + (f"<br>{meaning}" if row is rows[-1] else "")
            for row in rows
        ],
        "hoverinfo": "text",
        "meta": {"level": all_values.index(value) if record.fields else 0},
    }


def trial_label(record: StudyRecord, trial: Mapping[Hashable, Any]) -> str:
    """A row of ``record.trials`` in words: what is swept, and the seed where there are several."""
    point = {field: trial[field] for field in record.fields}
    if len(record.study["seeds"]) > 1:
        point["seed"] = trial["seed"]
    return point_label(point, record.names) or str(trial["trial"])


def state_words(record: StudyRecord, state: str) -> str:
    """A trial's state for people. In a study that has not ended, a trial without an end is running."""
    if state == "unfinished" and record.state == "unfinished":
        return "running"
    return END_MARKS[state][2] if state in END_MARKS else state


def duration(seconds: float) -> str:
    """A time for people: ``42 s``, ``4 min 6 s``, ``3 h 20 min``; a dash for NaN."""
    if math.isnan(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def _time_unit(longest_seconds: float) -> tuple[float, str]:
    if longest_seconds > 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest_seconds > 180 else (1.0, "seconds")


def _maximum(values: Iterable[Any], default: float = 0.0) -> float:
    return max((value for value in values if _is_number(value)), default=default)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _seeds(top1: Sequence[float]) -> str:
    if len(top1) == 1:
        return "1 seed"
    return f"{len(top1)} seeds: {', '.join(f'{value:.1%}' for value in top1)}"
