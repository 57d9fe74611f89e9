"""Combines several studies in one record, whose tables have a column ``study``; no two studies share a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nfnet_ray.analysis.comparability.guard import comparability
from nfnet_ray.analysis.tables import STUDY, StudyTables
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.labels import ABSENT, short_names

if TYPE_CHECKING:
    import pandas as pd

Record = TypeVar("Record", bound="StudyTables")
"""A :class:`nfnet_ray.analysis.StudyRecord`. It cannot be imported here, because loading a record needs this module."""

# Fields by which studies are compared if they differ between studies, even if no study sweeps them.
_COMPARED_BY = ("model.name", "schedule.epochs")


def together(records: Sequence[Record]) -> Record:
    """Combines several studies in one record.

    The fields of the record are those that at least one study sweeps, network and epochs if they differ between
    studies, and ``study``. A field that a study does not sweep has the value of its Recipe. Trials are named
    ``STUDY/TRIAL``. ``parts`` contains the studies, under distinct names. The record has no early stopping. Its only
    condition is ``study``, if the studies may not share axes (:func:`nfnet_ray.analysis.comparability.comparability`).
    """
    parts: Mapping[str, Any] = _named(records)
    fields = _fields(list(parts.values()))
    every: Sequence[Any] = records
    merged: Any = replace(
        every[0],
        study=_description(parts, fields),
        started=min(part.started for part in every),
        state=_state(every),
        reason="; ".join(part.reason for part in every if part.reason),
        accelerator_hours=sum(part.accelerator_hours for part in every),
        price_per_hour=_same([part.price_per_hour for part in every]),
        last_event=max(part.last_event for part in every),
        wall_seconds=None,
        fields=fields,
        names=short_names(fields),
        epochs=_tables(parts, fields, "epochs"),
        trials=_tables(parts, fields, "trials"),
        left_out=_tables(parts, fields, "left_out"),
        reruns=_tables(parts, fields, "reruns"),
        notes=tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes),
        tags={},
        conditions=(),
        further=frozenset(_trial(name, trial) for name, part in parts.items() for trial in part.further),
        dropped=_by_trial(parts, "dropped"),
        extensions=tuple(command for part in every for command in part.extensions),
        correct_images=_by_trial(parts, "correct_images"),
        idle=None,
        clipping=_by_trial(parts, "clipping"),
        pauses=_by_trial(parts, "pauses"),
        measured_under=_by_trial(parts, "measured_under"),
        own_values=_by_trial(parts, "own_values"),
        parts=parts,
        folder=None,
    )
    conditions = (STUDY,) if len(comparability(merged).axes) > 1 else ()
    return replace(merged, conditions=conditions)


def _named(records: Sequence[Record]) -> dict[str, Record]:
    """Returns the records by name. If names are equal, all but the first get a number."""
    parts: dict[str, Record] = {}
    for record in records:
        name, number = record.study["name"], 2
        while name in parts:
            name, number = f"{record.study['name']} ({number})", number + 1
        parts[name] = record
    return parts


def _fields(records: Sequence[Any]) -> tuple[str, ...]:
    swept = dict.fromkeys(field for record in records for field in record.fields)
    more = [
        field
        for field in _COMPARED_BY
        if field not in swept and len({str(record.study["recipe"].get(field)) for record in records}) > 1
    ]
    return (*more, *swept, STUDY)


def _description(parts: Mapping[str, Any], fields: Sequence[str]) -> StudyDescription:
    """Returns the description that the studies share, with a list of points, which are those of the trials."""
    studies = [cast(dict[str, Any], part.study) for part in parts.values()]
    shared = {
        key: _same([study.get(key) for study in studies])
        for key in ("metric", "mode", "worker", "equal_within", "seed_spread", "versions", "hardware", "data")
    }
    names = " and ".join(parts)
    described = {
        **studies[0],
        **{key: value for key, value in shared.items() if value is not None},
        "name": names,
        "question": " ".join(dict.fromkeys(study["question"] for study in studies)),
        "command": "\n".join(study["command"] for study in studies),
        "space": {},
        "points": [],
        "asked": list(fields),
        "seeds": sorted({seed for study in studies for seed in study["seeds"]}),
        "epochs": max(study["epochs"] for study in studies),
        "halving": None,
        "recipe": _same_values([study["recipe"] for study in studies]),
        "notes": [],
        "tags": {},
    }
    for key in ("search", "holdout", "more_seeds", "confirm", "outside", "checkpoints", "caps"):
        described.pop(key, None)
    return cast(StudyDescription, described)


def _tables(parts: Mapping[str, Any], fields: Sequence[str], name: str) -> Any:
    """Concatenates the tables of that name; None if no study has one."""
    import pandas as pd

    tables = []
    for study, part in parts.items():
        table: pd.DataFrame | None = getattr(part, name)
        if table is None or (name == "epochs" and table.empty):
            continue
        own = table.copy()
        for field in fields:
            own[field] = pd.Series(_values(part, own, field, study), index=own.index, dtype=object)
        own["trial"] = [_trial(study, trial) for trial in own["trial"]]
        order = ["trial", STUDY, *(field for field in fields if field != STUDY)]
        tables.append(own[[*order, *(column for column in own.columns if column not in order)]])
    if not tables:
        columns = ["trial", STUDY, *fields[:-1], "seed", "epoch", METRIC]
        return pd.DataFrame(columns=columns) if name == "epochs" else None
    joined = pd.concat(tables, ignore_index=True)
    for field in fields:  # so that numbers are stored as numbers, and None is not NaN
        if len(joined) and all(type(value) in (int, float) for value in joined[field]):
            joined[field] = pd.to_numeric(joined[field])
    return joined


def _values(part: Any, table: pd.DataFrame, field: str, study: str) -> list[Any]:
    """Returns a column with the values of the trials' Recipes."""
    if field == STUDY:
        return [study] * len(table)
    shared = part.study["recipe"].get(field, ABSENT)
    values = [part.own_values.get(trial, {}).get(field, shared) for trial in table["trial"]]
    return [tuple(value) if isinstance(value, list) else value for value in values]


def _by_trial(parts: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        _trial(study, trial): value
        for study, part in parts.items()
        for trial, value in getattr(part, name).items()
    }


def _trial(study: str, trial: str) -> str:
    return f"{study}/{trial}"


def _state(records: Sequence[Any]) -> str:
    states = {record.state for record in records}
    return next(state for state in ("unfinished", "interrupted", "finished") if state in states)


def _same(values: Sequence[Any]) -> Any:
    """Returns the value if it is the same everywhere, else None."""
    return values[0] if all(value == values[0] for value in values) else None


def _same_values(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = recipes[0]
    return {
        name: value
        for name, value in first.items()
        if all(name in recipe and recipe[name] == value for recipe in recipes)
    }
