"""A study's journal as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfnet_ray.analysis.study_directory import find_study
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import (
    JOURNAL_FILE,
    EpochEnded,
    StudyDescription,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    read_events,
)
from nfnet_ray.tracking.labels import short_names

if TYPE_CHECKING:
    import pandas as pd

METRIC = "validation_top1"


@dataclass(frozen=True)
class StudyRecord:
    """Everything that is known of a study.

    Attributes:
        study: the question, the data, the hardware and the command, as the journal has them.
        started: Unix seconds of the start.
        state: ``finished``, ``interrupted`` or, where the driver has not said how it ended, ``unfinished``.
        last_event: Unix seconds of the latest event.
        wall_seconds: time that the driver was there; None where it has not said so.
        fields: dotted names of the swept Recipe fields. The first is the question, the others are strata.
            Seeds are never among them: trials that differ in the seed only are repetitions.
        names: {dotted name: short name to show}.
        epochs: a row per trial and epoch: ``trial``, the swept fields, ``seed``, ``epoch``, and each metric.
        trials: a row per planned trial: ``trial``, the swept fields, ``seed``, ``state`` (an event's, or
            ``unfinished``, ``not started``), ``reason``, ``epochs``, ``last_top1`` and ``best_top1``
            (fractions), ``train_seconds``, ``images_per_second`` (median over epochs), ``startup_seconds``.
            What was not measured is NaN.
    """

    study: StudyDescription
    started: float
    state: str
    last_event: float
    wall_seconds: float | None
    fields: tuple[str, ...]
    names: dict[str, str]
    epochs: pd.DataFrame
    trials: pd.DataFrame


def load_study(study: str | Path) -> StudyRecord:
    """Read the journal of a study, which may still be running.

    Args:
        study: a study's directory, or its name under ``./runs``.

    Raises:
        UserError: there is no such study, or its journal is damaged or does not begin with ``study_started``.
    """
    import pandas as pd

    path = find_study(study) / JOURNAL_FILE
    started: StudyStarted | None = None
    study_ended: StudyEnded | None = None
    running: set[str] = set()
    trial_ended: dict[str, TrialEnded] = {}
    measured: dict[tuple[str, int], EpochEnded] = {}
    last_event = 0.0
    for event, _ in read_events(path):
        last_event = event["time"]
        if event["event"] == "study_started":
            started = event
        elif event["event"] == "study_resumed":
            study_ended = None
        elif event["event"] == "trial_started":
            running.add(event["trial"])
            trial_ended.pop(event["trial"], None)
        elif event["event"] == "epoch":
            measured[event["trial"], event["epoch"]] = event
        elif event["event"] == "trial_ended":
            trial_ended[event["trial"]] = event
            running.discard(event["trial"])
        elif event["event"] == "study_ended":
            study_ended = event
    if started is None:
        raise UserError(f"{path} does not say what the study is: its first line, study_started, is missing")

    description = started["study"]
    fields = tuple(name for name in description["space"] if name.rsplit(".", 1)[-1] != "seed")
    identity: dict[str, dict[str, Any]] = {}
    for plan in started["trials"]:
        values = {**description["recipe"], **plan["recipe"], **plan["point"]}
        identity[plan["name"]] = {
            "trial": plan["name"],
            **{field: _hashable(values.get(field)) for field in fields},
            "seed": values.get("seed"),
        }

    rows_of: dict[str, list[dict[str, Any]]] = {trial: [] for trial in identity}
    for trial, epoch in sorted(measured, key=lambda key: key[1]):
        metrics = measured[trial, epoch]["metrics"]
        rows_of[trial].append({**identity[trial], "epoch": epoch, **metrics} | {"epoch": epoch})
    epoch_rows = [row for rows in rows_of.values() for row in rows]
    trial_rows = []
    for trial, columns in identity.items():
        ended = trial_ended.get(trial)
        trial_rows.append(
            {
                **columns,
                "state": ended["state"] if ended else "unfinished" if trial in running else "not started",
                "reason": (ended["reason"] if ended else None) or "",
                "epochs": max((row["epoch"] for row in rows_of[trial]), default=0),
                **_summary(rows_of[trial]),
            }
        )
    epochs = pd.DataFrame(
        epoch_rows, columns=None if epoch_rows else ["trial", *fields, "seed", "epoch", METRIC]
    )
    trials = pd.DataFrame(trial_rows)
    for table in (epochs, trials):  # as objects: None and NaN are not the same value of a swept field
        for field in fields:
            table[field] = pd.Series([identity[trial][field] for trial in table["trial"]], dtype=object)
    return StudyRecord(
        study=description,
        started=started["time"],
        state=study_ended["state"] if study_ended else "unfinished",
        last_event=last_event,
        wall_seconds=study_ended["wall_seconds"] if study_ended else None,
        fields=fields,
        names=short_names(fields),
        epochs=epochs,
        trials=trials,
    )


def _summary(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """One trial's columns of ``StudyRecord.trials`` from its epochs, in order."""
    import statistics

    def values(name: str) -> list[float]:
        found = (row.get(name) for row in metrics)
        return [value for value in found if value is not None and not math.isnan(value)]

    top1, train_seconds, speed, startup = map(
        values, (METRIC, "train_seconds", "images_per_second", "startup_seconds")
    )
    return {
        "last_top1": top1[-1] if top1 else math.nan,
        "best_top1": max(top1, default=math.nan),
        "train_seconds": train_seconds[-1] if train_seconds else math.nan,
        "images_per_second": statistics.median(speed) if speed else math.nan,
        "startup_seconds": startup[-1] if startup else math.nan,
    }


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value
