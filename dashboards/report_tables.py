"""Builds the tables of a study's report: the best value per condition, accuracies by two fields, all trials."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dashboards.figures.level_styles import levels_of
from dashboards.figures.setting_charts import HeatMap, Outcome
from dashboards.figures.time_charts import differ_in_seeds, state_words
from nfnet_ray.analysis import BestSetting, StudyRecord, best_per_stratum
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.wording import count, duration, percent, percents, speed

STRATA_AT_MOST = 12
"""The most conditions in the answer's table, which shows those with the highest accuracy."""
NAMED_AT_MOST = 4
"""The most settings that a caption names; it gives the number of the others."""
PAGED_ABOVE = 50
"""A table with more trials is shown page by page (the page's script has the same number)."""
LAST, HIGHEST, SPEED = "top-1, last epoch", "top-1, highest epoch (optimistic)", "images/s"
STATE = "state"
BEST_FIRST = (LAST, HIGHEST, SPEED)
"""Columns that the first click sorts in descending order."""


@dataclass(frozen=True)
class Column:
    name: str
    is_number: bool = False
    best_first: bool = False


class Cell(NamedTuple):
    """A cell's text, with a remark in small print and the script's sort key, which is empty if the value is unknown."""

    text: str
    is_number: bool = False
    sort: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table. The page's script shows ``hidden`` rows on a later page."""

    cells: tuple[Cell, ...]
    trial: str = ""
    best: bool = False
    hidden: bool = False


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class HeatCell:
    """A cell of the heat map.

    Attributes:
        kind: its look: ``best``, ``partial``, ``lost``, ``unknown``, or nothing special.
        state: how the setting ended, which the page shows under the pointer; empty if it finished.
        share: the intensity of the colour, 0 to 1; None without colour.
    """

    kind: str
    text: str
    detail: str = ""
    state: str = ""
    share: float | None = None


@dataclass(frozen=True)
class HeatTable:
    """Accuracies by the values of two fields, one of which goes down and the other across."""

    down: str
    across: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    notes: str


def answers_table(record: StudyRecord) -> Table | None:
    """Returns the best value of the first swept field under each condition; None for a single condition."""
    answers = best_per_stratum(record)
    if len(answers) < 2:
        return None
    conditions = record.conditions
    asked = [field for field in record.fields if field not in conditions]
    columns = (
        *(Column(record.names[field], is_number=True) for field in conditions),
        *(Column(f"best {record.names[field]}", is_number=True) for field in asked),
        Column("top-1", is_number=True),
        Column("95% interval", is_number=True),
        Column("not distinguishable from it"),
    )
    best_first = sorted(range(len(answers)), key=lambda number: -answers[number].quoted.top1)[:STRATA_AT_MOST]
    rows = []
    for answer in (answers[number] for number in sorted(best_first)):
        values = (
            *(value_label(answer.best.point[field]) for field in conditions),
            *(value_label(answer.best.point[field]) for field in asked),
            percent(answer.quoted.top1),
            percents(answer.quoted.low, answer.quoted.high),
            _within_noise(answer, asked) or "–",
        )
        cells = (Cell(value, column.is_number) for column, value in zip(columns, values, strict=True))
        rows.append(Row(tuple(cells)))
    more = len(answers) > STRATA_AT_MOST
    return Table(
        columns, tuple(rows), f"The best {STRATA_AT_MOST} of {len(answers):,} conditions." if more else ""
    )


def _within_noise(answer: BestSetting, asked: Sequence[str]) -> str:
    """Returns the values that cannot be told apart from the best, or their number if several fields were searched."""
    if len(asked) > 1:
        return count(len(answer.within_noise), "setting") if answer.within_noise else ""
    return first_of(
        [value_label(other.point[field]) for other in answer.within_noise for field in asked], ", "
    )


def heat_table(record: StudyRecord, best: BestSetting | None, heat_map: HeatMap) -> HeatTable:
    """Returns the heat map as a table: the higher the accuracy of a finished setting, the stronger the colour."""
    known = [
        cell.top1 for row in heat_map.cells for cell in row if cell is not None and cell.kind == "finished"
    ]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def cell(outcome: Outcome | None) -> HeatCell:
        if outcome is None:
            return HeatCell("unknown", "–")
        if outcome.kind == "lost":
            return HeatCell("lost", "✕", state=outcome.state)
        top1 = percent(outcome.top1)
        if outcome.kind == "partial":
            detail = f"after {outcome.epochs} of {record.study['epochs']}"
            return HeatCell("partial", top1, detail, outcome.state)
        share = 0.12 + 0.88 * (outcome.top1 - low) / (high - low) if high > low else 1.0
        is_best = best is not None and outcome.point == best.best.point
        return HeatCell("best" if is_best else "", top1, share=share)

    notes = ["Coloured: after the last epoch; only these can be compared with each other."] if known else []
    if heat_map.others or heat_map.grouped:
        grouped = ["the values in a group"] if heat_map.grouped else []
        notes.append(f"A cell is the best over {' and '.join([*heat_map.others, *grouped])}.")
    return HeatTable(
        down=record.names[heat_map.down],
        across=record.names[heat_map.across],
        headings=heat_map.columns.labels,
        rows=tuple(
            (label, tuple(map(cell, row)))
            for label, row in zip(heat_map.rows.labels, heat_map.cells, strict=True)
        ),
        notes=" ".join(notes),
    )


def left_out_table(record: StudyRecord) -> Table | None:
    """Returns the trials that an extension has left out of the study; None if there are none."""
    if record.left_out is None:
        return None
    note = "Trained before the study was extended. They stay as evidence, and take part in no answer."
    return replace(trials_table(replace(record, trials=record.left_out), None), note=note)


def reruns_table(record: StudyRecord) -> Table | None:
    """Returns the trials that confirm the winners; None if there are none."""
    if record.reruns is None:
        return None
    note = (
        "The best settings, trained again with seeds that the sweep did not use. They choose no setting: the best ones "
        "are compared with the others by them."
    )
    return replace(trials_table(replace(record, trials=record.reruns), None), note=note)


def trials_table(record: StudyRecord, best: BestSetting | None) -> Table:
    """Returns all trials: in the study's order, or the best first if the table has several pages."""
    with_seeds = differ_in_seeds(record) and not record.trials["seed"].isna().any()
    # A study may sweep the epochs.
    epochs = "trained epochs" if "epochs" in record.names.values() else "epochs"
    columns = (
        *(Column(record.names[field], levels_of(record.trials[field]).ordered) for field in record.fields),
        *([] if record.fields else [Column("trial")]),
        *([Column("seed", is_number=True)] if with_seeds else []),
        *(
            Column(name, is_number=True, best_first=name in BEST_FIRST)
            for name in (LAST, HIGHEST, epochs, "training time", SPEED, "start-up")
        ),
        Column(STATE),
    )
    trials = record.trials.to_dict("records")
    paged = len(trials) > PAGED_ABOVE
    if paged:
        trials.sort(
            key=lambda trial: -math.inf if math.isnan(trial["last_top1"]) else trial["last_top1"],
            reverse=True,
        )
    rows = tuple(
        Row(
            _trial_cells(record, trial, columns, with_seeds),
            trial=trial["trial"],
            best=best is not None and all(trial[field] == best.best.point[field] for field in record.fields),
            hidden=number >= PAGED_ABOVE,
        )
        for number, trial in enumerate(trials)
    )
    notes = [*(["The best setting is in bold."] if best else []), *(["Best first."] if paged else [])]
    return Table(columns, rows, " ".join(notes))


def _trial_cells(
    record: StudyRecord, trial: Mapping[Hashable, Any], columns: Sequence[Column], with_seeds: bool
) -> tuple[Cell, ...]:
    shown_and_sorted_by = (
        *((value_label(trial[field]), trial[field]) for field in record.fields),
        *([] if record.fields else [(trial["trial"], trial["trial"])]),
        *([(str(int(trial["seed"])), int(trial["seed"]))] if with_seeds else []),
        (percent(trial["last_top1"]), trial["last_top1"]),
        (percent(trial["best_top1"]), trial["best_top1"]),
        (str(trial["epochs"]), trial["epochs"]),
        (duration(trial["train_seconds"]), trial["train_seconds"]),
        (speed(trial["images_per_second"]), trial["images_per_second"]),
        (duration(trial["startup_seconds"]), trial["startup_seconds"]),
        (state_words(record, trial["state"]), trial["state"]),
    )
    return tuple(
        Cell(text, column.is_number, _sort_key(value), trial["reason"] or "" if column.name == STATE else "")
        for column, (text, value) in zip(columns, shown_and_sorted_by, strict=True)
    )


def all_trials(record: StudyRecord) -> str:
    """Returns the heading of the table of trials, such as ``All 12 trials``."""
    number = len(record.trials)
    return f"All {count(number, 'trial')}" if number > 1 else "The trial"


def first_of(labels: Sequence[str], separator: str = "; ") -> str:
    """Joins the labels; if there are more than :data:`NAMED_AT_MOST`, the first ones and the number of the others."""
    if len(labels) <= NAMED_AT_MOST:
        return separator.join(labels)
    return f"{separator.join(labels[:NAMED_AT_MOST])} and {len(labels) - NAMED_AT_MOST} more"


def _sort_key(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value)
