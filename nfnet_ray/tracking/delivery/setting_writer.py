"""Writes the runs of settings, which combine the trials of a setting with several seeds."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from nfnet_ray.tracking.delivery.calls import (
    create_run,
    end_run,
    log_metrics,
    log_texts_unless_deleted,
    milliseconds,
)
from nfnet_ray.tracking.delivery.planned_trials import PlannedTrials
from nfnet_ray.tracking.delivery.spool import TrackedStudy
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.labels import point_label, short_names
from nfnet_ray.tracking.runs.inputs import data_params
from nfnet_ray.tracking.runs.setting_runs import SettingResult, ended_setting, has_several_seeds
from nfnet_ray.tracking.runs.texts import DESCRIPTION_TAG, run_name, setting_description
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.swept import swept_fields

if TYPE_CHECKING:
    from mlflow import MlflowClient


class SettingWriter:
    """Writes the run of each setting once all of its trials have ended.

    These runs belong to the study, so that deleting one of them does not hold back any events.
    """

    def __init__(
        self,
        client: MlflowClient,
        started: StudyStarted,
        trials: PlannedTrials,
        existing: dict[str, tuple[str, tuple[str, ...]]],
    ) -> None:
        """``existing`` is {key of a setting: (id of its run, its trials)}."""
        self._client, self._started, self._trials = client, started, trials
        self._runs = existing

    def write(self, state: StudyState, trial: str, time: float, tracked: TrackedStudy) -> None:
        """Writes the combined results of a setting's seeds, if ``trial`` was the last of them to end."""
        from mlflow.entities import Metric

        if state.started is None or not has_several_seeds(state.started["study"]):
            return
        metric = self._started["study"]["metric"]
        setting = ended_setting(state, trial, metric)
        if setting is None:
            return
        run_id = self._run(setting, time, tracked)
        chart = self._trials.condition_metric(trial)
        metrics = [
            Metric(name, value, milliseconds(time), epoch)
            for epoch, values in setting.epochs.items()
            for name, value in {**values, **({chart: values[metric]} if chart else {})}.items()
        ]
        tags = {"state": "diverged" if setting.has_diverged else "finished", "left_out": "false"}
        recipe = {name: value for name, value in self._trials.recipe(trial).items() if name != "seed"}
        params = {**data_params(self._started["study"]["data"]), **recipe}
        if not log_texts_unless_deleted(self._client, run_id, tags, params):
            return
        log_metrics(self._client, run_id, metrics)
        end_run(self._client, run_id, tags["state"], time)
        # This run replaces the one of the same setting with fewer seeds.
        for other, trials in list(self._runs.values()):
            if other != run_id and set(trials) < set(setting.trials):
                log_texts_unless_deleted(self._client, other, {"left_out": "true"})

    def leave_out(self, outside: Container[str]) -> None:
        """Tags the settings with trials ``outside`` the study as left out, and the others as part of it."""
        for run_id, trials in self._runs.values():
            is_left_out = any(trial in outside for trial in trials)
            log_texts_unless_deleted(self._client, run_id, {"left_out": str(is_left_out).lower()})

    def _run(self, setting: SettingResult, time: float, tracked: TrackedStudy) -> str:
        """Returns the id of the setting's run, which is created if it does not exist."""
        if setting.key in self._runs:
            return self._runs[setting.key][0]
        study, first = self._started["study"], setting.trials[0]
        point = {name: value for name, value in self._trials.plan(first)["point"].items() if name != "seed"}
        words = point_label(point, short_names([*swept_fields(study), *point]))
        seeds = ", ".join(str(self._trials.recipe(trial).get("seed")) for trial in setting.trials)
        name = run_name(point, swept_fields(study))
        run_id = create_run(
            self._client,
            tracked.experiment_id,
            self._started,
            f"{name} ({len(setting.trials)} seeds)".strip(),
            time,
            {
                "kind": "setting",
                "setting": setting.key,
                "trials": ", ".join(setting.trials),
                "seeds": seeds,
                "point": words,
                DESCRIPTION_TAG: setting_description(study, tracked, words, seeds),
            },
        )
        self._runs[setting.key] = run_id, setting.trials
        return run_id
