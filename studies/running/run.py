"""Running a study from its first event to its last words."""

from __future__ import annotations

import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console

from dashboards.live_report import LiveReport
from dashboards.report import REPORT_FILE, write_report
from nfnet_ray.cluster.connection.address import temporary_folder
from nfnet_ray.cluster.connection.session import (
    Resources,
    available_cpus,
    check_temporary_folder,
    ray_session,
)
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, asked_to_stop
from nfnet_ray.command_line.program import goes_on_without_output
from nfnet_ray.command_line.terminal import say, say_whole, waiting
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import StopsStudyError, StorageError, UserError
from nfnet_ray.places import in_words, lost_place, remedy_for, which_is_lost
from nfnet_ray.printable import interpreter, shell_command, shown
from nfnet_ray.study.display import StudyDisplay, reported_epochs, trial_table
from nfnet_ray.study.plan import epoch_arithmetic
from nfnet_ray.study.state import StudyProgress
from nfnet_ray.study.study import METRIC, TRIALS_FOLDER, Study, Trial
from nfnet_ray.tracking.events import JOURNAL_FILE, Journal, StudyStarted
from nfnet_ray.tracking.sink import MLflowSink
from nfnet_ray.tracking.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.uri import without_password
from nfnet_ray.version import __version__
from nfnet_ray.wording import clock_time, count
from studies.running.source import source_version

if TYPE_CHECKING:
    from nfnet_ray.cluster.worker import WorkerResources
    from nfnet_ray.study.recorder import Recorder

LOCK_FILE = "running.lock"
EXIT_FAILED_TRIALS = 1
EXIT_NOT_IN_MLFLOW = 3  # all has been trained; 2 is an error of use
# To deliver what is left once the trials are over: on a busy machine importing mlflow and making its database alone
# took more than 20 s. Where no server answers there is less to wait for.
TRACKING_DEADLINE_SECONDS, UNANSWERED_SECONDS = 180.0, 20.0
# After SIGTERM: what stops us may wait for 30 s in all before it kills (Kubernetes, Slurm), and nothing is lost.
TRACKING_DEADLINE_SECONDS_IF_STOPPED = 10.0


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
        "Stopping: the running trials keep a checkpoint of this step. Once more to leave at once."
    )

    workers_flag: ClassVar[str] = "--workers-per-trial"

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
            if address is None:
                self._check_cores(demand)
                check_temporary_folder()
            self._greet(len(trials), console)
            try:
                with self._announced_session(address, demand, console) as resources:
                    self._check_nodes(address, resources, demand)
                    with self._alone():
                        self._run_trials(trials, resources, demand, sink, console)
                        self._say_result(console)  # before Ray is left, for nothing may come between
                        is_delivered = self._deliver(sink, console)
            except StopsStudyError:
                sink.close(TRACKING_DEADLINE_SECONDS_IF_STOPPED)
                raise
            except Exception as error:
                lost = lost_place(error)
                if lost is None:
                    raise
                place = which_is_lost(self.directory, temporary_folder() / "ray")
                why = f"{shown(place)} cannot be written ({in_words(lost)}); {remedy_for(lost)}"
                raise StorageError(self._stopped_sentence(why)) from error
            except KeyboardInterrupt:
                if self.progress.started is None:
                    raise
                sink.close(0)
                say(console, "Stopped at once. Resume with:")
                say_whole(console, f"  {self.command}")
                return EXIT_INTERRUPTED
        else:
            say(console, f"All trials of {self.study.name} have ended; there is nothing to resume.")
            self._say_result(console)
            is_delivered = self._deliver(sink, console)
        return self._exit_code(console) or (0 if is_delivered else EXIT_NOT_IN_MLFLOW)

    def _exit_code(self, console: Console) -> int:
        states = {trial.state for trial in self.progress.trials.values()}
        if states & {None, "running", "interrupted"}:
            say(console, "Stopped; what was finished is kept. Resume with:")
            say_whole(console, f"  {self.command}")
            return EXIT_INTERRUPTED
        if "failed" in states:
            say(console, "Some trials failed. Run them again with:")
            say_whole(console, f"  {self.command}")
            return EXIT_FAILED_TRIALS
        return 0

    def _check_cores(self, demand: WorkerDemand) -> None:
        """Raises UserError, before a Ray is started here, if this machine has not the cores for it."""
        least, cpus, here = demand.min_workers or demand.workers, demand.cpus or 1, available_cpus()
        if least * cpus > here:
            raise UserError(
                f"{least} x ({cpus} CPU) do not fit: this machine has {count(here, 'core')} for it; ask for fewer with "
                f"{self.workers_flag} or --cpus-per-worker"
                + (", or resume it on a machine that has them" if self.progress.started else "")
            )

    def _check_nodes(self, address: str | None, resources: Resources, demand: WorkerDemand) -> None:
        """Raises UserError if a node that may train has not the data that this machine has, or if nothing fits here."""
        from data_prep.byte_progress import bytes_on_stderr
        from nfnet_ray.cluster.connection.nodes import check_nodes
        from nfnet_ray.cluster.connection.resources import check_places

        worker = self._each_worker(resources, demand)
        if address is None:  # this machine has looked at its data, and does not grow
            check_places(resources, worker, self.workers_flag)
            return
        check_nodes(self.data, worker, verify=self.verifies, progress=bytes_on_stderr)

    @contextmanager
    def _announced_session(
        self, address: str | None, demand: WorkerDemand, console: Console
    ) -> Iterator[Resources]:
        """Ray takes ten seconds and more to start, in which a person sees that something happens."""
        warning = f"{self.study.name}: nobody reads its output any more; it goes on, and keeps all results"
        with ExitStack() as stack:
            stack.enter_context(goes_on_without_output(warning))
            with waiting(console, f"Connecting to Ray at {address} …" if address else "Starting Ray …"):
                resources = stack.enter_context(self._session(address, demand))
            yield resources

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
        from nfnet_ray.study.recorder import Recorder

        worker = self._worker(trials, resources, demand, console)
        started_at = time.monotonic() - self.progress.wall_seconds
        stop = threading.Event()
        display = StudyDisplay(
            self.study,
            self.progress,
            self.directory / TRIALS_FOLDER,
            lambda: sink.status,
            console,
            epoch_arithmetic(self.study.trials(), self.data),
        )
        with Journal(self.directory / JOURNAL_FILE) as journal, LiveReport(self.directory) as report:

            def on_event() -> None:
                display.update()
                if any(trial.epochs for trial in self.progress.trials.values()):
                    sink.start()  # not before: importing mlflow would hold up the first trials
                    report.wake()
                sink.wake()

            recorder = Recorder(journal, self.progress, on_event, display.note, on_lost=stop.set)
            if self.progress.started is None:
                recorder.record(self._started_event(resources, worker))
            elif self.changed:
                recorder.record(
                    {"event": "study_resumed", "time": time.time(), "changed": dict(self.changed)}
                )
            else:
                recorder.record({"event": "study_resumed", "time": time.time()})
            with display, asked_to_stop(stop, lambda: display.note(self.stopping)):
                self._train(trials, recorder, resources, demand, worker, stop, display)
            recorder.record(
                {
                    "event": "study_ended",
                    "time": time.time(),
                    "state": "interrupted" if stop.is_set() else "finished",
                    "wall_seconds": time.monotonic() - started_at,
                }
            )
        if recorder.lost:
            raise StopsStudyError(self._stopped_sentence(recorder.lost))

    def _stopped_sentence(self, why: str) -> str:
        epochs = sum(len(trial.epochs) for trial in self.progress.trials.values())
        kept = f"what was kept before ({count(epochs, 'epoch')}) is sound"
        return f"stopped, as {why}, then resume with `{self.command}`; {kept}"

    def _each_worker(self, resources: Resources, demand: WorkerDemand) -> WorkerResources:
        from nfnet_ray.cluster.connection.resources import worker_resources

        return worker_resources(resources, demand.workers, demand.cpus, demand.gpus)

    def _worker(
        self, trials: list[Trial], resources: Resources, demand: WorkerDemand, console: Console
    ) -> WorkerResources:
        """What each worker is given; says so."""
        worker = self._each_worker(resources, demand)
        side_by_side = self._side_by_side(trials, resources, demand, worker)
        say(console, f"Ray: {resources.description}; trials side by side: {side_by_side}.")
        console.print()
        return worker

    def _side_by_side(
        self, trials: list[Trial], resources: Resources, demand: WorkerDemand, worker: WorkerResources
    ) -> int:
        from nfnet_ray.cluster.connection.resources import concurrent_trials

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
        from nfnet_ray.cluster.connection.placement import waiting_is_explained
        from nfnet_ray.cluster.driver import run_trials

        side_by_side = self._side_by_side(trials, resources, demand, worker)

        def wanted() -> int:
            return min(side_by_side, len(self.progress.unfinished)) * worker.workers

        with waiting_is_explained(wanted, worker, display.note):
            run_trials(
                trials,
                self.study,
                self.data.fingerprint,
                recorder,
                self.directory,
                side_by_side,
                worker,
                stop,
            )

    def _say_result(self, console: Console) -> None:
        """The table, the answer, and where the report is."""
        from nfnet_ray.analysis import best_per_stratum, load_study

        console.print(trial_table(self.study, self.progress, reported_epochs))
        console.print()
        answers = best_per_stratum(load_study(self.directory))
        for answer in answers:
            say(console, answer.sentence())
        if not answers:
            say(console, "No trial finished with an accuracy, so there is no best setting.")
        console.print()
        say(console, f"Took:    {clock_time(self.progress.wall_seconds)}")
        say_whole(console, f"Report:  {shown(write_report(self.directory))}")

    def _deliver(self, sink: MLflowSink, console: Console) -> bool:
        """Whether MLflow has everything; says what it has not."""
        sink.start()
        sink.attach(self.directory / REPORT_FILE)
        stopped = self.progress.unfinished
        if stopped:
            sink.close(TRACKING_DEADLINE_SECONDS_IF_STOPPED)
        else:
            sink.close(TRACKING_DEADLINE_SECONDS, UNANSWERED_SECONDS)
        say_whole(console, f"MLflow:  {self._compare_command()}")
        words = sink.last_words(self.command)
        for sentences, command in words:
            say(console, sentences)
            if command:
                say_whole(console, f"  {command}")
        return not words

    def _greet(self, trials: int, console: Console) -> None:
        say_question(self.study, console)
        extent = f"{count(trials, 'trial')} of at most {count(self.study.epochs, 'epoch')}"
        say(console, f"{extent} {on_images(self.data)}.")
        self._say_places(console)

    def _say_places(self, console: Console) -> None:
        """Where to look while it runs."""
        say_whole(console, f"Report:  {shown(self.directory / REPORT_FILE)}")
        say_whole(console, f"MLflow:  {self._compare_command()}")
        say(console, "Both can be opened once the first epoch is done.")

    def _compare_command(self) -> str:
        return shell_command([interpreter(), "-m", "dashboards.compare", shown(self.directory)])

    def _started_event(self, resources: Resources, worker: WorkerResources) -> StudyStarted:
        study, data = self.study, self.data
        return {
            "event": "study_started",
            "time": time.time(),
            "study": {
                "name": study.name,
                "question": study.question,
                "command": shell_command([interpreter(), *map(without_password, sys.orig_argv[1:])]),
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
                    "nfnet_ray": __version__,
                    "torch": version("torch"),
                    "ray": version("ray"),
                    "python": platform.python_version(),
                    **source_version(),
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


def say_question(study: Study, console: Console) -> None:
    """The name of a study or training, and its question."""
    say(console, study.question, title=study.name)


def on_images(data: DatasetSummary) -> str:
    """``on 1,437 training images (10 classes), validated on 360``."""
    return (
        f"on {count(data.train_images, 'training image')} ({count(len(data.class_names), 'class')}), "
        f"validated on {data.validation_images:,}"
    )
