"""Builds the report's section on AGC's clipping: a heat map of layers by epochs, a table, and the next clip factor.

As in :mod:`~dashboards.figures.time_charts`, a figure has no colours; the page's script adds those of the reader's
theme.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.figures.time_charts import Figure, strata, trial_label
from dashboards.report_tables import Cell, Column, Row, Table
from nfnet_ray.analysis import (
    StudyRecord,
    clipping_by_part,
    clipping_of,
    suggest_clip_factors,
)
from nfnet_ray.analysis.clip_factor import extend_command
from nfnet_ray.analysis.clipping import CLIP_FACTOR, clipped_of_all, differs_from_step
from nfnet_ray.clipping import QUANTILES
from nfnet_ray.tracking.labels import stratum_label, value_label
from nfnet_ray.wording import percent

PANELS_AT_MOST = 4
ROWS_AT_MOST = 24
"""The most rows of the table: the paper's six factors at four batch sizes."""
SEPARATE_ROWS_BELOW = 80
"""With fewer layers, gaps separate the rows of the heat map; with more, gaps would take up most of the map."""


@dataclass(frozen=True)
class ClippingCharts:
    """The contents of the section.

    Attributes:
        panels: ``(title, figure)`` of the best setting that clips, under each condition.
        table: the share of units that each setting clipped in each part of the network.
        suggestions: (condition in words, sentence) for each condition whose trials have all ended.
        command: the command that tries the suggested factors; empty if there are none.
        remarks: remarks that help to interpret the numbers.
    """

    panels: tuple[tuple[str, Figure], ...]
    table: Table
    suggestions: tuple[tuple[str, str], ...]
    command: str
    remarks: str


def clipping_charts(record: StudyRecord) -> ClippingCharts | None:
    """Returns the section of a study; None if nothing was counted, as in journals of earlier versions."""
    counted = [row for row in record.trials.to_dict("records") if record.clipping.get(row["trial"])]
    if not counted:
        return None
    suggestions = suggest_clip_factors(record)
    panels = _panels(record, counted)
    return ClippingCharts(
        panels=tuple((trial_label(record, row), _figure(record, row)) for row in panels[:PANELS_AT_MOST]),
        table=_table(record, counted),
        suggestions=tuple((stratum_label(one.stratum, record.names), one.reasoning) for one in suggestions),
        command=extend_command(record, suggestions),
        remarks=" ".join(filter(None, [_left_out(len(panels)), _remarks(record)])),
    )


def _panels(record: StudyRecord, counted: Sequence[Mapping[Hashable, Any]]) -> list[Mapping[Hashable, Any]]:
    """Returns for each stratum the trial with the highest last accuracy among those that clip."""
    chosen = []
    for stratum in strata(record):
        rivals = [
            row
            for row in counted
            if all(row[field] == value for field, value in stratum.items())
            and not math.isnan(row["last_top1"])
        ]
        rivals = [row for row in rivals if _clips(record, row)]
        if rivals:
            # A trial that was given up early may have been ahead at that time.
            chosen.append(max(rivals, key=lambda row: (row["epochs"], row["last_top1"])))
    return chosen


def _clips(record: StudyRecord, row: Mapping[Hashable, Any]) -> bool:
    return row.get(CLIP_FACTOR, record.study["recipe"].get(CLIP_FACTOR)) is not None


def _figure(record: StudyRecord, row: Mapping[Hashable, Any]) -> Figure:
    """Draws layers from the image downwards and epochs to the right; the colour is the share of clipped units."""
    records = clipping_of(record, str(row["trial"]))
    last = next(reversed(records.values()))
    names = [layer.name or f"{layer.part}: gains and biases" for layer in last.layers]
    # The rows of a part are adjacent, with its gains and biases last.
    order = sorted(
        range(len(names)),
        key=lambda number: (
            list(dict.fromkeys(layer.part for layer in last.layers)).index(last.layers[number].part),
            not last.layers[number].name,
            number,
        ),
    )
    first_of_part = {last.layers[number].part: names[number] for number in reversed(order)}
    median = QUANTILES.index(0.5)
    return {
        "data": [
            {
                "type": "heatmap",
                "x": list(records),
                "y": [names[number] for number in order],
                "z": [[_rounded(kept.layers[n].clipped) for kept in records.values()] for n in order],
                "customdata": [
                    [_rounded(kept.layers[n].quantiles[median]) for kept in records.values()] for n in order
                ],
                "zmin": 0,
                "zmax": 1,
                "xgap": 1 if len(records) <= len(names) else 0,
                "ygap": 1 if len(names) < SEPARATE_ROWS_BELOW else 0,
                "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
                "hovertemplate": (
                    "%{y}, epoch %{x}<br>%{z:.1%} of the units clipped<br>median ‖g‖/‖w‖ %{customdata:.2g}"
                    "<extra></extra>"
                ),
                "meta": {"heat": True},
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": "epoch"}, "showgrid": False},
            "yaxis": {
                "type": "category",
                "autorange": "reversed",
                "showgrid": False,
                "tickmode": "array",
                "tickvals": list(first_of_part.values()),
                "ticktext": list(first_of_part),
            },
        },
    }


def _table(record: StudyRecord, counted: Sequence[Mapping[Hashable, Any]]) -> Table:
    """Returns a row for each setting: its values, and the clipped shares of all units and by part, over its seeds."""
    settings: dict[tuple[Any, ...], list[Mapping[Hashable, Any]]] = {}
    for row in counted:
        settings.setdefault(tuple(row[field] for field in record.fields), []).append(row)
    rows = []
    parts: list[str] = []
    for values, seeds in list(settings.items())[:ROWS_AT_MOST]:
        trials = [str(row["trial"]) for row in seeds]
        shares = clipping_by_part(record, *trials)
        parts = parts or list(shares)
        # Networks of a study may differ in their parts.
        texts = [percent(shares[part]) if part in shares else "–" for part in parts]
        rows.append(
            Row(
                (
                    *(Cell(value_label(value), is_number=True) for value in values),
                    Cell(percent(clipped_of_all(record, *trials)), is_number=True),
                    *(Cell(text, is_number=True) for text in texts),
                    Cell(str(max(row["epochs"] for row in seeds)), is_number=True),
                )
            )
        )
    columns = (
        *(Column(record.names[field], is_number=True) for field in record.fields),
        Column("all units", is_number=True),
        *(Column(part, is_number=True) for part in parts),
        Column("epochs", is_number=True),
    )
    left_out = len(settings) - len(rows)
    return Table(
        columns, tuple(rows), f"The first {ROWS_AT_MOST} of {len(settings):,} settings." if left_out else ""
    )


def _left_out(conditions: int) -> str:
    if conditions <= PANELS_AT_MOST:
        return ""
    return f"Drawn: the first {PANELS_AT_MOST} of {conditions:,} conditions."


def _remarks(record: StudyRecord) -> str:
    step = differs_from_step(record)
    if step is None:
        return ""
    if step == 1:
        return (
            "Trials of different factors differ from step 1 on: biases and skip gains start at 0, so their gradients "
            "are large in relation to them. No part of a trial can stand for that of another."
        )
    return f"Until step {step:,}, no unit's ratio exceeds the smallest factor: up to there all factors train alike."


def _rounded(value: float) -> float | None:
    """Rounds to three significant digits, which keeps the page small."""
    return float(f"{value:.3g}") if math.isfinite(value) else None
