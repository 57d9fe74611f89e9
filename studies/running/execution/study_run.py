"""A study, and everything that is needed to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.models.own.source import NetworkSource
from nfnet_ray.study.annotations import Annotations
from nfnet_ray.study.cost.spending import Caps, PaidTime, ReachedCap, accelerator_word
from nfnet_ray.study.extension import Extension
from nfnet_ray.study.search.upcoming import has_more
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.tracking.descriptions import CapsDescription
from nfnet_ray.tracking.destination.uri import NOT_RECORDED
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.wording import count
from studies.running.checks import network_sources
from studies.running.runner import Runner
from studies.running.trials import TuneRunner


@dataclass(frozen=True)
class StudyRun:
    """A study, and everything that is needed to run it.

    Attributes:
        command: the command that resumes the study after a stop.
        progress: the state of the study, which changes while it runs; ``progress.started`` is None if it has not begun.
        runner: the object that runs its trials.
        verifies: whether the nodes of a cluster check every byte of their data before the first trial.
        changed: {field of the Recipe: value} that the person who resumes the study has changed.
        extended: the extension that this command makes, or None. ``progress`` includes it, the journal does not yet.
        annotations: notes and tags to keep; those that a resumed study already has are not repeated.
        notify_url: a webhook that is told how the study ended, or None.
        caps: the limits on what the study may cost.
        given_caps: the caps that were given with this command, and are not in the journal yet.
        command_with: returns, for {cap: value}, the command that resumes the study with these caps.
        program_file: the file that defines the study; None for a study that was built in Python.
    """

    study: Study
    data: DatasetSummary
    directory: Path
    tracking_uri: str
    command: str
    progress: StudyState
    runner: Runner = field(default_factory=TuneRunner)
    verifies: bool = False
    changed: Mapping[str, Any] = field(default_factory=dict)
    extended: Extension | None = None
    annotations: Annotations = field(default_factory=Annotations)
    notify_url: str | None = None
    caps: Caps = field(default_factory=Caps)
    given_caps: CapsDescription = field(default_factory=CapsDescription)
    command_with: Callable[[Mapping[str, float]], str] = lambda _caps: ""
    program_file: Path | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether the study is recorded in MLflow."""
        return self.tracking_uri != NOT_RECORDED

    @property
    def has_more(self) -> bool:
        """Whether any trial has yet to be run."""
        return has_more(self.study, self.progress)

    @property
    def has_epochs(self) -> bool:
        """Whether any trial has ended an epoch."""
        return any(trial.epochs for trial in self.progress.trials.values())

    @property
    def has_failed_trials(self) -> bool:
        """Whether a trial of the study has failed."""
        return any(trial.state == "failed" for trial in self.progress.members)

    def unfinished_trials(self) -> list[Trial]:
        """The planned trials that have not ended."""
        names = set(self.progress.unfinished)
        return [trial for trial in self.study.trials() if trial.name in names]

    def network_sources(self) -> list[NetworkSource]:
        """The code of the networks that are not part of this library. Raises UserError if it is missing."""
        return network_sources([*self.study.trials(), *self.study.outermost_trials()])

    def used_up_cap(self) -> ReachedCap | None:
        """The cap that earlier drivers have used up, or None."""
        return self.caps.reached(PaidTime.of(self.progress), self.accelerator)

    @property
    def accelerator(self) -> str:
        """The unit of which accelerator-hours are counted: ``GPU`` or, where workers have none, ``worker``."""
        started = self.progress.started
        return accelerator_word(started["study"]["worker"]["gpus"] if started else 0)

    def stopped_sentence(self, why: str) -> str:
        """Says why the study has stopped (``why`` includes the remedy), and how it is resumed."""
        epochs = sum(len(trial.epochs) for trial in self.progress.trials.values())
        kept = f"what was kept before ({count(epochs, 'epoch')}) is sound"
        return f"stopped, as {why}, then resume with `{self.command}`; {kept}"
