"""What a study's journal says of its trials, so that a study can be shown, ended and gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.study.study import METRIC, Study
from nfnet_ray.tracking.events import JOURNAL_FILE, Event, StudyStarted, TrialState, read_events

ENDED_FOR_GOOD: tuple[TrialState, ...] = ("finished", "stopped", "diverged")
"""States in which a resumed study leaves a trial alone; a failed or interrupted one is run again."""


@dataclass
class TrialProgress:
    """How far one trial is. ``epochs`` is {epoch: its metrics}; ``state`` is None while it waits."""

    name: str
    state: TrialState | str | None = None
    reason: str | None = None
    attempts: int = 0
    epochs: dict[int, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The last epoch that was reported, 0 before the first."""
        return max(self.epochs, default=0)

    def last(self, metric: str) -> float | None:
        """A metric of the last epoch, None where there is none."""
        return self.epochs[self.epoch].get(metric) if self.epochs else None


class StudyProgress:
    """The state of a study, built up from the events of its journal one by one."""

    def __init__(self) -> None:
        self.started: StudyStarted | None = None
        self._wall_seconds_before = 0.0
        self._session: tuple[float, float] | None = (
            None  # first and last event of a driver that has not said its end
        )
        self.changed: dict[str, Any] = {}
        """Fields that were forced upon the Recipe by those who went on with it."""
        self.trials: dict[str, TrialProgress] = {}
        self._reported: list[tuple[str, int, float]] = []

    @staticmethod
    def waiting(study: Study) -> StudyProgress:
        """The progress of a study that has not been started."""
        progress = StudyProgress()
        progress.trials = {trial.name: TrialProgress(trial.name) for trial in study.trials()}
        return progress

    @staticmethod
    def read(directory: Path) -> tuple[StudyProgress, StudyStarted]:
        """The progress of the study whose results lie in ``directory``, and how it was started."""
        progress = StudyProgress()
        try:
            for event, _ in read_events(directory / JOURNAL_FILE):
                progress.apply(event)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{directory / JOURNAL_FILE} is no journal that this version understands ({error!r}); restore it from "
                "a backup"
            ) from error
        if progress.started is None:
            raise UserError(f"{directory}: no study is here; --resume takes the name of one that was started")
        return progress, progress.started

    def apply(self, event: Event) -> None:
        """Takes in the next event of the journal."""
        if event["event"] in ("study_started", "study_resumed"):
            self._wall_seconds_before = self.wall_seconds
            self._session = (event["time"], event["time"])
        elif self._session is not None:
            self._session = (self._session[0], max(self._session[1], event["time"]))
        match event["event"]:
            case "study_started":
                self.started = event
                self.trials = {plan["name"]: TrialProgress(plan["name"]) for plan in event["trials"]}
            case "study_resumed":
                self.changed |= event.get("changed", {})
            case "study_ended":
                self._wall_seconds_before, self._session = event["wall_seconds"], None
            case "trial_started":
                trial = self.trials[event["trial"]]
                trial.state, trial.reason, trial.attempts = "running", None, event["attempt"]
            case "epoch":
                trial = self.trials[event["trial"]]
                if event["epoch"] not in trial.epochs:  # journals of earlier versions have some twice
                    self._reported.append((event["trial"], event["epoch"], event["metrics"][METRIC] or 0.0))
                trial.epochs[event["epoch"]] = event["metrics"]
            case "trial_ended":
                trial = self.trials[event["trial"]]
                trial.state, trial.reason = event["state"], event["reason"]

    @property
    def wall_seconds(self) -> float:
        """Time that drivers were there; of one that was killed, up to its last event."""
        first, last = self._session or (0.0, 0.0)
        return self._wall_seconds_before + (last - first)

    @property
    def unfinished(self) -> list[str]:
        """Names of the trials that still have something to do."""
        return [trial.name for trial in self.trials.values() if trial.state not in ENDED_FOR_GOOD]

    def reported_epochs(self) -> list[tuple[str, int, float]]:
        """(trial, epoch, validation top-1) as they were first reported, in that order: what halving decided by."""
        return list(self._reported)
