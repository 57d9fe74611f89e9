"""Draws every setting as a line across an axis for each swept field, and one for its accuracy.

``none`` and an absent field have their own places on their axes. The lines are ordinary traces, because Plotly's
parallel coordinates use WebGL, for which regl compiles text to code, which the page's policy forbids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.figures.level_styles import short_labels
from dashboards.figures.setting_axis import SettingAxis, setting_axis
from dashboards.figures.setting_charts import Outcome, outcome_in_words
from dashboards.figures.time_charts import Figure, has_points
from nfnet_ray.analysis import StudyRecord
from nfnet_ray.wording import percent

FEWEST_SETTINGS = 4
BEST_SHARE = 0.1
"""The share of the settings that reached the end whose lines are accented; at least one."""
_LABELS_AT_MOST = 12
_LABEL_CHARACTERS = 12
_CHARACTERS_SIDE_BY_SIDE = 45
"""The most characters of all axis names together; if there are more, the names are turned."""
_LOST_PLACE = 0.0
_LOWEST_PLACE = 0.12
"""The lowest place of an accuracy, above the place of settings that were lost."""


def parallel_coordinates(record: StudyRecord, outcomes: Sequence[Outcome]) -> Figure | None:
    """Returns the figure; None for a list of points, fewer than two fields with several values, or too few settings."""
    fields = [field for field in record.fields if record.trials[field].nunique(dropna=False) > 1]
    if len(fields) < 2 or has_points(record) or len(outcomes) < FEWEST_SETTINGS:
        return None
    known = [outcome.top1 for outcome in outcomes if outcome.kind != "lost"]
    if not known:
        return None
    axes = _Axes(record, {field: setting_axis(record, field) for field in fields}, min(known), max(known))
    finished = sorted(
        (outcome for outcome in outcomes if outcome.kind == "finished"), key=lambda one: -one.top1
    )
    best = finished[: max(1, round(BEST_SHARE * len(finished)))]
    groups = [
        ([one for one in outcomes if one.kind != "finished"], "quiet", 1.0, "dot", 0.5),
        (finished[len(best) :], "quiet", 1.2, "solid", 0.6),
        (best, "accent", 2.4, "solid", 1.0),
    ]
    names = [*(record.names[field] for field in fields), "validation top-1"]
    return {
        "data": [
            *(axes.lines(of, tone, width, dash, opacity) for of, tone, width, dash, opacity in groups if of),
            axes.ticks(any(outcome.kind == "lost" for outcome in outcomes)),
        ],
        "layout": {
            "xaxis": {
                "tickmode": "array",
                "tickvals": list(range(len(names))),
                "ticktext": names,
                "tickangle": -20 if sum(map(len, names)) > _CHARACTERS_SIDE_BY_SIDE else 0,
                "range": [-0.35, len(names) - 0.65],
                "showgrid": True,
                "showline": False,
            },
            "yaxis": {"visible": False, "range": [-0.04, 1.04]},
            "meta": {},
        },
    }


@dataclass(frozen=True)
class _Axes:
    """An axis for each field, followed by one for the accuracy, from ``low`` to ``high``."""

    record: StudyRecord
    of_fields: Mapping[str, SettingAxis]
    low: float
    high: float

    def lines(
        self, outcomes: Sequence[Outcome], tone: str, width: float, dash: str, opacity: float
    ) -> dict[str, Any]:
        """Returns the settings as one trace with gaps."""
        x: list[float | None] = []
        y: list[float | None] = []
        hover: list[str] = []
        for outcome in outcomes:
            places = [_share(axis, outcome.point[field]) for field, axis in self.of_fields.items()]
            x += [*range(len(places) + 1), None]
            y += [*places, self._height(outcome), None]
            hover += [outcome_in_words(self.record, outcome)] * (len(places) + 1) + [""]
        return {
            "type": "scatter",
            "mode": "lines",
            "x": x,
            "y": y,
            "line": {"width": width, "dash": dash},
            "opacity": opacity,
            "hovertext": hover,
            "hoverinfo": "text",
            "meta": {"tone": tone},
        }

    def _height(self, outcome: Outcome) -> float:
        """Returns the place of a setting on the axis of the accuracy."""
        if outcome.kind == "lost":
            return _LOST_PLACE
        width = self.high - self.low
        share = (outcome.top1 - self.low) / width if width > 0 else 0.5
        return round(_LOWEST_PLACE + (1 - _LOWEST_PLACE) * share, 4)

    def ticks(self, has_lost: bool) -> dict[str, Any]:
        """Returns the ticks of all axes with their labels, as one trace."""
        ticks = [
            *(_ticks(axis) for axis in self.of_fields.values()),
            _accuracy_ticks(self.low, self.high, has_lost),
        ]
        return {
            "type": "scatter",
            "mode": "markers+text",
            "x": [number for number, own in enumerate(ticks) for _ in own],
            "y": [place for own in ticks for place, _ in own],
            "text": [f"{label}  " for own in ticks for _, label in own],
            "textposition": "middle left",
            "textfont": {"size": 11},
            "marker": {"size": 7, "symbol": "line-ew"},
            "cliponaxis": False,
            "hoverinfo": "skip",
            "meta": {"tone": "quiet"},
        }


def _share(axis: SettingAxis, value: Any) -> float:
    """Returns the position of a value on the axis, from 0 at the lower end to 1."""
    low, high = axis.layout["range"]
    return round((axis.place(value) - low) / (high - low), 4)


def _ticks(axis: SettingAxis) -> list[tuple[float, str]]:
    low, high = axis.layout["range"]
    labels = list(zip(axis.layout["tickvals"], axis.layout["ticktext"], strict=True))
    step = math.ceil(len(labels) / _LABELS_AT_MOST)
    shown = labels[::step]
    texts = short_labels([label for _, label in shown], _LABEL_CHARACTERS)
    return [
        (round((place - low) / (high - low), 4), text) for (place, _), text in zip(shown, texts, strict=True)
    ]


def _accuracy_ticks(low: float, high: float, has_lost: bool) -> list[tuple[float, str]]:
    ticks = [(_LOST_PLACE, "lost")] if has_lost else []
    if high <= low:
        return [*ticks, (_LOWEST_PLACE + (1 - _LOWEST_PLACE) / 2, percent(high))]
    return ticks + [
        (_LOWEST_PLACE + (1 - _LOWEST_PLACE) * part / 4, percent(low + (high - low) * part / 4))
        for part in range(5)
    ]
