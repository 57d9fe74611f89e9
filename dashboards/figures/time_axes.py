"""Defines the axes against which trials' curves can be drawn, and the metrics that the curves can show.

A panel of :func:`dashboards.figures.time_charts.accuracy_against_time` is drawn against training time. The ``meta`` of
its layout lists the other axes (``x``) and metrics (``y``), and the ``meta`` of its curves contains the ``series`` of
these. :func:`with_axes` chooses among them, as the page's menus do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dashboards.figures.plotly_texts import marked_up
from nfnet_ray.analysis import StudyRecord
from nfnet_ray.analysis.effects.levels import is_number
from nfnet_ray.data.batching import images_of_share
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.settings import did_you_mean
from nfnet_ray.study.cost.spending import accelerator_word
from nfnet_ray.tracking.descriptions import accelerators
from nfnet_ray.wording import JOULES_PER_KWH

Axis = dict[str, Any]
"""The entries of an X axis: ``name``, ``title``, its source ``of`` (``time``, ``epochs`` or a metric) and the
``factor`` by which it is multiplied; of a Y axis: ``name``, ``title`` and Plotly's ``format`` of its numbers."""

ACCURACY_TICKS = ".2~%"
"""Plotly's format of the labels of an accuracy, with the necessary digits: a close-up has a label every 0.2%."""
NUMBERS_AT_MOST = 120_000
"""The most numbers of all metrics of a panel's curves, which take about a megabyte of a page. Further metrics are left
out."""
ENERGY = "gpu_energy_joules"
_FIRST_METRICS = (
    *(METRIC, "validation_loss", "train_loss", "train_top1", "validation_top5", "agc_clipped_fraction"),
    *("learning_rate", "images_per_second", ENERGY),
)
_WHOLE = 1.005
"""The upper end of the axis of a share, at which a line along 100% is fully visible."""
_FRACTIONS = ("top1", "top5", "_fraction", "_share", "_utilisation")
_NOT_A_CURVE = {"trial", "seed", "epoch"}


def x_axes(record: StudyRecord, unit_seconds: float, unit: str) -> list[Axis]:
    """Returns the axes of training time, epochs and other costs; money and energy if they are known."""
    worker = record.study.get("worker", {"workers": 1, "gpus": 0})
    word = accelerator_word(worker["gpus"])
    hours = unit_seconds / 3600 * accelerators(worker["workers"], worker["gpus"])
    share = record.study["recipe"].get("data.train_share", 1.0)
    images = images_of_share(record.study["data"]["train_images"], share)
    axes = [
        _axis("time", f"training time ({unit})", "time", 1.0),
        _axis("epochs", "epochs", "epochs", 1.0),
    ]
    if "data.train_share" not in record.fields:
        axes.append(_axis("images", "training images seen", "epochs", float(images)))
    axes.append(_axis("accelerator_hours", f"{word}-hours of training", "time", hours))
    if record.price_per_hour is not None:
        title = f"cost of training, at {record.price_per_hour:,.4g} per {word}-hour"
        axes.append(_axis("cost", title, "time", hours * record.price_per_hour))
    if ENERGY in record.epochs and record.epochs[ENERGY].notna().any():
        axes.append(_axis("energy", "energy of the GPUs (kWh)", ENERGY, 1 / JOULES_PER_KWH))
    return axes


def y_axes(record: StudyRecord) -> list[Axis]:
    """Returns the metrics that vary over epochs and trials, the accuracy first."""
    numbers = record.epochs.select_dtypes("number")
    known = [
        str(name)
        for name in numbers
        if name not in {*_NOT_A_CURVE, *record.fields} and numbers[name].nunique() > 1
    ]
    first = [name for name in _FIRST_METRICS if name in known or name == METRIC]
    return [metric_axis(name) for name in dict.fromkeys([*first, *known])]


def metric_axis(name: str) -> Axis:
    """Returns the format of a metric: shares in percent, bytes with a prefix of the SI."""
    title = name.replace("_", " ").replace("top1", "top-1").replace("top5", "top-5")
    title = title.replace("agc ", "AGC ").replace("gpu ", "GPU ")
    if name.endswith(_FRACTIONS):
        return {"name": name, "title": title, "format": ".1%"}
    return {"name": name, "title": title, "format": ".3s" if name.endswith("_bytes") else ".4~g"}


def series_of(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[Axis], left: int
) -> tuple[dict[str, list[float | None]], int]:
    """Returns one curve's metrics except its accuracy, and how many of ``left`` numbers still fit after it."""
    found: dict[str, list[float | None]] = {}
    for axis in axes:
        name = axis["name"]
        values = [row.get(name) for row in rows]
        if name == METRIC or left < len(values) or not any(map(is_number, values)):
            continue
        found[name] = [float(f"{value:.4g}") if is_number(value) else None for value in values]
        left -= len(values)
    return found, left


def with_axes(
    figure: dict[str, Any],
    x: str = "time",
    y: str = METRIC,
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> dict[str, Any]:
    """Returns the panel with other axes.

    Curves that lack the requested values are left out, and so is the spread of many trials, which is only known for the
    accuracy against training time.

    Raises:
        UserError: the study has no such axis or metric.
    """
    meta = figure["layout"]["meta"]
    across, up = _chosen("axis", x, meta["x"]), _chosen("metric", y, meta["y"])
    if x == "time" and y == METRIC and not log_x and not log_y:
        return figure
    traces = []
    for trace in figure["data"]:
        is_curve = "series" in trace["meta"]
        if not is_curve and (across["of"] != "time" or y != METRIC):
            continue
        values = trace["y"] if y == METRIC else trace["meta"]["series"].get(y)
        places = _places(trace, across)
        if values is None or places is None:
            continue
        hover = {"hovertemplate": hover_template(trace["meta"]["hover"], up)} if is_curve else {}
        traces.append({**trace, "x": places, "y": values, **hover})
    x_layout: dict[str, Any] = {**figure["layout"]["xaxis"], "title": {"text": across["title"]}}
    shown = [value for trace in traces for value in trace["x"] if is_number(value) and value > 0]
    if log_x and shown:
        x_layout |= logarithmic_axis(min(shown), max(shown))
    else:
        x_layout["range"] = [0, 1.04 * max(shown, default=1.0)]
    y_layout = dict(figure["layout"]["yaxis"])
    heights = [value for trace in traces for value in trace["y"] if is_number(value)]
    positive = [value for value in heights if value > 0]
    if y != METRIC:
        low, high = min(heights, default=0.0), max(heights, default=1.0)
        margin = 0.06 * (high - low) or 0.5
        y_layout |= {"title": {"text": up["title"]}, "tickformat": up["format"]}
        y_layout["range"] = [low - margin, high + margin]
        if up["format"].endswith("%"):
            y_layout["range"] = [max(min(0.0, low), low - margin), min(max(_WHOLE, high), high + margin)]
    if log_y and positive:
        ticks = logarithmic_axis(min(positive), max(positive))
        y_layout |= {name: ticks[name] for name in ("type", "range", "tickvals")}
    ends = _ends(traces, meta["ends"], log_x=log_x, log_y=log_y)
    layout = {
        **figure["layout"],
        "meta": {**meta, "top": None, "ends": ends},
        "xaxis": x_layout,
        "yaxis": y_layout,
    }
    return {"data": traces, "layout": layout}


def hover_template(hover: str, axis: Axis) -> str:
    """Returns the text under the pointer, from a curve's ``hover`` with a placeholder for the metric."""
    return hover.replace("{metric}", f"{marked_up(axis['title'])} %{{y:{axis['format']}}}")


def logarithmic_axis(low: float, high: float) -> Axis:
    """Labels a logarithmic axis at 1, 2 and 5 times powers of ten, as Plotly's labels are only first digits."""
    powers = range(math.floor(math.log10(low / 1.2)), math.ceil(math.log10(high * 1.6)) + 1)
    digits = (1, 2, 5) if len(powers) < 5 else (1,)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    ticks = [tick for tick in ticks if low / 1.2 <= tick <= high * 1.6]
    return {
        "type": "log",
        "range": [math.log10(low / 1.2), math.log10(high * 1.6)],
        "tickvals": ticks,
        "ticktext": [f"{tick:,.10g}" for tick in ticks],
    }


def _places(trace: Mapping[str, Any], axis: Axis) -> list[float | None] | None:
    if axis["of"] == "time":
        values: list[float | None] | None = trace["x"]
    elif axis["of"] == "epochs":
        values = [epoch for epoch, *_ in trace["customdata"]]
    else:
        values = trace["meta"]["series"].get(axis["of"])
    if values is None:
        return None
    return [None if value is None else float(f"{value * axis['factor']:.5g}") for value in values]


def _ends(
    traces: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]], *, log_x: bool, log_y: bool
) -> list[dict[str, Any]]:
    """Moves the labels at the ends of curves to the present end of each level's longest curve."""
    texts = {end["level"]: end["text"] for end in known}
    longest: dict[int, Mapping[str, Any]] = {}
    for trace in traces:
        level = trace["meta"].get("level")
        if level in texts and trace["customdata"][-1][0] > (
            longest[level]["customdata"][-1][0] if level in longest else -1
        ):
            longest[level] = trace
    ends = []
    for level, trace in sorted(longest.items()):
        x, y = trace["x"][-1], trace["y"][-1]
        if is_number(x) and is_number(y) and (x > 0 or not log_x) and (y > 0 or not log_y):
            x, y = math.log10(x) if log_x else x, math.log10(y) if log_y else y
            ends.append({"text": texts[level], "x": x, "y": y, "level": level})
    return ends


def _axis(name: str, title: str, of: str, factor: float) -> Axis:
    return {"name": name, "title": title, "of": of, "factor": factor}


def _chosen(kind: str, name: str, axes: Sequence[Axis]) -> Axis:
    for axis in axes:
        if axis["name"] == name:
            return axis
    known = [axis["name"] for axis in axes]
    raise UserError(f"there is no {kind} {name!r}: {did_you_mean(name, known)}")
