"""Running a study that has passed every check that needs no Ray, and saying how it went."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dashboards.live_report import LiveReport
from dashboards.report import REPORT_FILE, renewed_report
from nfnet_ray.cluster.connection.address import temporary_folder
from nfnet_ray.cluster.connection.gpu_sharing import sharing_sentence
from nfnet_ray.cluster.connection.lifeline import Look, look_at_ray, loss_is_noticed
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources, workers_on_a_gpu
from nfnet_ray.cluster.connection.session import check_temporary_folder, ray_session
from nfnet_ray.command_line.exit_code import end_with
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, asked_to_stop
from nfnet_ray.command_line.program import goes_on_without_output
from nfnet_ray.command_line.terminal import say, say_whole, waiting
from nfnet_ray.data.batching import images_of_share
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import StopsStudyError, StorageError, UserError
from nfnet_ray.models.own.source import COPIES_FOLDER, NetworkSource, keep_copies
from nfnet_ray.places import in_words, lost_place, remedy_for, which_is_lost
from nfnet_ray.printable import display_path, interpreter, shell_command
from nfnet_ray.processor import available_cpus
from nfnet_ray.study.annotations import Annotations
from nfnet_ray.study.confirmation import reruns_to_run
from nfnet_ray.study.contenders import further_to_run
from nfnet_ray.study.cost.plan import epoch_arithmetic
from nfnet_ray.study.cost.spending import Caps, CapWatch, PaidTime, ReachedCap, accelerator_word
from nfnet_ray.study.display import StudyDisplay, best_so_far, reported_epochs, trial_table
from nfnet_ray.study.extension import Extension
from nfnet_ray.study.gauges import samples
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.search.upcoming import has_more
from nfnet_ray.study.study import TRIALS_FOLDER, Study, Trial
from nfnet_ray.study.webhook import Happening, notify, outcome_text, webhook_event
from nfnet_ray.tracking.descriptions import CapsDescription, Hardware
from nfnet_ray.tracking.destination.not_recorded import NotRecorded
from nfnet_ray.tracking.destination.uri import NOT_RECORDED
from nfnet_ray.tracking.events import StudyOutcome, StudyStarted, study_annotated, study_ended, study_resumed
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal, read_events
from nfnet_ray.tracking.running_lock import alone_with
from nfnet_ray.tracking.sink import MLflowSink
from nfnet_ray.tracking.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.wording import clock_time, count
from studies.running.checks import network_sources
from studies.running.kept_files import keep_program, keep_trials
from studies.running.planning.plan_text import expected_cost, priced, refuse_too_little_memory
from studies.running.runner import EXIT_FAILED_TRIALS, Ending, Places, Runner, RunningStudy, WorkerDemand
from studies.running.started_event import (
    hardware,
    network_description,
    started_event,
    versions,
    without_secrets,
)
from studies.running.trials import TuneRunner

# Of the idle time: what a short study loses to Ray's start is nobody's concern.
WORTH_SAYING, SECONDS_WORTH_SAYING = 0.1, 60.0
EXIT_NOT_RECORDED = 3  # everything has been trained; 2 is an error of use
# To deliver what is left after the last trial: on a busy machine importing mlflow and creating its database alone took
# more than 20 s. If no server answers, the second one applies.
TRACKING_DEADLINE_SECONDS, UNANSWERED_SECONDS = 180.0, 20.0
# After SIGTERM: Kubernetes and Slurm wait 30 s in all before they kill. Nothing is lost.
TRACKING_DEADLINE_SECONDS_IF_STOPPED = 10.0


@dataclass(frozen=True)
class StudyRun:
    """A study, and everything that is needed to run it.

    Attributes:
        command: resumes the study after a stop.
        progress: how far it is; its ``started`` is None if it has not begun.
        runner: runs its trials.
        verifies: whether the nodes of a cluster check every byte of their data before the first trial.
        changed: {field of the Recipe: value} that whoever resumes the study has forced upon it.
        extended: what the study becomes; ``progress`` has it already, and the journal does not.
        annotations: notes and tags to keep; those that a resumed study has already are not repeated.
        notify_url: a webhook that is told how the study ended, or None.
        caps: what the study may cost.
        given_caps: the part of it that was given now, and is not in the journal yet.
        command_with: of {cap: value}: the command that resumes the study with other caps.
        program_file: asks the question; None for a study that was built in Python.
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

    def execute(self, address: str | None, demand: WorkerDemand, console: Console) -> int:
        """Runs the trials that have not ended, says how it went, and delivers everything to MLflow.

        Returns:
            The exit code: 0, also if the study ended at its cap; 1 if trials failed, 3 if MLflow does not have
            everything or the report could not be written, 130 if the study was stopped.

        Raises:
            UserError: the study cannot run, or had to stop, because of something that a person can put right.
        """
        before = len(self.progress.sessions)
        try:
            exit_code = self._execute(address, demand, console)
        except Exception as error:
            if len(self.progress.sessions) > before:  # else nothing has begun, or another process runs it
                why = str(error) if isinstance(error, UserError) else f"it met a bug, {type(error).__name__}"
                self._notify("failed", why, console)
            raise
        return exit_code

    def _tell_ending(self, before: int, console: Console) -> None:
        """Tells the webhook how the study ended, if this driver has begun: more have than the number ``before``.

        Times do not tell, as the driver before it may have run on a machine whose clock is ahead.
        """
        ended = self.progress.ended
        if len(self.progress.sessions) > before and ended is not None:
            if reason := ended.get("reason"):
                best = best_so_far(self.study, self.progress)
                self._notify("cap", ". ".join(filter(None, [f"It ended early: {reason}", best])), console)
            else:
                self._notify(ended["state"], None, console)

    def _notify(self, event: Happening, why: str | None, console: Console) -> None:
        """Tells the webhook, if there is one, what has happened and ``why``, or else the answer so far."""
        if self.notify_url is None:
            return
        sentences = [why] if why else self._answers()
        text = outcome_text(event, self.study.name, self.progress, sentences)
        told = webhook_event(event, self.study.name, self.progress, self.directory, text)
        if trouble := notify(self.notify_url, told):
            say(console, f"The webhook {trouble}.")

    def _execute(self, address: str | None, demand: WorkerDemand, console: Console) -> int:
        before = len(self.progress.sessions)
        spool = Spool(self.directory / JOURNAL_FILE, self.directory / SPOOL_FILE)
        sink = MLflowSink(self.tracking_uri, spool) if self._is_recorded else NotRecorded()
        reached = self._used_up_cap() if self._has_more else None
        if reached is not None and self.extended is not None:
            raise UserError(
                f"{self.study.name} cannot be extended: {reached.reason}; give a higher one, such as "
                f"{reached.flag} {reached.higher:.10g}"
            )
        if reached is not None:
            is_delivered = not spool.pending_count() or self._deliver(sink, console)
            has_report = True  # the one of the driver that has used the cap up
        elif self._has_more:
            to_do = self._trials_to_do()
            if address is None:
                self._check_cores(demand)
                check_temporary_folder()
            self._greet(to_do, console)
            try:
                with self._failures_in_words(sink):
                    reached, has_report, is_delivered = self._train(address, demand, to_do, sink, console)
            except KeyboardInterrupt:
                if self.progress.started is None:
                    raise
                sink.close(0)
                say(console, "Stopped at once. Resume with:")
                say_whole(console, f"  {self.command}")
                return EXIT_INTERRUPTED
        else:
            self._say_nothing_to_train(console)
            self._record_what_is_new(sink)
            has_report = self._say_result(console)
            is_delivered = self._deliver(sink, console)
        ending = None if reached else self.runner.ending(self.study, self.progress)
        self._tell_ending(before, console)  # before the command that resumes it, which is the last line
        is_recorded = is_delivered and has_report
        return self._exit_code(reached, ending, console) or (0 if is_recorded else EXIT_NOT_RECORDED)

    def _trials_to_do(self) -> int:
        """How many trials are to be run, with those that the study will add."""
        added = further_to_run(self.study, self.progress)[1] + reruns_to_run(self.study, self.progress)
        return len(self._unfinished()) + len(self.study.names_to_come()) + added

    def _unfinished(self) -> list[Trial]:
        """The planned trials that have not ended."""
        names = set(self.progress.unfinished)
        return [trial for trial in self.study.trials() if trial.name in names]

    def _train(
        self,
        address: str | None,
        demand: WorkerDemand,
        to_do: int,
        sink: MLflowSink | NotRecorded,
        console: Console,
    ) -> tuple[ReachedCap | None, bool, bool]:
        """Runs the trials on Ray and says how it went.

        Returns:
            The cap that has ended the study early, whether the report could be written, whether MLflow has everything.
        """
        with self._announced_session(address, console) as resources, self._exported(address, sink):
            look = look_at_ray(address)
            worker = self.runner.worker(resources, demand)
            self._check_nodes(address, resources, worker)
            with alone_with(self.directory):
                self._check_journal_is_as_it_was()
                number = self.runner.trials_at_once(to_do, resources, demand, worker)
                places = Places(resources, worker, number, _nodes_with_mps(worker))
                reached = self._run_trials(places, look, sink, console)
                # While connected to Ray: leaving it may take long.
                has_report = self._say_result(console)
                is_delivered = self._deliver(sink, console, is_urgent=reached is None)
        return reached, has_report, is_delivered

    @contextmanager
    def _failures_in_words(self, sink: MLflowSink | NotRecorded) -> Iterator[None]:
        """While this lasts, a disk that is full or gone raises a StorageError, and an end delivers what it can."""
        try:
            yield
        except StopsStudyError:
            sink.close(TRACKING_DEADLINE_SECONDS_IF_STOPPED)
            raise
        except Exception as error:
            lost = lost_place(error)
            if lost is None:
                raise
            place = which_is_lost(self.directory, temporary_folder() / "ray")
            why = f"{display_path(place)} cannot be written ({in_words(lost)}); {remedy_for(lost)}"
            raise StorageError(self._stopped_sentence(why)) from error

    def _record_what_is_new(self, sink: MLflowSink | NotRecorded) -> None:
        """Records an extension that adds no trial, and notes and tags, of a study with nothing to train."""
        if self.extended is None and not self.annotations.beyond(self.progress):
            return
        with alone_with(self.directory), Journal(self.directory / JOURNAL_FILE) as journal:
            self._check_journal_is_as_it_was()
            recorder = Recorder(journal, self.progress, sink.wake, lambda _: None)
            if self.extended is not None:
                self._record_resumed(recorder)
                recorder.record(study_ended("finished", self.progress.wall_seconds))
            self._annotate(recorder)

    def _used_up_cap(self) -> ReachedCap | None:
        """The cap that earlier drivers have used up, or None."""
        return self.caps.reached(PaidTime.of(self.progress), self._accelerator)

    @property
    def _accelerator(self) -> str:
        started = self.progress.started
        return accelerator_word(started["study"]["worker"]["gpus"] if started else 0)

    def _exit_code(self, reached: ReachedCap | None, ending: Ending | None, console: Console) -> int:
        if reached is not None:
            say(
                console,
                f"{self.study.name} has ended early: {reached.reason}. Resume it with a higher cap, for example:",
            )
            say_whole(console, f"  {self.command_with({reached.name: reached.higher})}")
            failed = any(trial.state == "failed" for trial in self.progress.members)
            return EXIT_FAILED_TRIALS if failed else 0
        if ending is None or not ending.exit_code:
            return 0
        say(console, ending.sentence)
        say_whole(console, f"  {self.command}")
        return ending.exit_code

    def _check_cores(self, demand: WorkerDemand) -> None:
        """Raises UserError, before Ray is started here, if this machine does not have enough cores."""
        least, cpus, here = demand.min_workers or demand.workers, demand.cpus or 1, available_cpus()
        if least * cpus > here:
            raise UserError(
                f"{least} x ({cpus} CPU) do not fit: this machine has {count(here, 'core')} for it; ask for fewer with "
                f"{self.runner.workers_flag} or --cpus-per-worker"
                + (", or resume it on a machine that has them" if self.progress.started else "")
            )

    def _check_journal_is_as_it_was(self) -> None:
        """Raises UserError if another process has added to the journal since this one has read it.

        To connect to Ray takes seconds, in which a driver that was stopped may have kept what it had, and ended.
        """
        if any(read_events(self.directory / JOURNAL_FILE, self.progress.journal_bytes)):
            raise UserError(
                f"another process has continued {self.study.name} meanwhile: give the same command again"
            )

    def _check_nodes(self, address: str | None, resources: Resources, worker: WorkerResources) -> None:
        """Raises UserError if a node that may train lacks this machine's data or has GPUs that torch cannot use.

        Also if the workers do not fit here.
        """
        from nfnet_ray.cluster.connection.nodes import check_gpus, check_nodes
        from nfnet_ray.cluster.connection.resources import check_workers_fit
        from nfnet_ray.command_line.progress import bytes_on_stderr

        if address is None:  # its data has been checked, and no node will be added
            check_workers_fit(resources, worker, self.runner.workers_flag)
            check_gpus(worker)
            return
        check_gpus(worker)
        check_nodes(self.data, worker, verify=self.verifies, progress=bytes_on_stderr)

    @contextmanager
    def _announced_session(self, address: str | None, console: Console) -> Iterator[Resources]:
        """A Ray session. Ray takes ten seconds and more to start; a spinner is shown meanwhile."""
        warning = f"{self.study.name}: nobody reads its output any more; it continues and keeps all results"
        with ExitStack() as stack:
            stack.enter_context(goes_on_without_output(warning))
            with waiting(console, f"Connecting to Ray at {address} …" if address else "Starting Ray …"):
                resources = stack.enter_context(ray_session(address))
            yield resources

    @contextmanager
    def _exported(self, address: str | None, sink: MLflowSink | NotRecorded) -> Iterator[None]:
        """While this lasts, the metrics of the cluster have this study's; of a local Ray nobody asks for any."""
        if address is None:
            yield
            return
        from nfnet_ray.cluster.gauge_export import gauges_are_exported

        with gauges_are_exported(lambda: samples(self.study.name, self.progress, time.time(), sink.backlog)):
            yield

    def _run_trials(
        self, places: Places, look: Look, sink: MLflowSink | NotRecorded, console: Console
    ) -> ReachedCap | None:
        """Runs them, and those that a search adds; returns the cap that has ended the study early."""
        study, trials = self._on_its_places(places), self._unfinished()
        self._say_places(places, console)
        console.print()
        started_at = time.monotonic() - self.progress.wall_seconds
        stop = threading.Event()
        display = StudyDisplay(
            study,
            self.progress,
            self.directory / TRIALS_FOLDER,
            lambda: sink.status,
            console,
            epoch_arithmetic(self.study.trials(), self.data),
        )
        with Journal(self.directory / JOURNAL_FILE) as journal, LiveReport(self.directory) as report:
            on_event = partial(self._show_event, display, report, sink)
            recorder = Recorder(journal, self.progress, on_event, display.note, on_lost=stop.set)
            self._record_beginning(recorder, study, places)
            watch = CapWatch(
                recorder,
                self.caps,
                self._accelerator,
                stop,
                lambda cap: display.note(f"Ended early: {cap.reason}. {self.runner.stopping}"),
            )
            end = partial(self._end_at_once, recorder, started_at, display, sink, console)
            with (
                display,
                watch,
                loss_is_noticed(look, lambda: recorder.is_cut_off, recorder.mark_cut_off, end),
                asked_to_stop(stop, lambda: display.note(self.runner.stopping)),
            ):
                self.runner.run(
                    RunningStudy(
                        study,
                        trials,
                        self.data,
                        self.directory,
                        self.progress,
                        places.worker,
                        places.number,
                        recorder,
                        stop,
                        display.note,
                    )
                )
            outcome: StudyOutcome = "interrupted" if stop.is_set() else "finished"
            reached = watch.reached if self._has_more else None
            reason = reached.reason if reached else None
            recorder.record(study_ended(outcome, time.monotonic() - started_at, reason))
        if recorder.lost:
            raise StopsStudyError(self._stopped_sentence(recorder.lost))
        return reached

    def _on_its_places(self, places: Places) -> Study:
        """The study with what depends on its places: the lag of its search, and the seconds that money pays for."""
        study = self.study
        if study.is_adaptive and self.progress.started is None:
            study = replace(study, lag=math.ceil(places.number / len(study.seeds)))
        return priced(study, self.caps, places.worker)

    def _say_places(self, places: Places, console: Console) -> None:
        """Says where it runs and what that costs. Raises UserError if its workers do not fit into a GPU's memory."""
        resources, worker, storage = places.resources, places.worker, self.directory.parent
        say(console, f"Ray: {resources.description}; {self.runner.shape(worker, places.number)}.")
        refuse_too_little_memory(self.study, storage, resources, worker)
        for said in (sharing_sentence(worker, places.mps), self.caps.sentence(accelerator_word(worker.gpus))):
            if said:
                say(console, said)
        if self.caps.price_per_hour is not None and self.progress.started is None:
            say(console, expected_cost(self.study, self.data, storage, places, self.caps))

    def _show_event(self, display: StudyDisplay, report: LiveReport, sink: MLflowSink | NotRecorded) -> None:
        """Shows everywhere what an event has changed."""
        display.update()
        if any(trial.epochs for trial in self.progress.trials.values()):
            sink.start()  # not earlier: importing mlflow would delay the first trials
            report.wake()
        sink.wake()

    def _record_beginning(self, recorder: Recorder, study: Study, places: Places) -> None:
        """Records that the study starts here, or that it is resumed, and keeps the code that it is made of."""
        keep_copies(self.directory / COPIES_FOLDER, self._networks)
        if self.progress.started is None:
            started = self._started_event(study, places)
            recorder.record(started)
            keep_program(self.directory, started, self.program_file)
        else:
            self._record_resumed(recorder, places)
            self._annotate(recorder)

    def _end_at_once(
        self,
        recorder: Recorder,
        started_at: float,
        display: StudyDisplay,
        sink: MLflowSink | NotRecorded,
        console: Console,
    ) -> None:
        """Ends this process as :meth:`execute` would, while the main thread waits for a Ray that has gone."""
        error = StopsStudyError(self._stopped_sentence(recorder.lost or ""))

        def tell_others() -> None:  # Ray may end this process meanwhile
            sink.close(TRACKING_DEADLINE_SECONDS_IF_STOPPED)
            self._notify("failed", str(error), console)

        try:
            for trial in self.progress.trials.values():
                if trial.state == "running":
                    recorder.end_trial(trial.name, "interrupted", None)
            recorder.record(study_ended("interrupted", time.monotonic() - started_at))
            recorder.close()
            display.close()
        finally:
            end_with(error, tell_others)

    @property
    def _has_more(self) -> bool:
        """Whether any trial has yet to be run."""
        return has_more(self.study, self.progress)

    def _record_resumed(self, recorder: Recorder, places: Places | None = None) -> None:
        """Records that this driver resumes the study, on these places if it trains, and how it is extended."""
        if places is None:
            event = study_resumed(self.changed, self.given_caps)
        else:
            event = study_resumed(self.changed, self.given_caps, places.number, _hardware(places), versions())
        recorder.record(event)
        if self.extended is not None:
            recorder.record({**self.extended.event, "time": time.time()})

    def _say_nothing_to_train(self, console: Console) -> None:
        if self.extended is None:
            say(console, f"All trials of {self.study.name} have ended; there is nothing to train.")
            return
        for sentence in self.extended.sentences():
            say(console, sentence)
        say(console, "There is nothing to train.")

    def _annotate(self, recorder: Recorder) -> None:
        """Adds the notes and tags that a resumed study does not have yet."""
        new = self.annotations.beyond(self.progress)
        if new:
            recorder.record(study_annotated(new.notes, new.tags))

    def _stopped_sentence(self, why: str) -> str:
        epochs = sum(len(trial.epochs) for trial in self.progress.trials.values())
        kept = f"what was kept before ({count(epochs, 'epoch')}) is sound"
        return f"stopped, as {why}, then resume with `{self.command}`; {kept}"

    def _say_result(self, console: Console) -> bool:
        """Prints the table, the answer, and where the report is; whether the report could be written."""
        console.print(trial_table(self.study, self.progress, reported_epochs, console))
        console.print()
        for answer in self._answers():
            say(console, answer)
        for sentence, command in self._health():
            say(console, sentence)
            if command:
                say_whole(console, f"  {command}")
        if self.progress.unfinished and (best := best_so_far(self.study, self.progress)):
            say(console, best)
        console.print()
        say(console, f"Took:    {clock_time(self.progress.wall_seconds)}")
        if self.caps != Caps():
            say(console, f"Paid:    {self.caps.bill(PaidTime.of(self.progress), self._accelerator)}")
        idle = self.progress.idle_time()
        if idle is not None and idle.share > WORTH_SAYING and idle.seconds > SECONDS_WORTH_SAYING:
            say(console, f"Idle:    {idle.sentence(self._accelerator)}.")
        trouble = renewed_report(self.directory)
        say_whole(console, f"Report:  {trouble or display_path(self.directory / REPORT_FILE)}")
        keep_trials(self.directory)
        for line in self.runner.results(self.study, self.directory):
            say_whole(console, line)
        return not trouble

    def _health(self) -> list[tuple[str, str]]:
        """What asks for another look, each with a command to copy."""
        from nfnet_ray.analysis import load_study
        from nfnet_ray.analysis.health import health_cards, health_lines

        return health_lines(health_cards(load_study(self.directory)))

    def _answers(self) -> list[str]:
        """Times and the best setting of each stratum, and what the fields do; or that there is no best setting."""
        from dashboards.study_results import answer_sentences
        from nfnet_ray.analysis import load_study

        return answer_sentences(load_study(self.directory))

    def _deliver(self, sink: MLflowSink | NotRecorded, console: Console, *, is_urgent: bool = False) -> bool:
        """Delivers the rest to MLflow, and says what could not be delivered; whether MLflow has everything.

        ``is_urgent``: if the study was stopped, then by somebody who may not wait long.
        """
        if isinstance(sink, NotRecorded):
            replay = [interpreter(), "-m", "nfnet_ray.tracking", "replay", display_path(self.directory)]
            say_whole(console, f"MLflow:  not recorded; to record it: {shell_command(replay)}")
            return True
        sink.start()
        sink.attach_study()
        if is_urgent and self.progress.unfinished:
            sink.close(TRACKING_DEADLINE_SECONDS_IF_STOPPED)
        else:
            sink.close(TRACKING_DEADLINE_SECONDS, UNANSWERED_SECONDS)
        say_whole(console, f"MLflow:  {self._compare_command()}")
        words = sink.last_words(self.command)
        for sentences, command in words:
            say(console, sentences)
            if command:
                say_whole(console, f"  {command}")
        if not words and any(trial.outcome == "finished" for trial in self.progress.members):
            publish = [interpreter(), "-m", "studies", "publish", display_path(self.directory)]
            say_whole(console, f"Publish: {shell_command(publish)}")
        return not words

    def _greet(self, trials: int, console: Console) -> None:
        say(console, self.study.question, title=self.study.name)
        extent = self.runner.extent(self.study, trials, self.data)
        say(console, f"{extent} {_on_images(self.data, self.study.recipe.data.train_share)}.")
        for sentence in self.extended.sentences() if self.extended else ():
            say(console, sentence)
        if not self.study.fields:  # a training, which has no --plan
            from studies.running.planning.training_remarks import training_remarks  # it imports torch

            for sentence in training_remarks(self.study, self.data):
                say(console, sentence)
        say_whole(console, f"Report:  {display_path(self.directory / REPORT_FILE)}")
        if self._is_recorded:
            say_whole(console, f"MLflow:  {self._compare_command()}")
        has_epochs = any(trial.epochs for trial in self.progress.trials.values())
        what = "Both" if self._is_recorded else "It"
        say(console, f"{what} can be opened {'now' if has_epochs else 'once the first epoch is done'}.")

    @property
    def _networks(self) -> list[NetworkSource]:
        return network_sources([*self.study.trials(), *self.study.outermost_trials()])

    @property
    def _is_recorded(self) -> bool:
        return self.tracking_uri != NOT_RECORDED

    def _compare_command(self) -> str:
        return shell_command([interpreter(), "-m", "dashboards.compare", display_path(self.directory)])

    def _started_event(self, study: Study, places: Places) -> StudyStarted:
        event = started_event(
            study, self.data, places.resources, places.worker, self._hidden, self.program_file
        )
        event["study"]["places"] = places.number
        event["study"]["hardware"] = _hardware(places)
        if self.annotations.notes:
            event["study"]["notes"] = list(self.annotations.notes)
        if self.annotations.tags:
            event["study"]["tags"] = dict(self.annotations.tags)
        if self._networks:
            event["study"]["networks"] = {
                source.pinned: network_description(source) for source in self._networks
            }
        self.runner.describe(event["study"])
        if self.given_caps:
            event["study"]["caps"] = self.given_caps
        if not self._is_recorded:
            event["study"]["unrecorded"] = True
        return event

    def _hidden(self, word: str) -> str:
        """A word of the command line without secrets."""
        return without_secrets(word, self.notify_url)


def _nodes_with_mps(worker: WorkerResources) -> dict[str, bool]:
    """{node: whether MPS is up there}; empty unless workers share a GPU."""
    from nfnet_ray.cluster.connection.nodes import nodes_with_mps

    return nodes_with_mps(worker) if workers_on_a_gpu(worker.gpus) > 1 else {}


def _hardware(places: Places) -> Hardware:
    """What a study runs on."""
    found = hardware(places.resources)
    if places.mps:
        found["mps"] = all(places.mps.values())
    return found


def _on_images(data: DatasetSummary, train_share: float) -> str:
    """``on 1,437 training images (10 classes), validated on 360``."""
    images = count(data.train_images, "training image")
    if train_share < 1:
        images = f"{images_of_share(data.train_images, train_share):,} of {images}"
    return f"on {images} ({count(len(data.class_names), 'class')}), validated on {data.validation_images:,}"
