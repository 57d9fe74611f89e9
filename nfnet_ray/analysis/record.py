"""Represents a study's journal as pandas tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfnet_ray.analysis.effects.best_so_far import best_so_far
from nfnet_ray.analysis.effects.importance import importance
from nfnet_ray.analysis.effects.isolation import isolation
from nfnet_ray.analysis.effects.marginal import marginal_effects, pairwise_effects
from nfnet_ray.analysis.effects.response import Response
from nfnet_ray.analysis.effects.response_fit import responses
from nfnet_ray.analysis.files.exported import is_exported, read_exported
from nfnet_ray.analysis.files.together import together
from nfnet_ray.analysis.replay import replay
from nfnet_ray.command_line.python_arguments import refusal
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.study.space.domains import with_tuples
from nfnet_ray.tracking.conditions.fields import Conditions
from nfnet_ray.tracking.conditions.of_trial import ConditionsOfTrials
from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.epoch_metrics import Metrics, columns_of
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.idle import IdleTime
from nfnet_ray.tracking.labels import ABSENT, short_names
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.study_directory import find_study
from nfnet_ray.tracking.swept import condition_fields, swept_fields
from nfnet_ray.tracking.trial_progress import TrialProgress

if TYPE_CHECKING:
    import pandas as pd

# The state in the table of trials if no event has recorded how a trial ended.
_STATES = {None: "not started", "running": "unfinished"}


@dataclass(frozen=True, repr=False, eq=False)  # tables have no equality that is True or False
class StudyRecord:
    """All information about a study.

    Attributes:
        study: the question, the data, the hardware and the command, as recorded in the journal.
        started: the start in Unix seconds.
        state: ``finished``, ``interrupted`` or, if the driver did not record an end, ``unfinished``.
        reason: the reason for the interruption if a cap was reached; else empty.
        accelerator_hours: hours for which trials held GPUs, or workers without GPUs, in all attempts.
        idle: how long accelerators were idle, and why; None if the journal does not contain it.
        price_per_hour: the price of one accelerator for an hour; None if it was not given.
        last_event: the time of the latest event in Unix seconds.
        is_silent: whether the last event of an unfinished study is so old that its driver may be dead; False if the
            clock was not read.
        wall_seconds: the time for which drivers were at work; None if the journal does not contain it.
        fields: dotted names of the swept Recipe fields; the first one is in question. Seeds are never among them,
            because trials that differ only in the seed are repetitions. A field that is not swept at a point has the
            value :data:`nfnet_ray.tracking.labels.ABSENT` in the tables, which is shown as a dash. The column of a
            field is numeric if all of its values are numbers.
        correct_images: {trial: {epoch: text}}, which :meth:`correct` reads.
        pauses: {trial: {rung: epoch at which the trial paused there}}; a rung is an epoch, or seconds of training.
        measured_under: {trial: its conditions}, which determine whether trials can be compared
            (:mod:`nfnet_ray.analysis.comparability`).
        own_values: {trial: {dotted name: value}} of the values in which the trial's Recipe differs from the study's.
        parts: {name: record} of the studies in a record of several; empty in the record of one study.
        clipping: {trial: {epoch: text}}, which :func:`nfnet_ray.analysis.clipping_of` reads.
        conditions: the fields whose values divide the trials into strata: all fields with a list of values except the
            first.
        names: {dotted name: short name to show}.
        epochs: a row per trial and epoch: ``trial``, the swept fields, ``seed``, ``epoch``, and each metric.
        trials: a row per planned or proposed trial: ``trial``, the swept fields, ``seed``, ``state`` (that of an event,
            or ``unfinished``, ``not started``), ``reason``, ``epochs``, ``last_top1`` and ``best_top1`` (fractions),
            ``train_seconds``, ``images_per_second`` (over all epochs), ``startup_seconds``. Values that were not
            measured are NaN.
        left_out: a table like ``trials`` of the trials that an extension has left out. They are kept as evidence and
            ignored in answers. Reruns of an earlier winner are among them. None if there are none.
        further: the names of the contenders' trials that started after all settings had been trained with their first
            seed.
        dropped: {trial: reason} for the first seed of each setting that is not a contender.
        reruns: a table like ``trials`` of the trials that confirm the winners; None until the winners are known.
        extensions: the commands that have extended the study.
        notes: the notes that people have added to the study.
        tags: the {key: value} tags that people have added.
        folder: the folder from which the record was read; None in a record of several studies.
    """

    study: StudyDescription
    started: float
    state: str
    reason: str
    accelerator_hours: float
    price_per_hour: float | None
    last_event: float
    wall_seconds: float | None
    fields: tuple[str, ...]
    names: dict[str, str]
    epochs: pd.DataFrame
    trials: pd.DataFrame
    notes: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    left_out: pd.DataFrame | None = None
    reruns: pd.DataFrame | None = None
    further: Set[str] = frozenset()
    dropped: Mapping[str, str] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()
    is_silent: bool = False
    correct_images: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    idle: IdleTime | None = None
    clipping: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    pauses: Mapping[str, Mapping[float, int]] = field(default_factory=dict)
    measured_under: Mapping[str, Conditions] = field(default_factory=dict)
    own_values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Mapping[str, StudyRecord] = field(default_factory=dict)
    folder: Path | None = None

    def __repr__(self) -> str:
        """Summarises the study on one line, because in a notebook the tables would fill pages."""
        states = Counter(str(state) for state in self.trials["state"])
        trials = ", ".join(f"{number} {state}" for state, number in states.items())
        swept = ", ".join(self.names[name] for name in self.fields) or "no field"
        return (
            f"<{type(self).__name__} {self.study['name']!r}: {self.state}; trials: {trials}; swept: {swept}>"
        )

    @property
    def is_stretched(self) -> bool:
        """Whether trials train complete schedules, one after the other."""
        halving = self.study["halving"]
        return halving is not None and halving.get("schedule") == "stretched"

    @property
    def rungs_in_seconds(self) -> bool:
        """Whether rungs are seconds of training."""
        halving = self.study["halving"]
        return halving is not None and halving.get("unit", "epochs") != "epochs"

    def correct(self, trial: str, epoch: int) -> CorrectImages | None:
        """Returns which validation images a trial classified correctly at the end of an epoch.

        None if the journal does not contain them: they are recorded when a trial finishes or pauses, and not in
        journals of earlier versions.
        """
        text = self.correct_images.get(trial, {}).get(epoch)
        return None if text is None else CorrectImages.from_text(text)

    def isolation(self, field: str | None = None) -> pd.DataFrame:
        """Returns the best setting for each value of a field, by default the one in question, whatever the others are.

        See :func:`nfnet_ray.analysis.effects.isolation.isolation`. Raises UserError for a field that is not swept.
        """
        return isolation(self, self._swept(field))

    def response(self, field: str | None = None) -> tuple[Response, ...]:
        """Fits a parabola of the accuracy in a field, by default the one in question, with its optimum, per condition.

        See :func:`nfnet_ray.analysis.effects.response_fit.responses`. Raises UserError for a field that is not swept.
        """
        return responses(self, self._swept(field))

    def effects(self) -> pd.DataFrame:
        """Returns how each value of each field changes the accuracy, at each stage and over all settings.

        See :func:`nfnet_ray.analysis.effects.marginal.marginal_effects`.
        """
        return marginal_effects(self)

    def pairwise_effects(self) -> pd.DataFrame:
        """Returns the effects of pairs of values beyond the sum of their single effects.

        See :func:`nfnet_ray.analysis.effects.marginal.pairwise_effects`.
        """
        return pairwise_effects(self)

    def importance(self) -> pd.DataFrame:
        """Returns the share of the differences in accuracy that each field explains, at the first rung and at the end.

        See :func:`nfnet_ray.analysis.effects.importance.importance`.
        """
        return importance(self)

    def best_so_far(self) -> pd.DataFrame:
        """Returns the best accuracy so far against epochs, accelerator-hours and money, with an uncertainty band.

        See :func:`nfnet_ray.analysis.effects.best_so_far.best_so_far`.
        """
        return best_so_far(self)

    def replay(self) -> pd.DataFrame:
        """Returns a row for each rule of early stopping, and for random search, with the cost and the accuracy lost.

        See :func:`nfnet_ray.analysis.replay.replay`. Raises UserError if the curves are not sufficient.
        """
        return replay(self)

    def _swept(self, field: str | None) -> str:
        """Returns the dotted name of a swept field, given by any of its names; by default the first field."""
        by_name = {
            **{short: name for name, short in self.names.items()},
            **{name: name for name in self.fields},
        }
        if field is None and self.fields:
            return self.fields[0]
        if field not in by_name:
            swept = f"swept are {', '.join(self.names.values())}" if self.fields else "it sweeps none"
            raise UserError(f"study {self.study['name']} sweeps no field {field!r}; {swept}")
        return by_name[field]


def load_study(study: str | Path | Sequence[str | Path], *more: str | Path) -> StudyRecord:
    """Reads the journal of a study, which may still be running, or those of several studies as one record.

    >>> load_study("agc_sweep")                                                    # doctest: +SKIP
    >>> load_study("agc_sweep", "efficientnet_baselines")                          # doctest: +SKIP

    Args:
        study: a study's folder, its name under ``./runs``, or a folder that ``python -m studies export`` wrote; or a
            list of these.
        more: further studies. The tables of several studies have a column ``study``, by which the same point of two
            studies counts as two settings (:func:`nfnet_ray.analysis.files.together.together`). See
            :func:`nfnet_ray.analysis.comparability.comparability` for differences that prevent comparisons.

    Raises:
        UserError: a study does not exist, a study is given twice, or a journal is damaged or does not begin with
            ``study_started``.
    """
    places = [*(study if isinstance(study, list | tuple) else [study]), *more]
    for place in places:
        if not isinstance(place, str | Path):
            raise refusal("study", place, "the name or the folder of a study")
    if not places:
        raise UserError("no study is named: give the name or the folder of at least one")
    if len({study_folder(place).resolve() for place in places}) < len(places):
        raise UserError(f"a study is named twice in {', '.join(map(str, places))}: name different ones")
    records = [_load(place) for place in places]
    return together(records) if len(records) > 1 else records[0]


def study_folder(study: str | Path) -> Path:
    """Returns the folder of a study or of an exported study, given by path or name.

    Raises:
        UserError: the study does not exist.
    """
    return Path(study) if is_exported(Path(study)) else find_study(study)


def _load(study: str | Path) -> StudyRecord:
    folder = study_folder(study)
    if not is_exported(folder):
        return replace(study_record(*StudyState.read(folder)), folder=folder)
    # An export does not contain when its trials began and ended.
    return replace(study_record(*read_exported(folder)), idle=None, folder=folder)


def study_record(state: StudyState, started: StudyStarted, *, with_epochs: bool = True) -> StudyRecord:
    """Returns the record of a study from the state that its journal adds up to.

    Without epochs, the table of epochs is empty, which takes a fraction of the time. The table of trials is the same.
    """
    import pandas as pd

    description = started["study"]
    fields = tuple(name for name in swept_fields(description) if name.rsplit(".", 1)[-1] != "seed")
    plans = (*state.plans.values(), *state.further.values(), *state.reruns.values())
    own_values = {plan["name"]: {**plan["recipe"], **plan["point"]} for plan in plans}
    identity = {
        plan["name"]: {
            "trial": plan["name"],
            **{field: with_tuples(plan["point"].get(field, ABSENT)) for field in fields},
            "seed": {**description["recipe"], **own_values[plan["name"]]}.get("seed"),
        }
        for plan in plans
    }
    rows = {trial: {**columns, **_outcome(state.trials[trial])} for trial, columns in identity.items()}
    outside, confirming = state.outside, state.confirming
    trials = pd.DataFrame([rows[name] for name in rows if name not in outside and name not in confirming])
    left_out, reruns = (
        pd.DataFrame([rows[name] for name in names], columns=trials.columns)
        for names in (
            [name for name in rows if name in outside],
            [name for name in rows if name in confirming and name not in outside],
        )
    )
    # Columns with a value that is not a number hold objects, because None and NaN are different values of a swept
    # field.
    as_objects = {
        name
        for name in fields
        if not all(type(columns[name]) in (int, float) for columns in identity.values())
    }
    for name in fields:
        for table in (trials, left_out, reruns):
            cells = [identity[trial][name] for trial in table["trial"]]
            table[name] = pd.Series(cells, dtype=object if name in as_objects or not cells else None)
    epochs_of = {
        trial: sorted(state.trials[trial].epochs.items()) for trial in trials["trial"] if with_epochs
    }
    epochs = _table_of_epochs(identity, epochs_of, [*fields, "seed"], as_objects)
    return StudyRecord(
        study=description,
        started=started["time"],
        state=state.ended["state"] if state.ended else "unfinished",
        reason=state.ended.get("reason", "") if state.ended else "",
        accelerator_hours=state.accelerator_seconds / 3600,
        price_per_hour=state.caps.get("price_per_hour"),
        last_event=state.last_event_time,
        wall_seconds=state.ended["wall_seconds"] if state.ended else None,
        fields=fields,
        names=short_names(fields),
        epochs=epochs,
        trials=trials,
        notes=tuple(state.notes),
        tags=state.tags,
        conditions=tuple(name for name in condition_fields(description) if name in fields),
        left_out=left_out if len(left_out) else None,
        reruns=reruns if len(reruns) else None,
        further=frozenset(state.repeating),
        dropped=dict(state.dropped),
        extensions=tuple(state.extensions),
        idle=state.idle_time(),
        correct_images={name: dict(trial.correct_images) for name, trial in state.trials.items()},
        pauses={name: dict(trial.paused) for name, trial in state.trials.items()},
        clipping={name: dict(trial.clipping) for name, trial in state.trials.items()},
        measured_under=ConditionsOfTrials(state, identity),
        own_values=own_values,
    )


def _table_of_epochs(
    identity: Mapping[str, Mapping[str, Any]],
    epochs: Mapping[str, Sequence[tuple[int, Metrics]]],
    columns: Sequence[str],
    as_objects: Collection[str],
) -> pd.DataFrame:
    """Builds :attr:`StudyRecord.epochs` column by column; building it row by row would take three times as long."""
    import numpy as np
    import pandas as pd

    rows = [row for own in epochs.values() for row in own]
    counts = [len(own) for own in epochs.values()]

    def repeated(values: Sequence[Any], kind: Any = None) -> pd.Series[Any]:
        """Repeats the value of each trial for all of its rows."""
        places = np.repeat(np.arange(len(values)), counts).tolist()
        return pd.Series([values[place] for place in places], dtype=kind)

    table = {
        "trial": repeated([*epochs]),
        **{
            name: repeated(
                [identity[trial][name] for trial in epochs],
                object if name in as_objects or not rows else None,
            )
            for name in columns
        },
        "epoch": [epoch for epoch, _ in rows],
    }
    metrics = columns_of([metrics for _, metrics in rows]) or {METRIC: []}
    return pd.DataFrame({**metrics, **table})[[*table, *(name for name in metrics if name not in table)]]


def _outcome(progress: TrialProgress) -> dict[str, Any]:
    """Returns the columns of ``StudyRecord.trials`` with the outcome of one trial."""
    names = (METRIC, "train_seconds", "startup_seconds")
    columns = columns_of([metrics for _, metrics in sorted(progress.epochs.items())], names)

    def values(name: str) -> list[float]:
        return [
            float(value) for value in columns.get(name, ()) if value is not None and not math.isnan(value)
        ]

    top1, train_seconds, startup = map(values, names)
    speed = progress.images_per_second
    return {
        "state": _STATES.get(progress.state, progress.state),
        "reason": progress.reason or "",
        "epochs": progress.epoch,
        "last_top1": top1[-1] if top1 else math.nan,
        "best_top1": max(top1, default=math.nan),
        "train_seconds": train_seconds[-1] if train_seconds else math.nan,
        "images_per_second": math.nan if speed is None else speed,
        "startup_seconds": startup[-1] if startup else math.nan,
    }
