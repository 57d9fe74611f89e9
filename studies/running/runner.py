"""The interface of the objects that run the trials of a study."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.study import Study, Trial
from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.state import StudyState

if TYPE_CHECKING:
    from nfnet_ray.study.recorder import Recorder

EXIT_FAILED_TRIALS = 1


@dataclass(frozen=True)
class WorkerDemand:
    """The requested resources: workers of a trial, cores and GPUs of each, trials at once.

    None leaves it to what the cluster has. A training may continue with ``min_workers`` of its workers.
    """

    workers: int
    cpus: int | None
    gpus: float | None
    min_workers: int | None = None
    trials_at_once: int | None = None


@dataclass(frozen=True)
class Places:
    """The places that a study has.

    Attributes:
        resources: what the cluster has.
        worker: what each worker of a trial is given.
        number: how many trials run at once.
        mps: {node with GPUs: whether MPS is up there}; empty unless workers share a GPU.
    """

    resources: Resources
    worker: WorkerResources
    number: int
    mps: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class RunningStudy:
    """A study that is connected to Ray and has its journal open, as its runner sees it.

    Attributes:
        trials: those that have not ended yet.
        worker: what each worker is given.
        stop: set when somebody has asked the study to stop.
        note: says something to the person who watches.
    """

    study: Study
    trials: Sequence[Trial]
    data: DatasetSummary
    directory: Path
    progress: StudyState
    worker: WorkerResources
    trials_at_once: int
    recorder: Recorder
    stop: threading.Event
    note: Callable[[str], None]


@dataclass(frozen=True)
class Ending:
    """How a study ended: the exit code and, unless it is 0, a sentence that introduces the command to resume it."""

    exit_code: int
    sentence: str = ""


class Runner(Protocol):
    """Runs the trials of a study, and knows what only this way of running them has to say.

    Arguments are passed by position, so that a runner may name those that it does not need as it likes.
    """

    workers_flag: str
    """The flag that says how many workers a trial has."""
    stopping: str
    """The sentence that is printed when the study is asked to stop."""

    def check(self, study: Study, demand: WorkerDemand, /) -> None:
        """Raises UserError for a study that cannot be run in the way that was asked for."""
        ...

    def extent(self, study: Study, trials: int, data: DatasetSummary, /) -> str:
        """The extent of the study, as the beginning of a sentence: ``12 trials of at most 8 epochs``."""
        ...

    def worker(self, resources: Resources, demand: WorkerDemand, /) -> WorkerResources:
        """The resources of each worker, on a cluster with these resources."""
        ...

    def trials_at_once(
        self, trials: int, resources: Resources, demand: WorkerDemand, worker: WorkerResources, /
    ) -> int:
        """How many trials run at once. Raises UserError if not even one fits."""
        ...

    def shape(self, worker: WorkerResources, trials_at_once: int, /) -> str:
        """The arrangement of the workers, as the end of a sentence: ``trials side by side: 2``."""
        ...

    def describe(self, description: StudyDescription, /) -> None:
        """Adds to the journal's description of the study what only this way of running it has."""
        ...

    def run(self, running: RunningStudy, /) -> None:
        """Runs the trials to their ends, or until ``running.stop`` is set; everything that happened is recorded."""
        ...

    def results(self, study: Study, directory: Path, /) -> list[str]:
        """Lines that say where results are, besides the report and MLflow."""
        ...

    def ending(self, study: Study, progress: StudyState, /) -> Ending:
        """How it ended. Raises UserError if it could not run because of something that a person can put right."""
        ...
