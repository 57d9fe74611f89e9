"""Running a study that has passed every check that needs no Ray, and saying how it went."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from rich.console import Console

from dashboards.live_report import LiveReport
from nfnet_ray.cluster.connection.address import temporary_folder
from nfnet_ray.cluster.connection.lifeline import Look, look_at_ray, loss_is_noticed
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources, workers_on_a_gpu
from nfnet_ray.cluster.connection.session import check_temporary_folder, ray_session
from nfnet_ray.command_line.exit_code import end_with
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, asked_to_stop
from nfnet_ray.command_line.program import goes_on_without_output
from nfnet_ray.command_line.terminal import say, say_whole, waiting
from nfnet_ray.errors import StopsStudyError, StorageError, UserError
from nfnet_ray.places import in_words, lost_place, remedy_for, which_is_lost
from nfnet_ray.printable import display_path
from nfnet_ray.study.confirmation import reruns_to_run
from nfnet_ray.study.contenders import further_to_run
from nfnet_ray.study.cost.plan import epoch_arithmetic
from nfnet_ray.study.cost.spending import CapWatch, ReachedCap
from nfnet_ray.study.live.display import StudyDisplay
from nfnet_ray.study.live.gauges import samples
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.study import TRIALS_FOLDER, Study
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.destination.not_recorded import NotRecorded
from nfnet_ray.tracking.events import StudyOutcome, study_ended
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from nfnet_ray.tracking.running_lock import alone_with
from studies.running.execution.console_output import (
    say_ended_at_cap,
    say_greeting,
    say_nothing_to_train,
    say_places,
    say_result,
    say_sharing_and_cost,
)
from studies.running.execution.delivery import DEADLINE_SECONDS_IF_STOPPED, deliver
from studies.running.execution.last_checks import check_cores, check_journal_is_as_it_was, check_nodes
from studies.running.execution.notification import notify_of_end, notify_of_failure
from studies.running.execution.recording import record_beginning, record_without_training
from studies.running.execution.study_run import StudyRun
from studies.running.planning.plan_text import priced, refuse_too_little_memory
from studies.running.runner import EXIT_FAILED_TRIALS, Places, RunningStudy, WorkerDemand

EXIT_NOT_RECORDED = 3  # everything has been trained; 2 is an error of use


class _Outcome(NamedTuple):
    """How an execution ended: the cap that ended it early, and whether the report and MLflow have everything."""

    reached: ReachedCap | None
    has_report: bool
    is_delivered: bool


def execute(run: StudyRun, address: str | None, demand: WorkerDemand, console: Console) -> int:
    """Runs the trials that have not ended, says how it went, and delivers everything to MLflow.

    Args:
        run: the study.
        address: the Ray cluster to connect to, or None to start Ray on this machine.
        demand: the workers that were asked for.
        console: where everything is printed.

    Returns:
        The exit code: 0, also if the study ended at its cap; 1 if trials failed, 3 if MLflow does not have
        everything or the report could not be written, 130 if the study was stopped.

    Raises:
        UserError: the study cannot run, or had to stop, because of something that a person can put right.
    """
    sessions_before = len(run.progress.sessions)
    try:
        return _execute(run, address, demand, console)
    except Exception as error:
        if len(run.progress.sessions) > sessions_before:  # else nothing has begun, or another process runs it
            why = str(error) if isinstance(error, UserError) else f"it met a bug, {type(error).__name__}"
            notify_of_failure(run, why, console)
        raise


def _execute(run: StudyRun, address: str | None, demand: WorkerDemand, console: Console) -> int:
    sessions_before = len(run.progress.sessions)
    spool = Spool(run.directory / JOURNAL_FILE, run.directory / SPOOL_FILE)
    sink = MLflowSink(run.tracking_uri, spool) if run.is_recorded else NotRecorded()
    used_up = run.used_up_cap() if run.has_more else None
    if used_up is not None:
        if run.extended is not None:
            raise UserError(
                f"{run.study.name} cannot be extended: {used_up.reason}; give a higher one, such as "
                f"{used_up.flag} {used_up.higher:.10g}"
            )
        # The driver that used the cap up has written the report.
        outcome = _Outcome(used_up, True, not spool.pending_count() or deliver(run, sink, console))
    elif run.has_more:
        try:
            outcome = _train(run, address, demand, sink, console)
        except KeyboardInterrupt:
            if run.progress.started is None:
                raise
            sink.close(0)
            say(console, "Stopped at once. Resume with:")
            say_whole(console, f"  {run.command}")
            return EXIT_INTERRUPTED
    else:
        say_nothing_to_train(run, console)
        record_without_training(run, sink.wake)
        has_report = say_result(run, console)
        outcome = _Outcome(None, has_report, deliver(run, sink, console))

    ending = None if outcome.reached else run.runner.ending(run.study, run.progress)
    # Before the command that resumes the study, which is the last line.
    notify_of_end(run, sessions_before, console)
    exit_code = 0
    if outcome.reached:
        say_ended_at_cap(run, outcome.reached, console)
        exit_code = EXIT_FAILED_TRIALS if run.has_failed_trials else 0
    elif ending is not None and ending.exit_code:
        say(console, ending.sentence)
        say_whole(console, f"  {run.command}")
        exit_code = ending.exit_code
    is_recorded = outcome.is_delivered and outcome.has_report
    return exit_code or (0 if is_recorded else EXIT_NOT_RECORDED)


def _train(
    run: StudyRun,
    address: str | None,
    demand: WorkerDemand,
    sink: MLflowSink | NotRecorded,
    console: Console,
) -> _Outcome:
    """Connects to Ray, runs the trials and says how it went."""
    to_do = _trials_to_do(run)
    if address is None:
        check_cores(run, demand)
        check_temporary_folder()
    say_greeting(run, to_do, console)
    with (
        _failures_in_words(run, sink),
        _announced_session(run, address, console) as resources,
        _gauges_exported(run, address, sink),
    ):
        look = look_at_ray(address)
        worker = run.runner.worker(resources, demand)
        check_nodes(run, address, resources, worker)
        with alone_with(run.directory):
            check_journal_is_as_it_was(run)
            number = run.runner.trials_at_once(to_do, resources, demand, worker)
            places = Places(resources, worker, number, _nodes_with_mps(worker))
            reached = _run_trials(run, places, look, sink, console)
            # While still connected, because leaving Ray may take long.
            has_report = say_result(run, console)
            is_delivered = deliver(run, sink, console, is_urgent=reached is None)
    return _Outcome(reached, has_report, is_delivered)


def _trials_to_do(run: StudyRun) -> int:
    """The number of trials to be run, including those that the study will add."""
    added = further_to_run(run.study, run.progress)[1] + reruns_to_run(run.study, run.progress)
    return len(run.unfinished_trials()) + len(run.study.names_to_come()) + added


@contextmanager
def _failures_in_words(run: StudyRun, sink: MLflowSink | NotRecorded) -> Generator[None]:
    """Within the block, a full or missing disk raises StorageError, and MLflow gets what is left before a stop."""
    try:
        yield
    except StopsStudyError:
        sink.close(DEADLINE_SECONDS_IF_STOPPED)
        raise
    except Exception as error:
        lost = lost_place(error)
        if lost is None:
            raise
        place = which_is_lost(run.directory, temporary_folder() / "ray")
        why = f"{display_path(place)} cannot be written ({in_words(lost)}); {remedy_for(lost)}"
        raise StorageError(run.stopped_sentence(why)) from error


@contextmanager
def _announced_session(run: StudyRun, address: str | None, console: Console) -> Generator[Resources]:
    """A Ray session. Ray takes ten seconds and more to start; a spinner is shown meanwhile."""
    warning = f"{run.study.name}: nobody reads its output any more; it continues and keeps all results"
    with ExitStack() as stack:
        stack.enter_context(goes_on_without_output(warning))
        with waiting(console, f"Connecting to Ray at {address} …" if address else "Starting Ray …"):
            resources = stack.enter_context(ray_session(address))
        yield resources


@contextmanager
def _gauges_exported(run: StudyRun, address: str | None, sink: MLflowSink | NotRecorded) -> Generator[None]:
    """Within the block, the metrics of the cluster include this study's; a local Ray exports none."""
    if address is None:
        yield
        return
    from nfnet_ray.cluster.gauge_export import gauges_are_exported

    with gauges_are_exported(lambda: samples(run.study.name, run.progress, time.time(), sink.backlog)):
        yield


def _nodes_with_mps(worker: WorkerResources) -> dict[str, bool]:
    """{node: whether MPS runs there}; empty unless workers share a GPU."""
    from nfnet_ray.cluster.connection.nodes import nodes_with_mps

    return nodes_with_mps(worker) if workers_on_a_gpu(worker.gpus) > 1 else {}


def _run_trials(
    run: StudyRun, places: Places, look: Look, sink: MLflowSink | NotRecorded, console: Console
) -> ReachedCap | None:
    """Runs the trials, and those that a search adds; returns the cap that has ended the study early."""
    study, trials = _study_on_its_places(run, places), run.unfinished_trials()
    say_places(run, places, console)
    refuse_too_little_memory(run.study, run.directory.parent, places.resources, places.worker)
    say_sharing_and_cost(run, places, console)
    console.print()
    started_at = time.monotonic() - run.progress.wall_seconds
    stop = threading.Event()
    display = StudyDisplay(
        study,
        run.progress,
        run.directory / TRIALS_FOLDER,
        lambda: sink.status,
        console,
        epoch_arithmetic(run.study.trials(), run.data),
    )
    with Journal(run.directory / JOURNAL_FILE) as journal, LiveReport(run.directory) as report:
        on_event = partial(_show_event, run, display, report, sink)
        recorder = Recorder(journal, run.progress, on_event, display.note, on_lost=stop.set)
        record_beginning(run, recorder, study, places)
        cap_watch = CapWatch(
            recorder,
            run.caps,
            run.accelerator,
            stop,
            lambda cap: display.note(f"Ended early: {cap.reason}. {run.runner.stopping}"),
        )
        end_at_once = partial(_end_at_once, run, recorder, started_at, display, sink, console)
        with (
            display,
            cap_watch,
            loss_is_noticed(look, lambda: recorder.is_cut_off, recorder.mark_cut_off, end_at_once),
            asked_to_stop(stop, lambda: display.note(run.runner.stopping)),
        ):
            run.runner.run(
                RunningStudy(
                    study,
                    trials,
                    run.data,
                    run.directory,
                    run.progress,
                    places.worker,
                    places.number,
                    recorder,
                    stop,
                    display.note,
                )
            )
        outcome: StudyOutcome = "interrupted" if stop.is_set() else "finished"
        reached = cap_watch.reached if run.has_more else None
        reason = reached.reason if reached else None
        recorder.record(study_ended(outcome, time.monotonic() - started_at, reason))
    if recorder.lost:
        raise StopsStudyError(run.stopped_sentence(recorder.lost))
    return reached


def _study_on_its_places(run: StudyRun, places: Places) -> Study:
    """The study with what depends on its places: the lag of its search, and the seconds that money pays for."""
    study = run.study
    if study.is_adaptive and run.progress.started is None:
        study = replace(study, lag=math.ceil(places.number / len(study.seeds)))
    return priced(study, run.caps, places.worker)


def _show_event(
    run: StudyRun, display: StudyDisplay, report: LiveReport, sink: MLflowSink | NotRecorded
) -> None:
    """Shows an event that has just been recorded in the table, the report and MLflow."""
    display.update()
    if run.has_epochs:
        sink.start()  # not earlier: importing mlflow would delay the first trials
        report.wake()
    sink.wake()


def _end_at_once(
    run: StudyRun,
    recorder: Recorder,
    started_at: float,
    display: StudyDisplay,
    sink: MLflowSink | NotRecorded,
    console: Console,
) -> None:
    """Ends this process as :func:`execute` would, while the main thread waits for a Ray that has gone."""
    error = StopsStudyError(run.stopped_sentence(recorder.lost or ""))

    def tell_others() -> None:  # Ray may end this process meanwhile
        sink.close(DEADLINE_SECONDS_IF_STOPPED)
        notify_of_failure(run, str(error), console)

    try:
        for trial in run.progress.trials.values():
            if trial.state == "running":
                recorder.end_trial(trial.name, "interrupted", None)
        recorder.record(study_ended("interrupted", time.monotonic() - started_at))
        recorder.close()
        display.close()
    finally:
        end_with(error, tell_others)
