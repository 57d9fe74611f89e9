"""Draws the outcome of each setting of a study: a mark in a chart, and a cell in a table of two swept fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dashboards.figures.level_styles import Levels, levels_of
from dashboards.figures.setting_axis import SettingAxis, axis_of_levels, setting_axis, ticks_of
from dashboards.figures.time_axes import ACCURACY_TICKS
from dashboards.figures.time_charts import (
    PANELS_AT_MOST,
    Figure,
    asked_value,
    has_points,
    levels,
    state_words,
    strata,
)
from nfnet_ray.analysis import SettingResult, StudyRecord
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.labels import point_label, stratum_label
from nfnet_ray.tracking.swept import swept_range
from nfnet_ray.tracking.trial_progress import LOST
from nfnet_ray.wording import count, percent

STRATUM_MARKS = (
    ("circle", "●"),
    ("square", "■"),
    ("diamond", "◆"),
    ("triangle-up", "▲"),
    ("triangle-down", "▼"),
    ("star", "★"),
)
"""(Plotly's symbol, the letter for it) of the strata, in their order; :data:`PANELS_AT_MOST` of them."""
LABELLED_AT_MOST = 40
"""With more hollow marks, the number of epochs is only shown under the pointer."""
SETTING = "setting"
"""The name of the axis on which the points of a list are side by side."""
HEADING_CHARACTERS = 10
"""If values of the first field are longer, they are the rows of the table, where there is room for them."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

Kind = Literal["finished", "partial", "lost"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one setting.

    Attributes:
        kind: ``finished``: comparable with other finished settings; ``partial``: has an accuracy after fewer epochs
            (stopped early, running, interrupted); ``lost``: at least one seed diverged or failed.
        state: the state of the trial that decided on ``kind``, in words.
        top1: the mean over seeds after ``epochs`` epochs, a fraction; NaN if the setting was lost.
        result: the result with its interval, for a finished setting.
    """

    point: Mapping[str, Any]
    kind: Kind
    state: str
    top1: float
    epochs: int
    result: SettingResult | None = None


def setting_outcomes(record: StudyRecord, results: Sequence[SettingResult]) -> list[Outcome]:
    """Returns the outcome of each setting that has one, in the order of the study's space, given the finished ones."""
    finished = {tuple(result.point.values()): result for result in results}
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for trial in record.trials.to_dict("records"):
        key = tuple(trial[field] for field in record.fields)
        settings.setdefault(key, []).append({str(name): value for name, value in trial.items()})
    others = [trial["trial"] for key, trials in settings.items() if key not in finished for trial in trials]
    epochs_of_others = record.epochs[record.epochs["trial"].isin(others)]
    top1 = {
        (trial, epoch): value
        for trial, epoch, value in zip(
            *(epochs_of_others[n] for n in ("trial", "epoch", METRIC)), strict=True
        )
    }
    outcomes = []
    for key, trials in settings.items():
        point = dict(zip(record.fields, key, strict=True))
        if key in finished:
            result = finished[key]
            epochs = max(trial["epochs"] for trial in trials)
            outcomes.append(Outcome(point, "finished", "finished", result.top1, epochs, result))
            continue
        lost = [trial for trial in trials if trial["state"] in LOST]
        begun = [trial for trial in trials if trial["epochs"]]
        if lost:
            epochs = min(trial["epochs"] for trial in lost)
            outcomes.append(Outcome(point, "lost", state_words(record, lost[0]["state"]), math.nan, epochs))
        elif begun:
            # Seeds may have reached different epochs: use the last epoch that all of them have reached.
            least = min(begun, key=lambda trial: int(trial["epochs"]))
            values = [top1.get((trial["trial"], least["epochs"]), math.nan) for trial in begun]
            mean = sum(values) / len(values)
            if not math.isnan(mean):
                state = state_words(record, least["state"])
                outcomes.append(Outcome(point, "partial", state, mean, least["epochs"]))
    return outcomes


@dataclass(frozen=True)
class SettingsChart:
    """A chart of the accuracy of each setting against a swept field.

    Attributes:
        field: dotted name of the field, or :data:`SETTING`.
        strata: (letter, label) of the marks of each stratum; empty if one mark is used for all of them.
        partial_epochs: the numbers of epochs for which there is a hollow mark.
        has_finished, has_lost: whether there are marks of these kinds.
        has_intervals: whether finished settings are drawn with their intervals.
    """

    field: str
    figure: Figure
    strata: tuple[tuple[str, str], ...]
    partial_epochs: tuple[int, ...]
    has_finished: bool
    has_lost: bool
    has_intervals: bool


def settings_charts(record: StudyRecord, outcomes: Sequence[Outcome]) -> list[SettingsChart]:
    """Returns a chart against the first swept field, and one against each other field with a range.

    For a list of points there is one chart, in which they are side by side. The list is empty if there are fewer than
    two settings.
    """
    if len(outcomes) < 2 or not record.fields:
        return []
    if has_points(record):
        return [_settings_chart(record, outcomes, SETTING)]
    ranges = [field for field in record.fields[1:] if swept_range(record.study, field) is not None]
    return [_settings_chart(record, outcomes, field) for field in (record.fields[0], *ranges)]


def _settings_chart(record: StudyRecord, outcomes: Sequence[Outcome], field: str) -> SettingsChart:
    all_levels, conditions = levels(record), strata(record)
    axis = axis_of_levels(SETTING, all_levels) if field == SETTING else setting_axis(record, field)
    apart = len(conditions) <= PANELS_AT_MOST
    finished = [outcome.result for outcome in outcomes if outcome.result]
    partial_epochs = [outcome.epochs for outcome in outcomes if outcome.kind == "partial"]
    has_lost = any(outcome.kind == "lost" for outcome in outcomes)
    known = [outcome.top1 for outcome in outcomes if outcome.kind != "lost"]
    known += [bound for result in finished if apart for bound in (result.low, result.high)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = max(0.01, 0.07 * (high - low))
    # Lost settings have no accuracy, so their marks form a separate row below all others.
    floor = low - margin
    range_ = [floor - margin / 2 if has_lost else max(-0.005, low - margin), min(1.005, high + margin)]
    # Of many numbers several share a place: labels would hide each other, and a line would go up and down there.
    grouped = not axis.is_range and len(all_levels.index) > len(all_levels)
    # If all were given up after the same epoch, the caption says so.
    differ = len(set(partial_epochs)) > 1
    others_are_conditions = set(record.fields) <= {record.fields[0], *record.conditions}
    marks = _Marks(
        record,
        field,
        axis,
        all_levels,
        conditions,
        apart,
        floor,
        has_epochs=apart and not grouped and differ and len(partial_epochs) <= LABELLED_AT_MOST,
        has_lines=others_are_conditions and not axis.is_range and not grouped,
    )
    traces: list[dict[str, Any]] = []
    for number, stratum in enumerate(conditions if apart else [{}]):
        mine = [o for o in outcomes if all(o.point[name] == value for name, value in stratum.items())]
        traces += marks.of_stratum(number, mine)
    letters = [(STRATUM_MARKS[number][1], stratum) for number, stratum in enumerate(conditions) if apart]
    return SettingsChart(
        field=field,
        figure={
            "data": traces,
            "layout": {
                "meta": {"top": _better_half(finished)},
                "xaxis": axis.layout,
                "yaxis": {
                    "title": {"text": "validation top-1"},
                    "tickformat": ACCURACY_TICKS,
                    "range": range_,
                },
            },
        },
        strata=tuple(
            (letter, stratum_label(stratum, record.names)) for letter, stratum in letters if stratum
        ),
        partial_epochs=tuple(sorted(set(partial_epochs))),
        has_finished=bool(finished),
        has_lost=has_lost,
        has_intervals=apart,
    )


def _better_half(finished: Sequence[SettingResult]) -> list[float] | None:
    """Returns the accuracies of the better half of the settings, with intervals; None for a single setting."""
    if len(finished) < 2:
        return None
    median = sorted(result.top1 for result in finished)[len(finished) // 2]
    return [
        min(result.low for result in finished if result.top1 >= median) - 0.005,
        min(1.005, max(result.high for result in finished) + 0.005),
    ]


@dataclass(frozen=True)
class _Marks:
    """The style in which the settings of a chart are drawn.

    Attributes:
        conditions: {field: value} of each stratum.
        apart: whether each stratum has its own marks, side by side, with intervals.
        floor: the place of settings without an accuracy.
        has_epochs: whether hollow marks are labelled with their epochs.
        has_lines: whether finished settings of a stratum are joined by lines.
    """

    record: StudyRecord
    field: str
    axis: SettingAxis
    levels: Levels
    conditions: Sequence[Mapping[str, Any]]
    apart: bool
    floor: float
    has_epochs: bool
    has_lines: bool

    def of_stratum(self, number: int, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
        """Returns the traces of a stratum, or of all settings if strata are not apart: one for each kind of outcome."""
        by_kind: dict[Kind, list[Outcome]] = {"finished": [], "partial": [], "lost": []}
        for outcome in sorted(outcomes, key=self._level):
            by_kind[outcome.kind].append(outcome)
        traces = [self._trace(number, kind, rows) for kind, rows in by_kind.items() if rows]
        rows = by_kind["finished"]
        if not rows or not self.apart:
            return traces
        finished, *others = traces
        finished["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [o.result.high - o.top1 if o.result else 0 for o in rows],
            "arrayminus": [o.top1 - o.result.low if o.result else 0 for o in rows],
            "thickness": 1.2,
            "width": 3,
        }
        question = self.record.fields[0]
        lines = _line(finished, rows, question, self.levels, _DASHES[number]) if self.has_lines else []
        return [finished, *lines, *others]

    def _trace(self, number: int, kind: Kind, rows: Sequence[Outcome]) -> dict[str, Any]:
        symbol, is_labelled = STRATUM_MARKS[number][0], kind == "partial" and self.has_epochs
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers+text" if is_labelled else "markers",
            "x": self._places(number, rows),
            "y": [self.floor if kind == "lost" else outcome.top1 for outcome in rows],
            "marker": {
                "size": 9 if self.apart else 7,
                "symbol": {"finished": symbol, "partial": f"{symbol}-open", "lost": "x"}[kind],
            },
            "hovertext": [outcome_in_words(self.record, outcome) for outcome in rows],
            "hoverinfo": "text",
            "meta": {
                "levels": [self._level(outcome) for outcome in rows],
                "quiet": kind == "partial" and not self.apart,
            },
        }
        if is_labelled:
            trace["text"] = [f"{outcome.epochs} of {self.record.study['epochs']}" for outcome in rows]
            side = "right" if number >= len(self.conditions) / 2 else "left"
            trace["textposition"] = "top center" if len(self.conditions) == 1 else f"middle {side}"
            trace["textfont"] = {"size": 10.5}
            trace["cliponaxis"] = False
        return trace

    def _places(self, number: int, rows: Sequence[Outcome]) -> list[float]:
        """Places strata side by side within the width of a level, or spreads them if they are not apart."""
        if self.axis.is_range:
            shifts = [0.0] * len(rows)
        elif self.apart:
            width = min(0.18, 0.7 / len(self.conditions))
            shifts = [width * (number - (len(self.conditions) - 1) / 2)] * len(rows)
        else:
            shifts = _jitter(rows, self.conditions, self.record.conditions)
        values = [
            asked_value(self.record, row.point) if self.field == SETTING else row.point[self.field]
            for row in rows
        ]
        return [round(self.axis.place(value) + more, 4) for value, more in zip(values, shifts, strict=True)]

    def _level(self, outcome: Outcome) -> int:
        return self.levels.index[asked_value(self.record, outcome.point)]


@dataclass(frozen=True)
class HeatMap:
    """The best outcome for each pair of values of two swept fields.

    Attributes:
        across, down: dotted names of the fields. The first one is across, unless its values are long words.
        columns, rows: the levels of the field across and of the one down.
        cells: ``cells[row][column]``; None if nothing is known.
        others: names of the swept fields over which the best was taken.
        grouped: whether a row or a column represents several values.
    """

    across: str
    down: str
    columns: Levels
    rows: Levels
    cells: tuple[tuple[Outcome | None, ...], ...]
    others: tuple[str, ...]
    grouped: bool


def heat_map(record: StudyRecord, outcomes: Sequence[Outcome]) -> HeatMap | None:
    """Returns the table of the first field and the first condition, or the second field without conditions.

    None for fewer than two swept fields, if both have a range, if nothing is known yet, and for a list of points.
    """
    if len(record.fields) < 2 or not outcomes or has_points(record):
        return None
    across, down = record.fields[0], (*record.conditions, record.fields[1])[0]
    if swept_range(record.study, across) is not None and swept_range(record.study, down) is not None:
        return None
    others = [field for field in record.fields if field not in (across, down)]
    if max(map(len, levels(record).labels)) > HEADING_CHARACTERS:
        across, down = down, across
    columns, rows = levels_of(record.trials[across]), levels_of(record.trials[down])
    cells: list[list[Outcome | None]] = [[None] * len(columns) for _ in range(len(rows))]
    order = {"finished": 2, "partial": 1, "lost": 0}
    for outcome in outcomes:
        row, column = rows.index[outcome.point[down]], columns.index[outcome.point[across]]
        rival = cells[row][column]
        rank = (order[outcome.kind], outcome.epochs, outcome.top1 if outcome.kind != "lost" else 0.0)
        if rival is None or rank > (
            order[rival.kind],
            rival.epochs,
            rival.top1 if rival.kind != "lost" else 0.0,
        ):
            cells[row][column] = outcome
    values = len(set(record.trials[across])), len(set(record.trials[down]))
    return HeatMap(
        across,
        down,
        columns,
        rows,
        tuple(map(tuple, cells)),
        tuple(record.names[field] for field in others),
        grouped=values != (len(columns), len(rows)),
    )


def heat_map_figure(record: StudyRecord, cells: HeatMap) -> Figure:
    """Returns the table as a Plotly figure, with colours for settings that reached the end and words for others."""
    known = [one.top1 for row in cells.cells for one in row if one and one.kind == "finished"]

    def text(outcome: Outcome | None) -> str:
        if outcome is None:
            return ""
        if outcome.kind == "lost":
            return outcome.state
        after = f"\n{outcome.epochs} of {record.study['epochs']}" if outcome.kind == "partial" else ""
        return f"{percent(outcome.top1)}{after}"

    return {
        "data": [
            {
                "type": "heatmap",
                "x": list(cells.columns.labels),
                "y": list(cells.rows.labels),
                "z": [[o.top1 if o and o.kind == "finished" else None for o in row] for row in cells.cells],
                "text": [[text(outcome) for outcome in row] for row in cells.cells],
                "texttemplate": "%{text}",
                "hoverinfo": "skip",
                "xgap": 2,
                "ygap": 2,
                # A single accuracy has the colour of the best.
                "zmin": min(known, default=0.0) - (0.01 if len(set(known)) == 1 else 0.0),
                "zmax": max(known, default=1.0),
                "showscale": False,
                "meta": {"pairs": True},
            }
        ],
        "layout": {
            "xaxis": {
                "title": {"text": record.names[cells.across]},
                "type": "category",
                **ticks_of(cells.columns.labels),
                "showgrid": False,
            },
            "yaxis": {
                "title": {"text": record.names[cells.down]},
                "type": "category",
                **ticks_of(cells.rows.labels),
                "autorange": "reversed",
                "showgrid": False,
            },
            "meta": {},
        },
    }


def _jitter(
    rows: Sequence[Outcome], conditions: Sequence[Mapping[str, Any]], fields: Sequence[str]
) -> list[float]:
    """Returns a place for each stratum within the width of a level, the same in each level."""
    places = {tuple(stratum.values()): number for number, stratum in enumerate(conditions)}
    last = max(1, len(places) - 1)
    return [0.7 * (places[tuple(row.point[field] for field in fields)] / last - 0.5) for row in rows]


def _line(
    trace: Mapping[str, Any], rows: Sequence[Outcome], question: str, all_levels: Levels, dash: str
) -> list[dict[str, Any]]:
    """Draws a line through the finished settings, except through words and none, which have no order."""
    places = [i for i, row in enumerate(rows) if row.point[question] is not None]
    if not all_levels.ordered or len(places) < 2:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [trace["x"][place] for place in places],
            "y": [trace["y"][place] for place in places],
            "line": {"width": 1.2, "dash": dash},
            "hoverinfo": "skip",
            "meta": {"quietLine": True},
        }
    ]


def outcome_in_words(record: StudyRecord, outcome: Outcome) -> str:
    """Returns the text under the pointer: the setting, its accuracy with the interval, and its seeds."""
    words = [point_label(outcome.point, record.names)]
    if outcome.result is not None:
        result = outcome.result
        words.append(f"top-1 {result.top1:.1%} ({result.low:.1%} to {result.high:.1%})")
        seeds = ", ".join(f"{value:.1%}" for value in result.seed_top1)
        words.append(
            count(len(result.seed_top1), "seed") + (f": {seeds}" if len(result.seed_top1) > 1 else "")
        )
    elif outcome.kind == "partial":
        words.append(f"top-1 {outcome.top1:.1%} after {epochs_of(record, outcome.epochs)}, {outcome.state}")
    else:
        words.append(f"{outcome.state} after {count(outcome.epochs, 'epoch')}")
    return "\n".join(words)


def epochs_of(record: StudyRecord, epochs: int) -> str:
    """Formats epochs, such as ``4 of 8 epochs``."""
    return f"{epochs} of {count(record.study['epochs'], 'epoch')}"
