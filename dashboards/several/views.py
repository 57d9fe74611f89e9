"""Adapts a record of several studies for the charts: a series for each network of a study, panels by condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from nfnet_ray.analysis import StudyRecord
from nfnet_ray.analysis.comparability import Comparability
from nfnet_ray.analysis.frontier import BUDGET, NETWORK, curve_label
from nfnet_ray.analysis.tables import STUDY

SERIES, AXES = "series", "axes"


def series_names(record: StudyRecord, guard: Comparability) -> dict[str, str]:
    """Returns {trial: name of its series}: network, study, and the marked conditions."""
    return {
        str(trial["trial"]): f"{_network_and_study(record, trial)}{_mark(guard, str(trial['trial']))}"
        for trial in record.trials.to_dict("records")
    }


def curves_view(record: StudyRecord, guard: Comparability, names: Mapping[str, str]) -> StudyRecord:
    """Returns the record with the series as its question, and the separating conditions as its condition."""
    titles = {trial: group.title for group in guard.axes for trial in group.trials}
    conditions = (AXES,) if len(guard.axes) > 1 else ()
    return _with_columns(record, {SERIES: names, **({AXES: titles} if conditions else {})}, conditions)


def budgets_view(record: StudyRecord, guard: Comparability, trials: frozenset[str]) -> StudyRecord | None:
    """Returns the trials with one series for each setting that has several budgets; None if there is none."""
    table = record.trials[record.trials["trial"].isin(trials)]
    labels: dict[str, str] = {}
    budgets: dict[str, set[Any]] = {}
    for trial in table.to_dict("records"):
        point = {field: trial[field] for field in record.fields if field != BUDGET}
        label = f"{curve_label(record, point)}{_mark(guard, str(trial['trial']))}"
        labels[str(trial["trial"])] = label
        budgets.setdefault(label, set()).add(trial["epochs"] if trial["state"] == "finished" else None)
    several = {label for label, epochs in budgets.items() if len(epochs - {None}) > 1}
    kept = {trial: label for trial, label in labels.items() if label in several}
    if not kept:
        return None
    only = replace(record, trials=table[table["trial"].isin(kept)])
    view = _with_columns(only, {SERIES: kept}, ())
    return replace(view, fields=(SERIES, BUDGET))


def _with_columns(
    record: StudyRecord, columns: Mapping[str, Mapping[str, str]], conditions: tuple[str, ...]
) -> StudyRecord:
    def extended(table: pd.DataFrame) -> pd.DataFrame:
        known = table[table["trial"].isin(next(iter(columns.values())))]
        return known.assign(**{name: known["trial"].map(dict(values)) for name, values in columns.items()})

    study: Any = {name: value for name, value in record.study.items() if name != "points"}
    trials = extended(record.trials)
    if AXES in columns:
        trials = trials[trials[AXES].notna()]
    return replace(
        record,
        study=study,
        fields=(SERIES, *record.fields),
        names={SERIES: "", AXES: "", **record.names},
        trials=trials,
        epochs=record.epochs,
        conditions=conditions,
        parts={},
    )


def _network_and_study(record: StudyRecord, trial: Mapping[Any, Any]) -> str:
    study = str(trial[STUDY])
    if NETWORK not in record.fields:
        return study
    return f"{trial[NETWORK]} ({study})"


def _mark(guard: Comparability, trial: str) -> str:
    return f" · {guard.marks[trial]}" if trial in guard.marks else ""
