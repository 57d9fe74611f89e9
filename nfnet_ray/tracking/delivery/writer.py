"""Writes the events of a journal as experiments, runs, params, metrics and tags of MLflow.

Each study file has an experiment (:mod:`nfnet_ray.tracking.destination.experiment`). A study is one run (tag
``kind=study``), and so are each of its trials (``kind=trial``) and each rerun of a winner (``kind=rerun``). Trials are
flat and not nested, because the UI's charts leave out nested runs until each parent is opened by hand. All runs of a
study have its ``study_id``, so they can be found even after a crash between creating a run and recording its id.

Every write may be repeated without harm. A run is searched for before it is created; params and tags are set to the
same values; a metric has its event's time, and MLflow keeps only one of two points that are equal in run, name, step,
time and value.

A run that has been deleted in MLflow remains the study's run: it is not replaced until it is gone for good (``mlflow
gc``), because it can be restored.

The step is the epoch, and ``train_seconds`` is logged in the same batch as the accuracy: only then can the UI draw one
against the other.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nfnet_ray.clipping import Clipping
from nfnet_ray.tracking.conditions.fields import Conditions
from nfnet_ray.tracking.conditions.of_trial import (
    condition_text,
    conditions_of,
    first_measured,
    unlike_the_first,
)
from nfnet_ray.tracking.delivery.calls import create_run, end_run, log_metrics, log_texts, milliseconds
from nfnet_ray.tracking.delivery.existing_runs import create_experiment, find_runs
from nfnet_ray.tracking.delivery.planned_trials import PlannedTrials
from nfnet_ray.tracking.delivery.setting_writer import SettingWriter
from nfnet_ray.tracking.delivery.spool import STUDY_RUN, JournalLine, TrackedStudy
from nfnet_ray.tracking.descriptions import Values
from nfnet_ray.tracking.destination.experiment import experiment_of, own_experiment
from nfnet_ray.tracking.events import (
    EpochEnded,
    StudyEnded,
    StudyExtended,
    StudyStarted,
    TrialEnded,
    TrialStarted,
    promotion_in_words,
    study_id,
)
from nfnet_ray.tracking.journal import read_events
from nfnet_ray.tracking.journal_reader import JournalReader
from nfnet_ray.tracking.runs.files import RECIPE_FILE
from nfnet_ray.tracking.runs.inputs import data_params, dataset_inputs
from nfnet_ray.tracking.runs.setting_runs import has_several_seeds, study_seeds
from nfnet_ray.tracking.runs.study_metrics import study_metrics
from nfnet_ray.tracking.runs.system_metrics import node_tags, system_metrics
from nfnet_ray.tracking.runs.texts import (
    DESCRIPTION_TAG,
    DIFFERS_TAG,
    experiment_description,
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
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import TrialProgress

if TYPE_CHECKING:
    from mlflow import MlflowClient

RunState = Literal["open", "deleted", "in a deleted experiment", "gone"]
"""The states of a run; ``gone`` includes runs that never existed."""


class StudyWriter:
    """Writes one study's events. Not thread-safe; any call may raise mlflow's errors.

    Attributes:
        experiment: the name of the study's experiment.
        tracked: the ids of the study in MLflow, as far as it has been written.
    """

    def __init__(
        self,
        client: MlflowClient,
        tracking_uri: str,
        journal_path: Path,
        experiment: str | None = None,
        known_experiment_id: str = "",
    ) -> None:
        """Finds the runs that the study already has, and its experiment, which is created if it does not exist.

        The journal must begin with ``study_started``. ``experiment`` is a name, by default that of the study's file. A
        study that has runs in ``known_experiment_id``, or in the experiment of earlier versions, stays there.
        """
        self._client = client
        self._journal_path, self._journal = journal_path, JournalReader(journal_path)
        started = next(read_events(journal_path))[0]
        if started["event"] != "study_started":
            raise ValueError(f"{journal_path} begins with {started['event']}, not with study_started")
        self._started: StudyStarted = started
        self._study_id = study_id(started)
        self._trials = PlannedTrials(journal_path, started)
        self._first: tuple[str, Conditions] | None = None
        # Ids of the trials' runs whose params, and whose recipe.json, this writer has written.
        self._with_params: set[str] = set()
        self._with_recipe: set[str] = set()

        self.experiment = experiment or experiment_of(started)
        self._existing = find_runs(client, self._study_id, self.experiment, known_experiment_id)
        self._settings = SettingWriter(client, started, self._trials, self._existing.setting_runs)
        self.tracked = TrackedStudy(
            tracking_uri=tracking_uri,
            experiment_id=self._existing.experiment_id
            or create_experiment(client, tracking_uri, self.experiment, self._experiment_tags()),
            view_key=view_key(self._study_id),
            study_run_id=self._existing.study_run_id,
            trial_run_ids=self._existing.trial_run_ids,
        )

    def has_lost(self, end: int, held: Container[str]) -> bool:
        """Whether MLflow lacked, when this writer was created, what it had confirmed of the journal up to ``end``.

        This happens if its database was replaced by an older backup. Runs that MLflow does not have at all are ignored,
        and so are runs that are ``held``.
        """
        return self._existing.lack(self._journal.state_at(end), held)

    def run_id(self, run: str) -> str:
        """Returns the id of a trial's run, or of the study's run; empty if it does not exist."""
        return self.tracked.study_run_id if run == STUDY_RUN else self.tracked.trial_run_ids.get(run, "")

    def state_of(self, run: str) -> RunState:
        """Returns the state of a run. A run that is gone for good is forgotten, so that another one takes its place."""
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

    def store_recipe(self, trial: str) -> None:
        """Stores a trial's Recipe with its run, once during the lifetime of this writer."""
        run_id = self.run_id(trial)
        if run_id and run_id not in self._with_recipe:
            self._client.log_dict(run_id, self._trials.recipe(trial), RECIPE_FILE)
            self._with_recipe.add(run_id)

    def attach(self, path: Path) -> None:
        """Stores a file with the study's run."""
        self._client.log_artifact(self.tracked.study_run_id, str(path))

    def write(self, line: JournalLine, run: str) -> None:
        """Writes an event to one of its runs (:func:`nfnet_ray.tracking.delivery.spool.runs_of`).

        Kinds of events that this version does not know are ignored.
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
                elif run_id := self.run_id(run):  # a trial that has never begun has no run
                    self._log(run_id, _tags_after_extension(event, run))
            case "study_annotated":
                self._describe_study(self._journal.state_at(line.end))
            case "study_ended":
                self._end_study(line, event)
            case "contenders_chosen" | "confirmation_planned":
                if run_id := self.run_id(run):
                    tags = {"left_out": str(run in event["left_out"]).lower()}
                    if event["event"] == "contenders_chosen" and run in event["dropped"]:
                        tags = {"reason": event["dropped"][run]}
                    self._log(run_id, tags)
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
                self._write_study_metrics(line)
                state = self._journal.state_at(line.end)
                self._settings.write(state, event["trial"], event["time"], self.tracked)
            case "trial_ended":
                self._end_trial(line, event)
            case "trial_proposed" | "form_chosen" | "at_work":
                pass  # these events do not change anything in MLflow

    def write_epochs(self, trial: str, events: Sequence[EpochEnded]) -> None:
        """Writes the metrics of several epochs of one trial, in as few calls as possible."""
        from mlflow.entities import Metric

        run_id = self._trial_run(trial, events[0]["time"])
        accuracy, chart = self._started["study"]["metric"], self._trials.condition_metric(trial)
        metrics = [
            # MLflow stores an infinity as 1.8e308, which would be the only visible point of a chart.
            Metric(
                name,
                value if math.isfinite(value) else math.nan,
                milliseconds(event["time"]),
                event["epoch"],
            )
            for event in events
            for name, value in {
                **event["metrics"],
                **_clipping_metrics(event),
                **system_metrics(event),
                **({chart: event["metrics"].get(accuracy)} if chart else {}),
            }.items()
            if value is not None
        ]
        log_metrics(self._client, run_id, metrics, node_tags(events))

    def _start_study(self, event: StudyStarted) -> None:
        study = event["study"]
        run_id = self.tracked.study_run_id or self._create_run(
            f"study: {study['name']}", event["time"], {"kind": "study"}
        )
        self.tracked = replace(self.tracked, study_run_id=run_id)
        space = {f"space.{name}": values for name, values in study["space"].items()}
        log_texts(
            self._client,
            run_id,
            {
                "state": "running",
                "seeds": ", ".join(map(str, study["seeds"])),
                "question": study["question"],
                "command": study["command"],
                DESCRIPTION_TAG: study_description(study, study.get("notes", ())),
                **study.get("tags", {}),
            },
            {**data_params(study["data"]), **study["recipe"], **space, "seeds": study["seeds"]},
        )
        self._client.log_inputs(run_id, dataset_inputs(study["data"]))
        self._save_views(event)
        self._label_experiment()

    def _extend_study(self, line: JournalLine) -> None:
        """Writes an extension: the new space into the description, as params cannot change, and seeds into a tag."""
        state = self._journal.state_at(line.end)
        self._describe_study(state)
        self._log(self.tracked.study_run_id, {"state": "running", "seeds": study_seeds(state)})
        if state.started is not None:
            self._save_views(state.started)
        self._settings.leave_out(state.outside)

    def _describe_study(self, state: StudyState) -> None:
        assert state.started is not None
        content = study_description(state.started["study"], state.notes, state.extensions)
        self._log(self.tracked.study_run_id, {DESCRIPTION_TAG: content, **state.tags})

    def _end_study(self, line: JournalLine, event: StudyEnded) -> None:
        self._write_study_metrics(line)
        self._log(
            self.tracked.study_run_id,
            {
                "state": event["state"],
                "reason": event.get("reason", ""),
                "wall_seconds": f"{event['wall_seconds']:.0f}",
            },
        )
        end_run(self._client, self.tracked.study_run_id, event["state"], event["time"])

    def _write_study_metrics(self, line: JournalLine) -> None:
        """Logs the study's own metrics and its seeds, as they were after a line of the journal.

        The best accuracy is the highest one that a finished trial had in its last epoch. A trial that was started again
        counts as it ended before. Everything comes from the journal, so that another driver logs the same values.
        """
        from mlflow.entities import Metric

        state = self._journal.state_at(line.end)
        values = study_metrics(state, self._started["study"]["metric"])
        time, step = milliseconds(line.event["time"]), int(values["trials_ended"])
        metrics = [Metric(name, value, time, step) for name, value in values.items()]
        log_metrics(self._client, self.tracked.study_run_id, metrics, {"seeds": study_seeds(state)})

    def _save_views(self, started: StudyStarted) -> None:
        """Saves the charts that MLflow's UI opens for the study's trials and, with several seeds, for its settings."""
        study = started["study"]
        kinds: tuple[RunKind, ...] = ("trial", "setting") if has_several_seeds(study) else ("trial",)
        for kind in kinds:
            self._client.set_experiment_tag(
                self.tracked.experiment_id,
                f"{TAG_PREFIX}{view_key(self._study_id, kind)}",
                comparison_view(
                    study, self._study_id, started["time"], kind, self._trials.condition_metrics(study)
                ),
            )

    def _label_experiment(self) -> None:
        """Adds tags to an experiment that was created by hand, or by an earlier version, and lacks them."""
        experiment_id = self.tracked.experiment_id
        tags = self._client.get_experiment(experiment_id).tags
        for name, value in self._experiment_tags().items():
            if name not in tags:
                self._client.set_experiment_tag(experiment_id, name, value)

    def _experiment_tags(self) -> dict[str, str]:
        # Without this tag, the UI opens the experiment among traces and prompts of language models.
        tags = {EXPERIMENT_KIND_TAG: EXPERIMENT_KIND}
        study = self._started["study"]
        if self.experiment == own_experiment(study.get("source", {}).get("file")):
            tags[DESCRIPTION_TAG] = experiment_description(study)
        return tags

    def _start_trial(self, line: JournalLine, event: TrialStarted) -> None:
        existed = bool(self.run_id(event["trial"]))
        run_id = self._trial_run(event["trial"], event["time"])
        params: Values = {}
        if run_id not in self._with_params:  # a trial starts again after each rung
            data = self._started["study"]["data"]
            params = {**data_params(data), **self._trials.recipe(event["trial"])}
            self._client.log_inputs(run_id, dataset_inputs(data))
        if existed:
            self._client.update_run(run_id, status="RUNNING")
        tags, _ = self._conditions(self._journal.state_at(line.end), event["trial"])
        log_texts(
            self._client, run_id, {"state": "running", "attempt": str(event["attempt"]), **tags}, params
        )
        self._with_params.add(run_id)

    def _end_trial(self, line: JournalLine, event: TrialEnded) -> None:
        run_id = self._trial_run(event["trial"], event["time"])
        state, study = self._journal.state_at(line.end), self._started["study"]
        trial = state.trials[event["trial"]]
        tags, unlike = self._conditions(state, trial.name)
        description = trial_description(study, self.tracked, trial, self._trials.label(trial.name), unlike)
        ended = {"state": event["state"], "reason": event["reason"] or "", DESCRIPTION_TAG: description}
        self._log(run_id, ended | tags)
        if unlike:
            self._client.update_run(run_id, name=unlike_name(self._trials.run_name(trial.name)))
        end_run(self._client, run_id, event["state"], event["time"])

    def _conditions(self, state: StudyState, trial: str) -> tuple[dict[str, str], dict[str, str]]:
        """Returns tags with the conditions of a trial, and {condition: its difference from the first trial}."""
        if self._first is None:
            self._first = first_measured(self._journal_path)
        unlike = unlike_the_first(state, trial, *self._first) if self._first else {}
        condition = condition_text(conditions_of(state, trial))
        return {"condition": condition, DIFFERS_TAG: ", ".join(unlike)}, unlike

    def _trial_run(self, trial: str, time: float) -> str:
        """Returns the id of the trial's run, which is created when the first event of the trial is written."""
        if run_id := self.tracked.trial_run_ids.get(trial):
            return run_id
        study, label = self._started["study"], self._trials.label(trial)
        run_id = self._create_run(
            self._trials.run_name(trial),
            time,
            {
                "kind": "rerun" if self._trials.is_rerun(trial) else "trial",
                "trial": trial,
                "point": label,
                "left_out": "false",
                DESCRIPTION_TAG: trial_description(
                    study, self.tracked, TrialProgress(trial, "running"), label
                ),
            },
        )
        self.tracked = replace(self.tracked, trial_run_ids={**self.tracked.trial_run_ids, trial: run_id})
        return run_id

    def _create_run(self, name: str, time: float, tags: dict[str, str]) -> str:
        return create_run(self._client, self.tracked.experiment_id, self._started, name, time, tags)

    def _log(self, run_id: str, tags: dict[str, str]) -> None:
        log_texts(self._client, run_id, tags)


def _clipping_metrics(event: EpochEnded) -> dict[str, float]:
    """Returns what AGC clipped in each part of the network; empty without a readable record for the epoch."""
    try:
        return Clipping.from_text(event["clipping"]).metrics() if "clipping" in event else {}
    except ValueError:
        return {}


def _tags_after_extension(event: StudyExtended, trial: str) -> dict[str, str]:
    """Returns the tags of a trial that an extension has left out, or has taken back into the study."""
    if trial in event["reconsidered"]:
        return {"left_out": "false", "state": "paused"}
    return {"left_out": str(trial in event["left_out"]).lower()}
