"""Looks up the planned and proposed trials of a study in its journal."""

from __future__ import annotations

from pathlib import Path

from nfnet_ray.tracking.descriptions import StudyDescription, TrialPlan, Values
from nfnet_ray.tracking.events import StudyStarted, plans_of, with_extension
from nfnet_ray.tracking.journal import read_events
from nfnet_ray.tracking.labels import point_label, short_names
from nfnet_ray.tracking.runs.charts import condition_metric, condition_metrics
from nfnet_ray.tracking.runs.texts import run_name
from nfnet_ray.tracking.swept import condition_fields, swept_fields


class PlannedTrials:
    """Looks up trials by name. The journal is read further when a trial is needed that was planned later."""

    def __init__(self, journal_path: Path, started: StudyStarted) -> None:
        self._journal_path, self._read_to = journal_path, 0
        self._started = started
        self._started_and_extended = started
        self._plans: dict[str, TrialPlan] = {}
        self._recipes: dict[str, Values] = {}
        self._reruns: set[str] = set()
        # Decided by the first event, so that either all trials have a chart for each condition, or none has.
        self._has_condition_charts = bool(condition_metrics(started["study"]))

    def plan(self, trial: str) -> TrialPlan:
        """Returns the plan of a trial, from the line that planned or proposed it."""
        if trial not in self._plans:
            for event, end in read_events(self._journal_path, self._read_to):
                self._read_to = end
                if event["event"] == "study_extended":
                    self._started_and_extended = with_extension(self._started_and_extended, event)
                base = self._started_and_extended["study"]["recipe"]
                if event["event"] == "confirmation_planned":
                    self._reruns.update(plan["name"] for plan in event["trials"])
                for plan in plans_of(event):
                    self._plans[plan["name"]] = plan
                    recipe = {**base, **plan["recipe"], **plan["point"]}
                    self._recipes.setdefault(plan["name"], recipe)  # unchanged by an extension
        return self._plans[trial]

    def recipe(self, trial: str) -> Values:
        """Returns all values of a trial's Recipe."""
        self.plan(trial)
        return self._recipes[trial]

    def is_rerun(self, trial: str) -> bool:
        """Whether a trial reruns a winner with a fresh seed."""
        self.plan(trial)
        return trial in self._reruns

    def run_name(self, trial: str) -> str:
        """Returns the name of a trial's run in MLflow."""
        return run_name(self._point_and_seed(trial), swept_fields(self._started["study"])) or trial

    def label(self, trial: str) -> str:
        """Describes a trial's point for people, with its seed if seeds differ between trials."""
        shown = self._point_and_seed(trial)
        return point_label(shown, short_names([*swept_fields(self._started["study"]), *shown]))

    def _point_and_seed(self, trial: str) -> Values:
        study, shown = self._started["study"], dict(self.plan(trial)["point"])
        if len(study["seeds"]) > 1 or study.get("more_seeds") or self.is_rerun(trial):
            shown["seed"] = self.recipe(trial).get("seed", study["recipe"].get("seed"))
        return shown

    def condition_metric(self, trial: str) -> str | None:
        """Returns the second name of a trial's accuracy, by which MLflow draws a chart for each condition, or None."""
        if not self._has_condition_charts:
            return None
        study, recipe = self._started["study"], self.recipe(trial)
        return condition_metric(study, {name: recipe.get(name) for name in condition_fields(study)})

    def condition_metrics(self, study: StudyDescription) -> list[str]:
        """Returns the second names of the accuracy under all conditions of the study, which may have been extended."""
        return condition_metrics(study) if self._has_condition_charts else []
