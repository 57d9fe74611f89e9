"""Running a study from its first event to its last words."""

from __future__ import annotations

import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console

import nfnet_ray
from dashboards.report import REPORT_FILE, write_report
from nfnet_ray.cluster.journal import StudyProgress
from nfnet_ray.cluster.progress import StudyDisplay, clock_time, reported_epochs, trial_table
from nfnet_ray.cluster.session import Resources, ray_session
from nfnet_ray.cluster.study import METRIC, TRIALS_FOLDER, Study, Trial
from nfnet_ray.data.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import JOURNAL_FILE, Journal, StudyStarted
from nfnet_ray.tracking.sink import MLflowSink
from nfnet_ray.tracking.spool import SPOOL_FILE, Spool

if TYPE_CHECKING:
    from nfnet_ray.cluster.recorder import Recorder
    from nfnet_ray.cluster.worker import WorkerResources

LOCK_FILE = "running.lock"
EXIT_FAILED_TRIALS = 1
EXIT_INTERRUPTED = 130  # what a shell gives a program that Ctrl-C ended
TRACKING_DEADLINE_SECONDS = 20.0  # to deliver what is left once the trials are over


@dataclass(frozen=True)
class WorkerDemand:
    """What the command line asks for: workers of a trial, cores and GPUs of each, trials side by side.

    None leaves it to what the cluster has. A training may go on with ``min_workers`` of its workers.
    """

    workers: int
    cpus: int | None
    gpus: float | None
    min_workers: int | None = None
    trials_at_once: int | None = None


@dataclass(frozen=True)
class StudyRun:
    """A study that has passed every check that needs no Ray. ``command`` goes on with it after a stop.

    ``changed`` are fields of its Recipe that somebody who goes on with it has forced upon it.
    """

    stopping: ClassVar[str] = (
        "Stopping: the running trials keep their last epoch. Once more to leave at once."
    )

    study: Study
    data: DatasetSummary
    directory: Path
    tracking_uri: str
    command: str
    progress: StudyProgress
    verifies: bool = False
    """Whether the nodes of a cluster check every byte of their data before the first trial."""
    changed: Mapping[str, Any] = field(default_factory=dict)

    def execute(self, address: str | None, demand: WorkerDemand, console: Console) -> int:
        """Runs what has not ended yet, says how it went, and delivers all of it to MLflow; the exit code."""
        todo = set(self.progress.unfinished)
        trials = [trial for trial in self.study.trials() if trial.name in todo]
        journal_path = self.directory / JOURNAL_FILE
        sink = MLflowSink(self.tracking_uri, Spool(journal_path, self.directory / SPOOL_FILE))
        if trials:
            self._greet(len(trials), console)
            try:
                with self._session(address, demand) as resources:
                    if address is not None:  # else it is this machine, which has looked at its data
                        self._check_nodes(resources, demand)
                    with self._alone():
                        self._run_trials(trials, resources, demand, sink, console)
                        self._say_result(console)  # before Ray is left, for nothing may come between
                        self._deliver(sink, console)
            except KeyboardInterrupt:
                if self.progress.started is None:
                    raise
                console.print(f"Stopped at once. Go on with:  {self.command}", soft_wrap=True)
                return EXIT_INTERRUPTED
        else:
            console.print(f"All trials of {self.study.name} have ended; there is nothing to go on with.")
            self._say_result(console)
            self._deliver(sink, console)
        return self._exit_code(console)

    def _exit_code(self, console: Console) -> int:
        states = {trial.state for trial in self.progress.trials.values()}
        if states & {None, "running", "interrupted"}:
            console.print(f"Stopped; what was finished is kept. Go on with:  {self.command}", soft_wrap=True)
            return EXIT_INTERRUPTED
        if "failed" in states:
            console.print(f"Some trials failed. Run them again with:  {self.command}", soft_wrap=True)
            return EXIT_FAILED_TRIALS
        return 0

    def _check_nodes(self, resources: Resources, demand: WorkerDemand) -> None:
        """Raises UserError if a node that may train has not the data that this machine has."""
        from data_prep.byte_progress import bytes_on_stderr
        from nfnet_ray.cluster.nodes import check_nodes

        worker = self._each_worker(resources, demand)
        check_nodes(self.data, worker, verify=self.verifies, progress=bytes_on_stderr)

    def _session(self, address: str | None, demand: WorkerDemand) -> AbstractContextManager[Resources]:
        return ray_session(address, train_in_tune=demand.workers > 1)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps a second process, on any machine that shares the storage, from running the same study."""
        from filelock import FileLock, Timeout

        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / LOCK_FILE, timeout=0)
        try:
            with lock:
                yield
        except Timeout:
            raise UserError(
                f"another process is running {self.study.name}: wait until it has ended, or stop it"
            ) from None

    def _run_trials(
        self,
        trials: list[Trial],
        resources: Resources,
        demand: WorkerDemand,
        sink: MLflowSink,
        console: Console,
    ) -> None:
        # Ray reads its settings when it is imported, so it is imported here and not above.
        from nfnet_ray.cluster.recorder import Recorder

        worker = self._worker(trials, resources, demand, console)
        started_at = time.monotonic() - self.progress.wall_seconds
        stop = threading.Event()
        display = StudyDisplay(
            self.study, self.progress, self.directory / TRIALS_FOLDER, lambda: sink.status, console
        )
        with Journal(self.directory / JOURNAL_FILE) as journal:

            def on_event() -> None:
                display.update()
                if any(trial.epochs for trial in self.progress.trials.values()):
                    sink.start()  # not before: importing mlflow would hold up the first trials
                sink.wake()

            recorder = Recorder(journal, self.progress, on_event)
            if self.progress.started is None:
                recorder.record(self._started_event(resources, worker))
            elif self.changed:
                recorder.record(
                    {"event": "study_resumed", "time": time.time(), "changed": dict(self.changed)}
                )
            else:
                recorder.record({"event": "study_resumed", "time": time.time()})
            with display, _ctrl_c_sets(stop, display, self.stopping):
                self._train(trials, recorder, resources, demand, worker, stop, display)
            recorder.record(
                {
                    "event": "study_ended",
                    "time": time.time(),
                    "state": "interrupted" if stop.is_set() else "finished",
                    "wall_seconds": time.monotonic() - started_at,
                }
            )

    def _each_worker(self, resources: Resources, demand: WorkerDemand) -> WorkerResources:
        from nfnet_ray.cluster.resources import worker_resources

        return worker_resources(resources, demand.workers, demand.cpus, demand.gpus)

    def _worker(
        self, trials: list[Trial], resources: Resources, demand: WorkerDemand, console: Console
    ) -> WorkerResources:
        """What each worker is given; says so."""
        worker = self._each_worker(resources, demand)
        side_by_side = self._side_by_side(trials, resources, demand, worker)
        console.print(f"Ray: {resources.description}; trials side by side: {side_by_side}.\n")
        return worker

    def _side_by_side(
        self, trials: list[Trial], resources: Resources, demand: WorkerDemand, worker: WorkerResources
    ) -> int:
        from nfnet_ray.cluster.resources import concurrent_trials

        return min(demand.trials_at_once or concurrent_trials(resources, worker), len(trials))

    def _train(
        self,
        trials: list[Trial],
        recorder: Recorder,
        resources: Resources,
        demand: WorkerDemand,
        worker: WorkerResources,
        stop: threading.Event,
        display: StudyDisplay,
    ) -> None:
        """Runs the trials to their ends, or until ``stop`` is set."""
        from nfnet_ray.cluster.driver import run_trials

        del display  # Tune's callback shows what happens
        side_by_side = self._side_by_side(trials, resources, demand, worker)
        run_trials(trials, self.study, recorder, self.directory, side_by_side, worker, stop)

    def _say_result(self, console: Console) -> None:
        """The table, the answer, and where the report is."""
        from nfnet_ray.analysis import best_per_stratum, load_study

        console.print(trial_table(self.study, self.progress, reported_epochs))
        console.print()
        answers = best_per_stratum(load_study(self.directory))
        for answer in answers:
            console.print(answer.sentence(), soft_wrap=True)
        if not answers:
            console.print("No trial came to its end with an accuracy, so there is no best setting.")
        console.print(f"\nTook:    {clock_time(self.progress.wall_seconds)}")
        console.print(f"Report:  {write_report(self.directory)}", soft_wrap=True)

    def _deliver(self, sink: MLflowSink, console: Console) -> None:
        sink.start()
        sink.attach(self.directory / REPORT_FILE)
        missing = sink.close(TRACKING_DEADLINE_SECONDS)
        console.print(
            f"MLflow:  {interpreter()} -m dashboards.compare {shown(self.directory)}", soft_wrap=True
        )
        if missing:
            console.print(
                f"         {missing} events could not be delivered yet ({sink.status}). They are kept in "
                f"{shown(self.directory / JOURNAL_FILE)}; deliver them with:  {self.command}",
                soft_wrap=True,
            )

    def _greet(self, count: int, console: Console) -> None:
        data = self.data
        console.print(f"[bold]{self.study.name}[/bold]: {self.study.question}")
        console.print(
            f"{count} trials of at most {self.study.epochs} epochs on {data.train_images:,} training images "
            f"({len(data.class_names)} classes), validated on {data.validation_images:,}. "
            f"Results: {shown(self.directory)}",
            soft_wrap=True,
        )

    def _started_event(self, resources: Resources, worker: WorkerResources) -> StudyStarted:
        study, data = self.study, self.data
        return {
            "event": "study_started",
            "time": time.time(),
            "study": {
                "name": study.name,
                "question": study.question,
                "command": shlex.join([interpreter(), *sys.orig_argv[1:]]),
                "metric": METRIC,
                "mode": "max",
                "space": {name: list(values) for name, values in study.space.items()},
                "seeds": list(study.seeds),
                "epochs": study.epochs,
                "halving": study.halving.description() if study.halving else None,
                "worker": {
                    "workers": worker.workers,
                    "cpus": worker.cpus,
                    "gpus": worker.gpus,
                    "min_workers": worker.min_workers,
                },
                "recipe": study.recipe.to_values(),
                "data": {
                    "path": str(data.path),
                    "name": data.path.stem,
                    "fingerprint": data.fingerprint,
                    "classes": len(data.class_names),
                    "train_images": data.train_images,
                    "validation_images": data.validation_images,
                },
                "hardware": {
                    "description": resources.description,
                    "cpus": resources.cpus,
                    "gpus": resources.gpus,
                    "memory_gib": resources.memory_gib,
                },
                "versions": {
                    "nfnet_ray": nfnet_ray.__version__,
                    "torch": version("torch"),
                    "ray": version("ray"),
                    "python": platform.python_version(),
                    "commit": _commit(),
                },
            },
            "trials": [
                {
                    "name": trial.name,
                    "point": dict(trial.point),
                    "recipe": dict(trial.point) | {"seed": trial.recipe.seed},
                }
                for trial in study.trials()
            ],
        }


def shown(path: Path) -> str:
    """A path as a person would type it here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def interpreter() -> str:
    """The Python that runs this, as a person would type it here: ``.venv/bin/python``."""
    python = Path(sys.executable)  # not resolved: the link inside an environment is what makes it one
    return str(python.relative_to(Path.cwd())) if python.is_relative_to(Path.cwd()) else str(python)


@contextmanager
def _ctrl_c_sets(stop: threading.Event, display: StudyDisplay, note: str) -> Iterator[None]:
    """While this lasts the first Ctrl-C (or SIGTERM) asks the study to stop; a second one ends it at once."""

    def ask(_signal: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        display.note(note)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _commit() -> str:
    """The commit that runs, empty where there is no repository."""
    folder = Path(nfnet_ray.__file__).parent
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return git.stdout.strip()
