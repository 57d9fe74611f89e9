"""Events of a journal as experiments, runs, params, metrics and tags of MLflow.

Each study file has an experiment (:mod:`nfnet_ray.tracking.destination.experiment`). A study is one run (tag
``kind=study``), each of its trials another one (``kind=trial``), and so is each rerun of a winner (``kind=rerun``).
Trials are flat, not nested: the UI's charts leave nested runs out until each parent is opened by hand. All runs of a
study carry its ``study_id``, so they are found again whatever happened between creating a run and noting its id.

Every write may be made twice without harm. A run is looked for before it is created; params and tags are
set to the same values; a metric has its event's time, and MLflow keeps one of two points that are equal
in run, name, step, time and value.

A run that somebody has deleted in MLflow stays the study's: no other one takes its place until it is gone for good
(``mlflow gc``), for it can be restored.

Step is the epoch, and ``train_seconds`` is logged in the same batch as the accuracy: only then can the UI
draw one against the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nfnet_ray.clipping import Clipping
from nfnet_ray.tracking.conditions.fields import Conditions
from nfnet_ray.tracking.conditions.of_trial import condition_text, conditions_of, unlike_the_first
from nfnet_ray.tracking.delivery.spool import STUDY_RUN, JournalLine, TrackedStudy
from nfnet_ray.tracking.descriptions import TrialPlan, Values
from nfnet_ray.tracking.destination.database import artifact_folder
from nfnet_ray.tracking.destination.experiment import DEFAULT_EXPERIMENT, experiment_of, own_experiment
from nfnet_ray.tracking.destination.uri import sqlite_path
from nfnet_ray.tracking.events import (
    EpochEnded,
    StudyEnded,
    StudyExtended,
    StudyStarted,
    TrialEnded,
    TrialStarted,
    plans_of,
    promotion_in_words,
    study_id,
    with_extension,
)
from nfnet_ray.tracking.journal import read_events
from nfnet_ray.tracking.labels import point_label, short_names, value_label
from nfnet_ray.tracking.runs.charts import condition_metric, condition_metrics
from nfnet_ray.tracking.runs.files import RECIPE_FILE
from nfnet_ray.tracking.runs.inputs import dataset_inputs
from nfnet_ray.tracking.runs.setting_runs import SettingResult, ended_setting, has_several_seeds, study_seeds
from nfnet_ray.tracking.runs.system_metrics import node_tags, system_metrics
from nfnet_ray.tracking.runs.texts import (
    DESCRIPTION_TAG,
    DIFFERS_TAG,
    experiment_description,
    run_name,
    setting_description,
    source_tags,
    study_description,
    trial_description,
    unlike_name,
)
from nfnet_ray.tracking.runs.view import (
    EXPERIMENT_KIND,
    EXPERIMENT_KIND_TAG,
    TAG_PREFIX,
    RunKind,
    comparison_view,
    view_key,
)
from nfnet_ray.tracking.state import JournalReader, StudyState, TrialProgress
from nfnet_ray.tracking.swept import condition_fields, swept_fields

if TYPE_CHECKING:
    from mlflow import MlflowClient

# The most that one log_batch takes (mlflow/utils/validation.py, MAX_PARAMS_TAGS_PER_BATCH and
# MAX_METRICS_PER_BATCH).
_PARAMS_AND_TAGS_PER_CALL = 100
_METRICS_PER_CALL = 1000
_SEEDS_TAG = "seeds"
_CLOCK = "train_seconds"  # it grows with each epoch
_ROUNDED = 1 - 1e-6  # a database may keep fewer digits of a number than a journal

_RUN_STATUS = {
    "finished": "FINISHED",
    "stopped": "FINISHED",  # as planned; the tag ``state`` says that it was early
    "interrupted": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


RunState = Literal["open", "deleted", "in a deleted experiment", "gone"]
"""``gone`` is also what was never there."""


class StudyWriter:
    """Writes one study's events. Not thread-safe; any call may raise what mlflow raises."""

    def __init__(
        self,
        client: MlflowClient,
        tracking_uri: str,
        journal_path: Path,
        experiment: str | None = None,
        known_experiment_id: str = "",
    ) -> None:
        """Find the study's experiment (creating it if need be) and the runs that it has already.

        The journal must begin with ``study_started``. ``experiment`` is a name, by default that of the study's file.
        A study that has runs in ``known_experiment_id``, or where earlier versions put all studies, stays there.
        """
        self._client = client
        self._journal = JournalReader(journal_path)
        started = next(read_events(journal_path))[0]
        if started["event"] != "study_started":
            raise ValueError(f"{journal_path} begins with {started['event']}, not with study_started")
        self._started: StudyStarted = started
        self._study_id = study_id(started)
        # By the first event, so that all trials have it, or none.
        self._names_conditions = bool(condition_metrics(started["study"]))
        self._journal_path, self._plans_read_to = journal_path, 0
        self._plans: dict[str, TrialPlan] = {}
        self._reruns: set[str] = set()
        # Ids of the trials' runs whose params, and whose recipe.json, this writer has written.
        self._with_params: set[str] = set()
        self._with_recipe: set[str] = set()
        self._recipes: dict[str, Values] = {}
        self._first: tuple[str, Conditions] | None = None
        self._started_at_plans = started
        # {trial, or STUDY_RUN: (status of its run, training seconds of its latest epoch)}, as found in MLflow.
        self._found_as: dict[str, tuple[str, float]] = {}
        # {SettingResult.key: (id of its run, its trials)}.
        self._setting_runs: dict[str, tuple[str, tuple[str, ...]]] = {}

        self.experiment = experiment or experiment_of(started)
        experiment_id, study_run_id, trial_run_ids = self._found(known_experiment_id)
        if not experiment_id:
            experiment_id = self._created_experiment(tracking_uri, self.experiment)
        self.tracked = TrackedStudy(
            tracking_uri=tracking_uri,
            experiment_id=experiment_id,
            view_key=view_key(self._study_id),
            study_run_id=study_run_id,
            trial_run_ids=trial_run_ids,
        )

    def write(self, line: JournalLine, run: str) -> None:
        """Write what an event says of one of its runs (:func:`nfnet_ray.tracking.delivery.spool.runs_of`).

        Kinds of events that this version does not know are left out.
        """
        event = line.event
        match event["event"]:
            case "study_started":
                self._start_study(event)
            case "study_resumed":
                self._client.update_run(self.tracked.study_run_id, status="RUNNING")
                self._log(self.tracked.study_run_id, {"state": "running", "reason": ""})
            case "study_extended":
                if run == STUDY_RUN:
                    self._extend_study(line)
                elif run_id := self.run_id(run):  # a trial that has never begun has none
                    self._log(run_id, _place_in_study(event, run))
            case "contenders_chosen" | "confirmation_planned":
                if run_id := self.run_id(run):
                    tags = {"left_out": str(run in event["left_out"]).lower()}
                    if event["event"] == "contenders_chosen" and run in event["dropped"]:
                        tags = {"reason": event["dropped"][run]}
                    self._log(run_id, tags)
            case "study_annotated":
                self._annotate(line)
            case "trial_started":
                self._start_trial(line, event)
            case "trial_paused":
                self._log(self._trial_run(event["trial"], event["time"]), {"state": "paused"})
            case "trial_promoted":
                why = promotion_in_words(event)
                self._log(self._trial_run(event["trial"], event["time"]), {"reason": why})
            case "epoch":
                self.write_epochs(run, [event])
            case "trial_ended" if run == STUDY_RUN:
                self._summarise(line)
                self._write_setting(line, event["trial"])
            case "trial_ended":
                self._end_trial(line, event)
            case "study_ended":
                self._end_study(line, event)

    def write_epochs(self, trial: str, events: Sequence[EpochEnded]) -> None:
        """Write the metrics of several epochs of one trial, 1,000 metrics a call."""
        from mlflow.entities import Metric, RunTag

        run_id = self._trial_run(trial, events[0]["time"])
        accuracy, own_chart = self._started["study"]["metric"], self._condition_metric(trial)
        metrics = [
            # MLflow stores an infinity as 1.8e308, which would be the only thing that a chart shows.
            Metric(
                name,
                value if math.isfinite(value) else math.nan,
                _milliseconds(event["time"]),
                event["epoch"],
            )
            for event in events
            for name, value in {
                **event["metrics"],
                **_clipping_metrics(event),
                **system_metrics(event),
                **({own_chart: event["metrics"].get(accuracy)} if own_chart else {}),
            }.items()
            if value is not None
        ]
        tags = [RunTag(name, value) for name, value in node_tags(events).items()]
        for first in range(0, len(metrics), _METRICS_PER_CALL):
            self._client.log_batch(
                run_id,
                metrics=metrics[first : first + _METRICS_PER_CALL],
                tags=() if first else tags,
            )

    def run_id(self, run: str) -> str:
        """The id of a trial's run, or of the study's; empty if there is none."""
        return self.tracked.study_run_id if run == STUDY_RUN else self.tracked.trial_run_ids.get(run, "")

    def state_of(self, run: str) -> RunState:
        """Whether a run can be written to. One that is gone for good is forgotten, so that another takes its place."""
        from mlflow.exceptions import MlflowException

        if self._client.get_experiment(self.tracked.experiment_id).lifecycle_stage != "active":
            return "in a deleted experiment"
        if not self.run_id(run):
            return "gone"
        try:
            stage = self._client.get_run(self.run_id(run)).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            if run == STUDY_RUN:
                self.tracked = replace(self.tracked, study_run_id="")
            else:
                ids = {name: run_id for name, run_id in self.tracked.trial_run_ids.items() if name != run}
                self.tracked = replace(self.tracked, trial_run_ids=ids)
            return "gone"
        return "open" if stage == "active" else "deleted"

    def has_lost(self, end: int, held: Container[str]) -> bool:
        """Whether MLflow, when this writer was made, lacked what it had confirmed of the journal before byte ``end``.

        It does after its database was replaced by an older backup. Runs that it does not have at all are not looked at,
        nor are those that are ``held``.
        """
        state = self._journal.state_at(end)
        confirmed = {STUDY_RUN: (state.ended is not None, 0.0)} | {
            trial.name: (trial.state in _RUN_STATUS, trial.last(_CLOCK) or 0.0)
            for trial in state.trials.values()
        }
        for run, (status, seconds) in self._found_as.items():
            has_ended, confirmed_seconds = confirmed.get(run, (False, 0.0))
            if run not in held and (
                seconds < confirmed_seconds * _ROUNDED or (has_ended and status == "RUNNING")
            ):
                return True
        return False

    def store_recipe(self, trial: str) -> None:
        """Store a trial's Recipe with its run, once in a writer's life."""
        run_id = self.run_id(trial)
        if run_id and run_id not in self._with_recipe:
            self._client.log_dict(run_id, self._recipe(trial), RECIPE_FILE)
            self._with_recipe.add(run_id)

    def attach(self, path: Path) -> None:
        """Store a file with the study's run."""
        self._client.log_artifact(self.tracked.study_run_id, str(path))

    def _found(self, known_experiment_id: str) -> tuple[str, str, dict[str, str]]:
        """(id of the study's experiment, its run, {trial: its run}); empty for what is not there yet."""
        ids = [known_experiment_id] if known_experiment_id else []
        by_name = [self._client.get_experiment_by_name(self.experiment)]
        if self.experiment != DEFAULT_EXPERIMENT:
            by_name.append(self._client.get_experiment_by_name(DEFAULT_EXPERIMENT))
        ids += [found.experiment_id for found in by_name if found is not None]
        for experiment_id in dict.fromkeys(ids):
            study_run_id, trial_run_ids = self._existing_runs(experiment_id)
            if study_run_id or trial_run_ids:
                return experiment_id, study_run_id, trial_run_ids
        return by_name[0].experiment_id if by_name[0] else "", "", {}

    def _created_experiment(self, tracking_uri: str, name: str) -> str:
        location = None
        # Without a server, MLflow would put artifacts into ./mlruns of whoever creates the experiment.
        if database := sqlite_path(tracking_uri):
            folder = artifact_folder(database, name)
            folder.mkdir(parents=True, exist_ok=True)  # so that a copy of the database is known by its own
            location = folder.as_uri()
        return self._client.create_experiment(
            name,
            artifact_location=location,
            tags=self._experiment_tags(),
        )

    def _experiment_tags(self) -> dict[str, str]:
        # Else the UI opens it among traces and prompts of language models.
        tags = {EXPERIMENT_KIND_TAG: EXPERIMENT_KIND}
        study = self._started["study"]
        if self.experiment == own_experiment(study.get("source", {}).get("file")):
            tags[DESCRIPTION_TAG] = experiment_description(study)
        return tags

    def _existing_runs(self, experiment_id: str) -> tuple[str, dict[str, str]]:
        from mlflow.entities import ViewType

        study_run_id, trial_run_ids, page = "", {}, None
        while True:
            runs = self._client.search_runs(
                [experiment_id],
                f"tags.study_id = '{self._study_id}'",
                run_view_type=ViewType.ALL,
                order_by=["attributes.start_time DESC"],  # of two, the older one overwrites, and is kept
                page_token=page,
            )
            for run in runs:
                # One whose tags somebody has deleted in MLflow is nobody's, and another takes its place.
                tags = run.data.tags
                found_as = run.info.status, run.data.metrics.get(_CLOCK, 0.0)
                if tags.get("kind") == "study":
                    study_run_id = run.info.run_id
                    self._found_as[STUDY_RUN] = found_as
                elif "setting" in tags and "trials" in tags:
                    self._setting_runs[tags["setting"]] = run.info.run_id, tuple(tags["trials"].split(", "))
                elif "trial" in tags:
                    trial_run_ids[tags["trial"]] = run.info.run_id
                    self._found_as[tags["trial"]] = found_as
            page = runs.token
            if not page:
                return study_run_id, trial_run_ids

    def _start_study(self, event: StudyStarted) -> None:
        study = event["study"]
        run_id = self.tracked.study_run_id or self._create_run(
            f"study: {study['name']}", event["time"], {"kind": "study"}
        )
        self.tracked = replace(self.tracked, study_run_id=run_id)
        space = {f"space.{name}": values for name, values in study["space"].items()}
        self._log(
            run_id,
            {
                "state": "running",
                _SEEDS_TAG: ", ".join(map(str, study["seeds"])),
                "question": study["question"],
                "command": study["command"],
                DESCRIPTION_TAG: study_description(study, study.get("notes", ())),
                **study.get("tags", {}),
            },
            {**_data_params(event), **study["recipe"], **space, "seeds": study["seeds"]},
        )
        self._client.log_inputs(run_id, dataset_inputs(study["data"]))
        self._save_view(event)
        self._label_experiment()

    def _label_experiment(self) -> None:
        """Adds what an experiment that was made by somebody else, or by an earlier version, does not have."""
        experiment_id = self.tracked.experiment_id
        tags = self._client.get_experiment(experiment_id).tags
        for name, value in self._experiment_tags().items():
            if name not in tags:
                self._client.set_experiment_tag(experiment_id, name, value)

    def _extend_study(self, line: JournalLine) -> None:
        """Params cannot change, so the space is in the description, and the seeds are in a tag."""
        self._annotate(line)
        state = self._journal.state_at(line.end)
        self._log(self.tracked.study_run_id, {"state": "running", _SEEDS_TAG: study_seeds(state)})
        if state.started is not None:
            self._save_view(state.started)
        outside = state.outside
        for run_id, trials in self._setting_runs.values():
            self._log_unless_deleted(run_id, {"left_out": str(not outside.isdisjoint(trials)).lower()})

    def _end_study(self, line: JournalLine, event: StudyEnded) -> None:
        self._summarise(line)
        self._log(
            self.tracked.study_run_id,
            {
                "state": event["state"],
                "reason": event.get("reason", ""),
                "wall_seconds": f"{event['wall_seconds']:.0f}",
            },
        )
        self._end_run(self.tracked.study_run_id, event["state"], event["time"])

    def _condition_metric(self, trial: str) -> str | None:
        """The second name of the accuracy of a trial, by which there is a chart for each condition."""
        if not self._names_conditions:
            return None
        study, recipe = self._started["study"], self._recipe(trial)
        return condition_metric(study, {name: recipe.get(name) for name in condition_fields(study)})

    def _save_view(self, event: StudyStarted) -> None:
        study = event["study"]
        kinds: tuple[RunKind, ...] = ("trial", "setting") if has_several_seeds(study) else ("trial",)
        for kind in kinds:
            self._client.set_experiment_tag(
                self.tracked.experiment_id,
                f"{TAG_PREFIX}{view_key(self._study_id, kind)}",
                comparison_view(
                    study,
                    self._study_id,
                    event["time"],
                    kind,
                    condition_metrics(study) if self._names_conditions else (),
                ),
            )

    def _annotate(self, line: JournalLine) -> None:
        state = self._journal.state_at(line.end)
        assert state.started is not None
        content = study_description(state.started["study"], state.notes, state.extensions)
        self._log(self.tracked.study_run_id, {DESCRIPTION_TAG: content, **state.tags})

    def _start_trial(self, line: JournalLine, event: TrialStarted) -> None:
        was_there = bool(self.run_id(event["trial"]))
        run_id = self._trial_run(event["trial"], event["time"])
        params: Values = {}
        if run_id not in self._with_params:  # a trial starts again after each rung
            params = {**_data_params(self._started), **self._recipe(event["trial"])}
            self._client.log_inputs(run_id, dataset_inputs(self._started["study"]["data"]))
        if was_there:
            self._client.update_run(run_id, status="RUNNING")
        tags, _ = self._conditions(self._journal.state_at(line.end), event["trial"])
        self._log(run_id, {"state": "running", "attempt": str(event["attempt"]), **tags}, params)
        self._with_params.add(run_id)

    def _end_trial(self, line: JournalLine, event: TrialEnded) -> None:
        run_id = self._trial_run(event["trial"], event["time"])
        state, study = self._journal.state_at(line.end), self._started["study"]
        trial = state.trials[event["trial"]]
        tags, unlike = self._conditions(state, trial.name)
        description = trial_description(study, self.tracked, trial, self._point(trial.name), unlike)
        ended = {"state": event["state"], "reason": event["reason"] or "", DESCRIPTION_TAG: description}
        self._log(run_id, ended | tags)
        if unlike:
            self._client.update_run(run_id, name=unlike_name(self._run_name(trial.name)))
        self._end_run(run_id, event["state"], event["time"])

    def _conditions(self, state: StudyState, trial: str) -> tuple[dict[str, str], dict[str, str]]:
        """The tags that say under which conditions a trial is run, and in what it is not comparable."""
        first = self._first_measured()
        unlike = unlike_the_first(state, trial, *first) if first else {}
        condition = condition_text(conditions_of(state, trial))
        return {"condition": condition, DIFFERS_TAG: ", ".join(unlike)}, unlike

    def _first_measured(self) -> tuple[str, Conditions] | None:
        """The trial of the journal's first epoch, with the conditions that it had then; None before that."""
        if self._first is None:
            state = StudyState()
            for event, _ in read_events(self._journal_path):
                state.apply(event)
                if event["event"] == "epoch":
                    self._first = event["trial"], conditions_of(state, event["trial"])
                    break
        return self._first

    def _run_name(self, trial: str) -> str:
        return run_name(self._shown(trial), swept_fields(self._started["study"])) or trial

    def _trial_run(self, trial: str, time: float) -> str:
        """The id of the trial's run, which is created when the trial is first heard of."""
        if run_id := self.tracked.trial_run_ids.get(trial):
            return run_id
        study, point = self._started["study"], self._point(trial)
        run_id = self._create_run(
            self._run_name(trial),
            time,
            {
                "kind": "rerun" if trial in self._reruns else "trial",
                "trial": trial,
                "point": point,
                "left_out": "false",
                DESCRIPTION_TAG: trial_description(
                    study, self.tracked, TrialProgress(trial, "running"), point
                ),
            },
        )
        self.tracked = replace(self.tracked, trial_run_ids={**self.tracked.trial_run_ids, trial: run_id})
        return run_id

    def _shown(self, trial: str) -> Values:
        """The point of a trial, and its seed where that is not the same for all."""
        study, shown = self._started["study"], dict(self._plan(trial)["point"])
        recipe = self._recipe(trial)
        if len(study["seeds"]) > 1 or study.get("more_seeds") or trial in self._reruns:
            shown["seed"] = recipe.get("seed", study["recipe"].get("seed"))
        return shown

    def _point(self, trial: str) -> str:
        shown = self._shown(trial)
        return point_label(shown, short_names([*swept_fields(self._started["study"]), *shown]))

    def _recipe(self, trial: str) -> Values:
        self._plan(trial)
        return self._recipes[trial]

    def _plan(self, trial: str) -> TrialPlan:
        """What a trial is, by the line that planned or proposed it."""
        if trial not in self._plans:
            for event, end in read_events(self._journal_path, self._plans_read_to):
                self._plans_read_to = end
                if event["event"] == "study_extended":
                    self._started_at_plans = with_extension(self._started_at_plans, event)
                base = self._started_at_plans["study"]["recipe"]
                if event["event"] == "confirmation_planned":
                    self._reruns.update(plan["name"] for plan in event["trials"])
                for plan in plans_of(event):
                    self._plans[plan["name"]] = plan
                    recipe = {**base, **plan["recipe"], **plan["point"]}
                    self._recipes.setdefault(plan["name"], recipe)  # it is the same after an extension
        return self._plans[trial]

    def _create_run(self, name: str, time: float, tags: Mapping[str, str]) -> str:
        study = self._started["study"]
        return self._client.create_run(
            self.tracked.experiment_id,
            start_time=_milliseconds(time),
            run_name=name,
            tags={
                **tags,
                "study": study["name"],
                "study_id": self._study_id,
                **{f"hardware.{name}": str(value) for name, value in study["hardware"].items()},
                **{f"versions.{name}": str(value) for name, value in study["versions"].items()},
                **source_tags(study),
            },
        ).info.run_id

    def _end_run(self, run_id: str, state: str, time: float) -> None:
        self._client.set_terminated(run_id, _RUN_STATUS[state], end_time=_milliseconds(time))

    def _log(self, run_id: str, tags: Mapping[str, str], params: Mapping[str, Any] | None = None) -> None:
        """Tags and params, in as few calls as MLflow takes them."""
        from mlflow.entities import Param, RunTag

        given = [Param(name, _param(value)) for name, value in (params or {}).items()]
        labels = [RunTag(name, value) for name, value in tags.items()]
        rest = _PARAMS_AND_TAGS_PER_CALL - len(labels)
        self._client.log_batch(run_id, params=given[:rest], tags=labels)
        for first in range(rest, len(given), _PARAMS_AND_TAGS_PER_CALL):
            self._client.log_batch(run_id, params=given[first : first + _PARAMS_AND_TAGS_PER_CALL])

    def _summarise(self, line: JournalLine) -> None:
        """Log the study's own metrics and its seeds as they were after a line of the journal.

        The best accuracy is the highest that a finished trial had in its last epoch. A trial that was started again
        counts as it ended before. All comes from the journal, so that a driver that takes over says the same.
        """
        from mlflow.entities import Metric, RunTag

        state = self._journal.state_at(line.end)
        summary = study_metrics(state, self._started["study"]["metric"])
        time, step = _milliseconds(line.event["time"]), int(summary["trials_ended"])
        self._client.log_batch(
            self.tracked.study_run_id,
            metrics=[Metric(name, value, time, step) for name, value in summary.items()],
            tags=[RunTag(_SEEDS_TAG, study_seeds(state))],
        )

    def _write_setting(self, line: JournalLine, trial: str) -> None:
        """Write what the seeds of a setting give together, if this trial was its last one to end.

        Its run is the study's own: somebody who deletes it holds nothing up.
        """
        from mlflow.entities import Metric

        state = self._journal.state_at(line.end)
        if state.started is None or not has_several_seeds(state.started["study"]):
            return
        metric = self._started["study"]["metric"]
        setting = ended_setting(state, trial, metric)
        if setting is None:
            return
        run_id = self._setting_run(setting, line.event["time"])
        time, own_chart = _milliseconds(line.event["time"]), self._condition_metric(trial)
        points = [
            Metric(name, value, time, epoch)
            for epoch, values in setting.epochs.items()
            for name, value in {**values, **({own_chart: values[metric]} if own_chart else {})}.items()
        ]
        tags = {"state": "diverged" if setting.has_diverged else "finished", "left_out": "false"}
        recipe = {name: value for name, value in self._recipe(trial).items() if name != "seed"}
        if not self._log_unless_deleted(run_id, tags, {**_data_params(self._started), **recipe}):
            return
        for first in range(0, len(points), _METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=points[first : first + _METRICS_PER_CALL])
        self._end_run(run_id, tags["state"], line.event["time"])
        for other, trials in list(self._setting_runs.values()):
            if other != run_id and set(trials) < set(setting.trials):
                self._log_unless_deleted(other, {"left_out": "true"})

    def _setting_run(self, setting: SettingResult, time: float) -> str:
        if setting.key in self._setting_runs:
            return self._setting_runs[setting.key][0]
        study, first = self._started["study"], setting.trials[0]
        point = {name: value for name, value in self._plan(first)["point"].items() if name != "seed"}
        words = point_label(point, short_names([*swept_fields(study), *point]))
        seeds = ", ".join(str(self._recipe(trial).get("seed")) for trial in setting.trials)
        name = run_name(point, swept_fields(study))
        run_id = self._create_run(
            f"{name} ({len(setting.trials)} seeds)".strip(),
            time,
            {
                "kind": "setting",
                "setting": setting.key,
                "trials": ", ".join(setting.trials),
                _SEEDS_TAG: seeds,
                "point": words,
                DESCRIPTION_TAG: setting_description(study, self.tracked, words, seeds),
            },
        )
        self._setting_runs[setting.key] = run_id, setting.trials
        return run_id

    def _log_unless_deleted(
        self, run_id: str, tags: Mapping[str, str], params: Mapping[str, Any] | None = None
    ) -> bool:
        """Whether the run is there."""
        from mlflow.exceptions import MlflowException

        try:
            self._log(run_id, tags, params)
        except MlflowException as error:
            if error.error_code not in (
                "INVALID_PARAMETER_VALUE",
                "INVALID_STATE",
                "RESOURCE_DOES_NOT_EXIST",
            ):
                raise
            return False
        return True


def _clipping_metrics(event: EpochEnded) -> dict[str, float]:
    """What AGC clipped in each part of the network; nothing for an epoch without a record, or with a foreign one."""
    try:
        return Clipping.from_text(event["clipping"]).metrics() if "clipping" in event else {}
    except ValueError:
        return {}


def _place_in_study(event: StudyExtended, trial: str) -> dict[str, str]:
    """The tags of a trial whose place in the study an extension has changed."""
    if trial in event["reconsidered"]:
        return {"left_out": "false", "state": "paused"}
    return {"left_out": str(trial in event["left_out"]).lower()}


def study_metrics(state: StudyState, metric: str) -> dict[str, float]:
    """A study's own metrics in MLflow; ``best_…`` is missing while no trial has finished.

    Trials that an extension has left out count, as their time was paid for, but none of them is the best. Nor are the
    reruns of a winner, whose mean accuracy is ``confirmed_…``; of several winners it is that of the best one.
    """
    trials = state.trials.values()
    finished = [trial for trial in trials if trial.outcome == "finished"]
    outside = state.outside
    summary = {
        "trials_finished": float(len(finished)),
        "trials_ended": float(sum(trial.outcome is not None for trial in trials)),
        "total_train_seconds": sum(trial.last("train_seconds") or 0.0 for trial in trials),
        "accelerator_hours": state.accelerator_seconds / 3600,
    }
    if (idle := state.idle_time()) is not None:
        summary |= {"idle_accelerator_seconds": idle.seconds, "idle_share": idle.share}
    if (price := state.caps.get("price_per_hour")) is not None:
        summary["cost"] = summary["accelerator_hours"] * price
    final = {
        trial.name: value
        for trial in finished
        if trial.name not in outside and (value := trial.last(metric)) is not None
    }
    settings = [value for name, value in final.items() if name not in state.reruns]
    if settings:
        summary[f"best_{metric}"] = max(settings)
    confirmed: dict[str, list[float]] = {}
    for name in final.keys() & state.reruns.keys():
        confirmed.setdefault(str(state.reruns[name]["point"]), []).append(final[name])
    if confirmed:
        summary[f"confirmed_{metric}"] = max(math.fsum(each) / len(each) for each in confirmed.values())
    return summary


def _data_params(started: StudyStarted) -> Values:
    return {f"data.{name}": value for name, value in started["study"]["data"].items()}


def _param(value: Any) -> str:
    """Params are texts, and stay whole; floats keep all their digits, and lists can be read back."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else value_label(value)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
