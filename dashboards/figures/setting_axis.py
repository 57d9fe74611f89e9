"""Builds the axis of a swept field: a place for each listed value, or a linear or logarithmic axis for a range."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.figures.level_styles import Levels, levels_of, short_labels
from nfnet_ray.analysis import StudyRecord
from nfnet_ray.tracking.labels import ABSENT, value_label
from nfnet_ray.tracking.swept import swept_range

LABELS_AT_MOST = 8
"""The most labels of a range, so that they do not touch each other on a chart of half the page's width."""
_LONG_LABEL = 6  # characters; longer labels are turned, as Plotly leaves out one that does not fit
_MARGIN = 0.06  # of the axis, on both sides of a range


@dataclass(frozen=True)
class SettingAxis:
    """The places of a field's values on the X axis.

    Attributes:
        place: returns the place of a value.
        layout: the axis in Plotly's format.
        is_range: whether the axis shows numbers of a range; otherwise each value has a separate place.
    """

    place: Callable[[Any], float]
    layout: dict[str, Any]
    is_range: bool


def setting_axis(record: StudyRecord, field: str) -> SettingAxis:
    """Returns the axis of a swept field. None, and an absent field, are placed at the right of a range."""
    values = levels_of(record.trials[field])
    described = swept_range(record.study, field)
    if described is None:
        return axis_of_levels(record.names[field], values)
    return _axis_of_range(record.names[field], values, **described)


def axis_of_levels(title: str, values: Levels) -> SettingAxis:
    layout = _layout(title, [float(place) for place in range(len(values))], list(values.labels))
    return SettingAxis(
        lambda value: values.index[value], {**layout, "range": [-0.7, len(values) - 0.3]}, is_range=False
    )


def ticks_of(categories: Sequence[str]) -> dict[str, Any]:
    """Returns the ticks of an axis of categories, whose labels may be long."""
    return {"tickmode": "array", "tickvals": list(categories), "ticktext": short_labels(categories)}


def _axis_of_range(
    title: str, values: Levels, low: float, high: float, log: bool = False, **_flags: bool
) -> SettingAxis:
    scale = math.log10 if log else float
    left, right = scale(low), scale(high)
    width = right - left
    outside = [value for value in (None, ABSENT) if value in values.index]
    places = {value: right + width * 0.12 * number for number, value in enumerate(outside, start=1)}
    ticks = _logarithmic_ticks(low, high) if log else _linear_ticks(low, high)
    layout = _layout(
        title,
        [*map(scale, ticks), *places.values()],
        [value_label(tick) for tick in (*ticks, *outside)],
    )
    end = max([right, *places.values()])
    # After an extension, earlier values of a study may lie outside its range.
    return SettingAxis(
        lambda value: places[value] if value in places else scale(value),
        {**layout, "range": [left - _MARGIN * width, end + _MARGIN * width]},
        is_range=True,
    )


def _layout(title: str, places: list[float], labels: list[str]) -> dict[str, Any]:
    return {
        "title": {"text": title},
        "tickmode": "array",
        "tickvals": places,
        "ticktext": short_labels(labels),
        "tickangle": -35 if max(map(len, labels), default=0) > _LONG_LABEL else 0,
        "ticklabeloverflow": "allow",
        "showgrid": False,
    }


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten within the range; else only powers, or its ends if there are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 2 <= len(ticks) <= LABELS_AT_MOST:
            return ticks
    return [low, high]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Returns multiples of 1, 2 or 5 times a power of ten within the range."""
    power = math.floor(math.log10((high - low) / LABELS_AT_MOST))
    for factor, more in ((1, 0), (2, 0), (5, 0), (1, 1), (2, 1)):
        step = float(f"{factor}e{power + more}")
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first + 1 <= LABELS_AT_MOST:
            return [float(f"{number * step:.6g}") for number in range(first, last + 1)]
    return [low, high]
