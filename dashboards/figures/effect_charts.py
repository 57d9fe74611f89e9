"""Draws the effects of fields. A trace names its colours in ``meta``, as in :mod:`dashboards.figures.time_charts`.

``area`` is a band, ``tone`` a line, marks or bars in the page's ``accent`` or ``quiet`` colour, ``heat`` a map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dashboards.figures.level_styles import Levels
from dashboards.figures.setting_axis import LABELS_AT_MOST, axis_of_levels, ticks_of
from dashboards.figures.time_charts import Figure
from nfnet_ray.analysis.effects.best_so_far import ORDERS
from nfnet_ray.analysis.effects.response import Response
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.wording import count, decimal, percent, percents

if TYPE_CHECKING:
    import pandas as pd

_TOP1: dict[str, Any] = {"title": {"text": "validation top-1"}, "tickformat": ".1%"}
_NARROW = 0.06  # the margin above and below a range of accuracies, as a share of it
_LEAST_RANGE = 0.01


def isolation_figure(table: pd.DataFrame, name: str, others: dict[str, str]) -> Figure:
    """Draws the best setting for each value of the field ``name``; hollow if not trained to the end.

    Args:
        others: {dotted name: short name} of the other fields.
    """
    rows = [row for row in table.to_dict("records") if row["compared"]]
    labels = [str(row["label"]) for row in rows]
    last = str(table["where"].iloc[table["compared"].to_numpy().nonzero()[0]].iloc[0]) if rows else ""
    last = next((str(row["where"]) for row in rows if str(row["where"]).startswith("at the end")), last)
    axis = axis_of_levels(name, Levels(tuple(labels), {}, ordered=True, outside=0))
    traces = []
    for is_last in (True, False):
        mine = [(place, row) for place, row in enumerate(rows) if (row["where"] == last) == is_last]
        if not mine:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [place for place, _ in mine],
                "y": [_short(row["top1"]) for _, row in mine],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [_short(row["high"] - row["top1"]) for _, row in mine],
                    "arrayminus": [_short(row["top1"] - row["low"]) for _, row in mine],
                    "thickness": 1.2,
                    "width": 4,
                },
                "marker": {"size": 9, "symbol": "circle" if is_last else "circle-open"},
                "text": [f" of {row['compared']}" for _, row in mine],
                "textposition": "middle right",
                "textfont": {"size": 10.5},
                "cliponaxis": False,
                "hovertext": [_best_in_words(row, name, others) for _, row in mine],
                "hoverinfo": "text",
                "meta": {"tone": "accent" if is_last else "quiet"},
            }
        )
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    at_end = [row for row in rows if row["where"] == last]
    top = None
    if len(at_end) > 1:
        top = _range(min(row["low"] for row in at_end), max(row["high"] for row in at_end))
        top = top if top[1] - top[0] < 0.5 * (high - low) else None
    layout = {"xaxis": axis.layout, "yaxis": {**_TOP1, "range": _range(low, high)}, "meta": {"top": top}}
    return {"data": traces, "layout": layout}


def response_figure(response: Response) -> Figure:
    """Draws the settings, the fitted curve with band and optimum, and values without a place at the sides.

    The Y axis covers the curve, so settings far below it are not visible.
    """
    bottom, top = _heights(response)
    axis = _ResponseAxis.of(response)
    return {
        "data": [
            *_moved_curves(response),
            *_fitted_curve(response),
            _settings(response, axis),
            _optimum(response),
        ],
        "layout": {
            "xaxis": axis.layout(response.names[response.field]),
            "yaxis": {**_TOP1, "range": _range(bottom, top)},
            "meta": {"top": _part_at_the_optimum(response, top - bottom)},
        },
    }


@dataclass(frozen=True)
class _ResponseAxis:
    """The axis of a response.

    Attributes:
        values: the values of the field, in ascending order.
        apart: {label of a value without a place on the axis: the position at which it is drawn}.
    """

    values: Sequence[float]
    is_logarithmic: bool
    apart: Mapping[str, float]

    @classmethod
    def of(cls, response: Response) -> _ResponseAxis:
        values = sorted({value for value, *_ in response.points})
        axis = cls(values, response.is_logarithmic, {})
        below = [one.label for one in response.apart if one.label == "0"]
        above = [one.label for one in response.apart if one.label != "0"]
        apart = {label: axis._moved(values[0], -number) for number, label in enumerate(below, start=1)}
        apart |= {label: axis._moved(values[-1], number) for number, label in enumerate(above, start=1)}
        return replace(axis, apart=apart)

    def _moved(self, value: float, steps: float) -> float:
        """Returns the value that lies this number of steps, of 12% of the axis, to the right."""
        low, high = self.values[0], self.values[-1]
        if self.is_logarithmic:
            return value * math.exp(steps * (math.log(high / low) * 0.12))
        return value + steps * ((high - low) * 0.12)

    def layout(self, name: str) -> dict[str, Any]:
        low, high = self.values[0], self.values[-1]
        drawn = [low, high, *self.apart.values()]
        ends = self._moved(min(drawn), -0.5), self._moved(max(drawn), 0.5)
        labels = {value: value_label(value) for value in self.values}
        if len(self.values) > LABELS_AT_MOST:  # label only its ends and its middle
            middle = math.sqrt(low * high) if self.is_logarithmic else (low + high) / 2
            labels = {value: f"{value:.2g}" for value in (low, middle, high)}
        labels |= {place: label for label, place in self.apart.items()}
        return {
            "title": {"text": name + (" (log scale)" if self.is_logarithmic else "")},
            "type": "log" if self.is_logarithmic else "linear",
            "range": [math.log10(end) for end in ends] if self.is_logarithmic else list(ends),
            "showgrid": False,
            "tickmode": "array",
            "tickvals": list(labels),
            "ticktext": list(labels.values()),
        }


def _fitted_curve(response: Response) -> list[dict[str, Any]]:
    """Returns the traces of the band and of the curve in it."""
    curve = response.curve
    assert curve is not None
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [*curve.values, *reversed(curve.values)],
            "y": [_short(value) for value in (*curve.high, *reversed(curve.low))],
            "fill": "toself",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "meta": {"area": True},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "x": [_short(value) for value in curve.values],
            "y": [_short(value) for value in curve.top1],
            "line": {"width": 2},
            "hovertemplate": "fitted %{y:.1%}<extra></extra>",
            "meta": {"tone": "accent"},
        },
    ]


def _settings(response: Response, axis: _ResponseAxis) -> dict[str, Any]:
    """Returns a mark for each setting, and for each value without a place on the axis."""
    name = response.names[response.field]
    by_label = {one.label: one for one in response.apart}
    marks = [(value, value_label(value), top1, low, high) for value, top1, low, high in response.points]
    for label, place in axis.apart.items():
        one = by_label[label]
        marks.append((place, label, one.top1, one.low, one.high))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [place for place, *_ in marks],
        "y": [_short(top1) for _, _, top1, _, _ in marks],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [_short(high - top1) for _, _, top1, _, high in marks],
            "arrayminus": [_short(top1 - low) for _, _, top1, low, _ in marks],
            "thickness": 1,
            "width": 3,
        },
        "marker": {"size": 7},
        "hovertext": [
            f"{name} {label}\ntop-1 {percent(top1)} ({percents(low, high)})"
            for _, label, top1, low, high in marks
        ],
        "hoverinfo": "text",
        "meta": {"tone": "quiet"},
    }


def _optimum(response: Response) -> dict[str, Any]:
    """Returns the optimum, with its interval along the axis."""
    at = (
        f"optimum {response.optimum:.3g} (95% interval {response.low:.2g} to {response.high:.2g})"
        f"\nfitted top-1 {percent(response.top1)}"
    )
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [response.optimum],
        "y": [_short(response.top1)],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_short(max(0.0, response.high - response.optimum))],
            "arrayminus": [_short(max(0.0, response.optimum - response.low))],
            "thickness": 2,
            "width": 5,
        },
        "marker": {"size": 11, "symbol": "diamond"},
        "hovertext": [at],
        "hoverinfo": "text",
        "meta": {"tone": "accent"},
    }


def _heights(response: Response) -> tuple[float, float]:
    """Returns the lowest and the highest visible accuracy; settings and values apart far below may not be visible."""
    curve, apart = response.curve, response.apart
    assert curve is not None
    elsewhere = [value for shift in response.shifts[:1] for own in shift.curves for value in own]
    shown = [point for point in response.points if point[1] >= min(curve.low) - 0.02]
    bottom = near = min([*curve.low, *(low for _, _, low, _ in shown)])
    if apart:
        bottom = min([near, *(one.low for one in apart)])
        if bottom < min(curve.low) - (max(curve.high) - min(curve.low)):
            bottom = near
    top = max([*curve.high, *elsewhere, *(high for *_, high in shown), *(one.high for one in apart)])
    return min([bottom, *elsewhere]), top


def _part_at_the_optimum(response: Response, height: float) -> list[float] | None:
    """Returns the range of the band within the optimum's interval; None if that is much of the ``height``."""
    assert response.curve is not None
    near = [
        bound
        for value, *bounds in zip(response.curve.values, response.curve.low, response.curve.high, strict=True)
        if response.low <= value <= response.high
        for bound in bounds
    ]
    part = _range(min(near), max(near)) if near else None
    return part if part is not None and part[1] - part[0] <= 0.5 * height else None


def _moved_curves(response: Response) -> list[dict[str, Any]]:
    """Returns the curve at two values of the first field that moves the optimum, labelled at the ends."""
    assert response.curve is not None
    traces = []
    for shift in response.shifts[:1]:
        name = response.names[shift.field]
        for value, top1, dash in zip(shift.values, shift.curves, ("dash", "dot"), strict=True):
            label = f"{name} {value:.2g}"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+text",
                    "x": [_short(at) for at in response.curve.values],
                    "y": [_short(one) for one in top1],
                    "line": {"width": 1.6, "dash": dash},
                    "text": [*[""] * (len(top1) - 1), f" {value:.2g}"],
                    "textposition": "middle right",
                    "cliponaxis": False,
                    "textfont": {"size": 10.5},
                    "hovertemplate": f"fitted %{{y:.1%}} at {label}<extra></extra>",
                    "meta": {"tone": "quiet"},
                }
            )
    return traces


def below_the_chart(response: Response, figure: Figure) -> int:
    """Returns the number of settings of a response whose accuracy is below what its figure shows."""
    bottom = figure["layout"]["yaxis"]["range"][0]
    return sum(point[1] < bottom for point in response.points) + sum(
        one.top1 < bottom for one in response.apart
    )


def importance_figure(table: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Draws a bar for each field and stage, with the most important field of the first stage at the top."""
    stages = [str(where) for where in dict.fromkeys(table.dropna(subset=["importance"])["where"])]
    first = table[table["where"] == stages[0]].sort_values("importance", kind="stable", na_position="first")
    fields = first["field"].tolist()
    traces = []
    # Plotly draws the groups of a horizontal bar chart upwards.
    for number, where in reversed(list(enumerate(stages))):
        rows = table[table["where"] == where].set_index("field").loc[fields].fillna(0.0)
        values = rows["importance"].tolist()
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "y": [names[one] for one in fields],
                "x": [_short(value) for value in values],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [_short(h - v) for h, v in zip(rows["high"], values, strict=True)],
                    "arrayminus": [_short(v - low) for low, v in zip(rows["low"], values, strict=True)],
                    "thickness": 1.2,
                    "width": 3,
                },
                "hovertext": [
                    f"{names[one]}, {where}\n{percent(v)} ({percent(low)} to {percent(high)})"
                    for one, v, low, high in zip(fields, values, rows["low"], rows["high"], strict=True)
                ],
                "hoverinfo": "text",
                "meta": {"tone": "accent" if number == len(stages) - 1 else "quiet"},
            }
        )
    return {
        "data": traces,
        "layout": {
            "barmode": "group",
            "bargap": 0.35,
            "xaxis": {
                "title": {"text": "share of the differences in accuracy"},
                "tickformat": ".0%",
                "range": [0, min(1.02, max(0.1, 1.1 * float(table["high"].max())))],
            },
            "yaxis": {"type": "category", "showgrid": False, "range": [-0.5, len(fields) - 0.5]},
            "meta": {},
        },
    }


def best_so_far_figure(table: pd.DataFrame, accelerator: str) -> Figure:
    """Draws the best accuracy so far as a staircase over the epochs of all trials, with its band."""
    rows = table.to_dict("records")
    x = [row["epochs"] for row in rows]
    is_mean = rows[0]["band"] == ORDERS
    shape = "linear" if is_mean else "hv"
    hover = [
        f"{count(int(row['settings']), 'setting')}, {count(round(row['epochs']), 'epoch')}, "
        f"{row['accelerator_hours']:.3g} {accelerator}-hours of training"
        + (f", {row['cost']:.2f}" if not math.isnan(row["cost"]) else "")
        + f"\ntop-1 {percent(row['top1'])} ({percents(row['low'], row['high'])})"
        for row in rows
    ]

    def line(name: str, **more: Any) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": [_short(row[name]) for row in rows],
            **more,
        }

    edge = {"line": {"width": 0, "shape": shape}, "hoverinfo": "skip", "meta": {"area": True}}
    traces = [
        line("low", **edge),
        line("high", **edge, fill="tonexty"),
        line(
            "top1",
            line={"width": 2, "shape": shape},
            hovertext=hover,
            hoverinfo="text",
            meta={"tone": "accent"},
        ),
    ]
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    late = rows[len(rows) // 3 :]
    top = _range(min(row["low"] for row in late), high)
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "epochs of all trials so far"}, "range": [0, 1.02 * x[-1]]},
            "yaxis": {
                "title": {"text": "best validation top-1 so far"},
                "tickformat": ".1%",
                "range": _range(low, high),
            },
            "meta": {"top": top if top[1] - top[0] < 0.6 * (high - low) else None},
        },
    }


def pair_figure(table: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Draws the accuracy for each pair of values of two fields; ``table`` contains only one pair of fields."""
    across, down = list(dict.fromkeys(table["value_a"])), list(dict.fromkeys(table["value_b"]))
    cells = {(row["value_a"], row["value_b"]): row for row in table.to_dict("records")}
    grid = [[cells.get((a, b)) for a in across] for b in down]
    known = [row["top1"] for row in cells.values()]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": across,
                "y": down,
                "z": [[None if cell is None else _short(cell["top1"]) for cell in row] for row in grid],
                "text": [["" if cell is None else percent(cell["top1"]) for cell in row] for row in grid],
                "texttemplate": "%{text}",
                "customdata": [
                    [
                        ""
                        if cell is None
                        else f"{decimal(100 * cell['interaction'], sign=True)} points beyond the sum of their effects"
                        + (
                            ""
                            if math.isnan(cell["low"])
                            else f" ({decimal(100 * cell['low'], sign=True)} to "
                            f"{decimal(100 * cell['high'], sign=True)})"
                        )
                        for cell in row
                    ]
                    for row in grid
                ],
                "hovertemplate": "%{x}, %{y}<br>top-1 %{text}<br>%{customdata}<extra></extra>",
                "xgap": 2,
                "ygap": 2,
                "zmin": min(known),
                "zmax": max(known),
                "showscale": False,
                "meta": {"pairs": True},
            }
        ],
        "layout": {
            "xaxis": {
                "title": {"text": names[str(table["field_a"].iloc[0])]},
                "type": "category",
                **ticks_of(across),
                "showgrid": False,
            },
            "yaxis": {
                "title": {"text": names[str(table["field_b"].iloc[0])]},
                "type": "category",
                **ticks_of(down),
                "showgrid": False,
            },
            "meta": {},
        },
    }


def _best_in_words(row: dict[Any, Any], name: str, others: dict[str, str]) -> str:
    rest = ", ".join(f"{short} {value_label(row[field])}" for field, short in others.items())
    return (
        f"{name} {value_label(row['value'])}{f', {rest}' if rest else ''}\n{row['where']}: top-1 "
        f"{percent(row['top1'])} ({percents(row['low'], row['high'])})\nthe best of "
        f"{row['compared']} of {count(int(row['settings']), 'setting')}"
    )


def _range(low: float, high: float) -> list[float]:
    width = max(high - low, _LEAST_RANGE)
    return [max(-0.005, low - _NARROW * width), min(1.005, high + _NARROW * width)]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
