"""The thread that carries a study's journal to MLflow, and never into the study's way."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from nfnet_ray.printable import display_path, printable
from nfnet_ray.tracking.delivery.spool import (
    STUDY_RUN,
    JournalLine,
    Spool,
    TrackedStudy,
    Undelivered,
    runs_of,
)
from nfnet_ray.tracking.destination.database import artifacts_stay_beside, client_uri, make_if_missing
from nfnet_ray.tracking.destination.experiment import restore_experiment_command, restore_runs_command
from nfnet_ray.tracking.destination.failures import (
    REFUSALS,
    in_words,
    is_out_of_reach,
    is_trouble_of_the_server,
    may_be_of_the_event,
)
from nfnet_ray.tracking.destination.server import MLFLOW_ENVIRONMENT, go_past_proxies_to_this_machine
from nfnet_ray.tracking.destination.uri import sqlite_path, with_credentials_aside
from nfnet_ray.tracking.events import EpochEnded, Event
from nfnet_ray.tracking.runs.files import RECIPE_FILE, study_files
from nfnet_ray.wording import agree, count

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

    from nfnet_ray.tracking.delivery.writer import RunState, StudyWriter

logger = logging.getLogger(__name__)

_EVENTS_PER_READ = 1000
# Between two deliveries: a call of log_batch takes the driver 10 ms and more, for one epoch as for a hundred, and a
# study of many short epochs would spend half of its driver's time on it. A delivery that takes long is followed by a
# longer pause, so that at most a tenth of the time is spent on MLflow, or else a backlog grows.
_SECONDS_BETWEEN_DELIVERIES, _MOST_SECONDS_BETWEEN_DELIVERIES = 1.0, 20.0
_LARGEST_SHARE = 0.1
# Between two attempts on a server that does not answer: long enough to leave it alone, short enough
# that it has caught up by the time a person has looked.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_PAUSE_WHILE_CLOSING_SECONDS = 0.5
_LOOK_SECONDS = 0.2
# Of an event, or of a file, that the server answers with an error, before others are delivered without it. With the
# pauses between them these take seven seconds, in which a server that was just starting is up.
_MOST_ATTEMPTS = 4
# How many later events of other runs, and of the same ones, are tried to find out whether the server takes any.
_OTHERS_TRIED, _SAME_TRIED = 3, 2
_MOST_FILES_NAMED = 3

_MLFLOW_ENVIRONMENT = {
    **MLFLOW_ENVIRONMENT,
    # set_terminated prints a link, in the middle of our progress table.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_MLFLOW_DEFAULTS = {
    # mlflow would wait 120 s for an answer and ask 7 more times before it says so. We ask again ourselves.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


class MLflowSink:
    """Delivers what is pending in ``spool``, in order, in one background thread.

    A call that fails is made again, after longer and longer pauses, until it succeeds or the sink is
    closed; what then is missing stays in the journal and is delivered when the study is resumed, into
    the same runs. A run that was deleted is held, and an event that MLflow refuses is noted: neither holds
    up the others, both are tried again when the sink is closed and when the study is resumed, and
    :meth:`last_words` names them. An event that fails again and again counts as refused as soon as the server
    takes another one; as long as it takes none, all of them wait.

    No method raises because of MLflow, and none but :meth:`close` waits for it.

    Args:
        tracking_uri: what :func:`nfnet_ray.tracking.destination.uri_check.check_tracking_uri` accepts.
        spool: the study's; nobody else may acknowledge in it.
        experiment: its name, by default that of the study's file.
    """

    def __init__(self, tracking_uri: str, spool: Spool, experiment: str | None = None) -> None:
        self._tracking_uri = with_credentials_aside(tracking_uri)
        self._spool = spool
        self._experiment = experiment
        self._thread = threading.Thread(target=self._run, name="mlflow-sink", daemon=True)
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._opens_database = threading.Event()
        self._attachments: list[Path] = []
        self._not_stored: dict[Path, str] = {}
        self._failed_stores: Counter[Path] = Counter()
        self._failing = _Failing(-1, -1, 0)
        self._failed_before: set[str] = set()
        self._taken: list[list[JournalLine]] = []
        self._writer: StudyWriter | None = None
        self._why_held: dict[str, RunState] = {}
        self._why_refused = ""
        self._has_tried_again = False
        self._trouble = ""
        self._trouble_since = self._silent_since = 0.0  # by the system's clock, and by the steady one

    def start(self) -> None:
        """Begin to deliver, if that has not begun. Sets MLflow's environment variables for this process."""
        if self._thread.ident is not None:
            return
        os.environ.update(_MLFLOW_ENVIRONMENT)
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        go_past_proxies_to_this_machine(self._tracking_uri)
        self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """Say that the journal has grown."""
        # Before anything is delivered, so that a study that was killed is resumed in the same place.
        if self._thread.ident is None and self._spool.tracked.tracking_uri != self._tracking_uri:
            self._spool.acknowledge(0, TrackedStudy(self._tracking_uri), Undelivered())
        self._wake.set()

    def attach(self, path: Path) -> None:
        """Store a file with the study's run, once all that is pending now has been delivered."""
        self._attachments.append(path)
        self._wake.set()

    def attach_study(self) -> None:
        """Store the files of the study's directory (:func:`nfnet_ray.tracking.runs.files.study_files`)."""
        for path in study_files(self._spool.journal_path.parent):
            self.attach(path)

    def close(self, deadline_seconds: float, unanswered_seconds: float | None = None) -> int:
        """Deliver what can be delivered within the deadline; return how many events and files were not taken.

        While MLflow does not answer it is asked for ``unanswered_seconds`` only, by default for as long. A database
        that is being made is waited for in any case: it takes seconds, and the next process would begin it again.
        """
        self._closing.set()
        self._wake.set()
        began = time.monotonic()
        while self._thread.is_alive():
            waited = time.monotonic() - began
            if waited >= deadline_seconds:
                break
            silent = time.monotonic() - max(began, self._silent_since)
            if self._trouble and unanswered_seconds is not None and silent > unanswered_seconds:
                break
            self._thread.join(min(_LOOK_SECONDS, deadline_seconds - waited))
        self._abandoned.set()
        while self._thread.is_alive() and self._opens_database.is_set():
            self._thread.join(_LOOK_SECONDS)
        return self._spool.pending_count() + len({*self._not_stored, *self._attachments})

    @property
    def backlog(self) -> int:
        """How many events MLflow has not received; 0 as long as nothing is delivered, because no epoch has ended."""
        return self._spool.pending_count() if self._thread.ident is not None else 0

    @property
    def status(self) -> str:
        """One line for a progress display."""
        waiting, undelivered = self._spool.pending_count(), self._spool.undelivered_count()
        refused = f", {count(undelivered, 'event')} refused" if undelivered else ""
        waiting -= undelivered
        events = count(waiting, "event")
        if self._trouble:
            since = time.strftime("%H:%M", time.localtime(self._trouble_since))
            return f"MLflow: {events} waiting, {self._trouble} since {since}{refused}"
        return f"MLflow: {f'{events} waiting' if waiting else 'up to date'}{refused}"

    def last_words(self, resume_command: str) -> list[tuple[str, str]]:
        """What did not reach MLflow by the end and what to do: [(sentences, a command or "")]; [] if all is there."""
        words: list[tuple[str, str]] = []
        undelivered, tracked = self._spool.undelivered, self._spool.tracked
        waiting = self._spool.pending_count() - self._spool.undelivered_count()
        deleted = [run for run, why in self._why_held.items() if why == "deleted" and run in undelivered.held]
        if "in a deleted experiment" in self._why_held.values():
            command = restore_experiment_command(self._tracking_uri, tracked.experiment_id)
            words.append(
                (f"The experiment {self._experiment!r} was deleted in MLflow. Restore it with:", command)
            )
        elif deleted:
            ids = {STUDY_RUN: tracked.study_run_id, **tracked.trial_run_ids}
            names = ", ".join(run or "the study" for run in deleted[:5])
            more = f" and {len(deleted) - 5} more" if len(deleted) > 5 else ""
            command = restore_runs_command(self._tracking_uri, [ids[run] for run in deleted])
            verb = agree(len(deleted), "run was", "runs were")
            words.append((f"In MLflow the {verb} deleted of {names}{more}. Restore with:", command))
        if undelivered.refused and self._why_refused:
            refused = count(len(undelivered.refused), "event")
            words.append((f"MLflow refused {refused}, the last one {self._why_refused}", ""))
        if missing := waiting + self._spool.undelivered_count():
            why = f" ({self._trouble})" if waiting and self._trouble else ""
            journal = printable(display_path(self._spool.journal_path))
            left = f"{count(missing, 'event')} could not be delivered to MLflow{why}, and kept in {journal}."
            words.append((f"{left} Deliver with:", resume_command))
        not_stored = dict(self._not_stored)
        if self._attachments and not missing:
            not_stored |= dict.fromkeys(self._attachments, self._trouble or "no time was left")
        for why in dict.fromkeys(not_stored.values()):
            files = [printable(display_path(path)) for path, reason in not_stored.items() if reason == why]
            others = f" and {len(files) - _MOST_FILES_NAMED} more" if len(files) > _MOST_FILES_NAMED else ""
            listed = ", ".join(files[:_MOST_FILES_NAMED])
            words.append((f"{listed}{others} could not be stored in MLflow: {why}", ""))
        return words

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._abandoned.is_set():
            self._wake.wait()
            self._wake.clear()
            was_open, began = self._writer is not None, time.monotonic()
            delivered_before = self._spool.acknowledged_bytes
            try:
                self._deliver()
            except Exception as error:  # whatever it is, the study continues
                self._writer = None  # what it knew of the server may no longer hold
                if not self._trouble:
                    self._trouble_since, self._silent_since = time.time(), time.monotonic()
                self._trouble = in_words(error)
                logger.debug("MLflow: delivery failed", exc_info=True)
                self._wake.set()
                if self._spool.acknowledged_bytes != delivered_before:
                    pause = _FIRST_PAUSE_SECONDS
                if self._closing.is_set():
                    self._abandoned.wait(_PAUSE_WHILE_CLOSING_SECONDS)
                else:
                    self._closing.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS
                self._trouble = ""
                if self._closing.is_set() and not self._wake.is_set():
                    return
                seconds = time.monotonic() - began if was_open else 0.0  # opening happens once
                between = max(_SECONDS_BETWEEN_DELIVERIES, seconds / _LARGEST_SHARE)
                self._closing.wait(min(between, _MOST_SECONDS_BETWEEN_DELIVERIES))

    def _deliver(self) -> None:
        """Deliver everything that is pending, then the attachments; stop between two calls if abandoned."""
        if self._writer is None:
            if not self._spool.pending_count() and not self._attachments:
                return
            self._writer = self._open_writer()
            self._try_again(self._writer)
        while batch := list(islice(self._spool.pending(), _EVENTS_PER_READ)):
            steps = _steps(batch, self._failing.end)
            for number, step in enumerate(steps):
                if self._abandoned.is_set():
                    return
                undelivered = self._write_or_pass_over(self._writer, step, steps[number + 1 :])
                self._spool.acknowledge(step[-1].end, self._writer.tracked, undelivered)
                self._trouble = ""  # it answers again, though a backlog may take long
        if self._closing.is_set() and not self._has_tried_again:
            self._try_again(self._writer)
            for path in [path for path in self._not_stored if path.name == RECIPE_FILE]:
                self._store_recipe(self._writer, path.parent.name)
            self._has_tried_again = True
        while self._attachments and not self._abandoned.is_set():
            if STUDY_RUN not in self._spool.undelivered.held:  # else it is attached when the study is resumed
                path = self._attachments[0]
                self._store(path, partial(self._writer.attach, path), _MOST_ATTEMPTS)
            self._attachments.pop(0)

    def _store(self, path: Path, store: Callable[[], None], attempts: int = 1) -> None:
        """Store a file. What the server does not take, in so many attempts, is noted and raises nothing."""
        try:
            store()
        except Exception as error:
            if is_out_of_reach(error):
                raise
            self._failed_stores[path] += 1
            if is_trouble_of_the_server(error) and self._failed_stores[path] < attempts:
                raise
            self._not_stored[path] = in_words(error)
        else:
            self._not_stored.pop(path, None)

    def _store_recipe(self, writer: StudyWriter, trial: str) -> None:
        # Under the name that it would have in the study's directory.
        path = self._spool.journal_path.parent / "trials" / trial / RECIPE_FILE
        self._store(path, partial(writer.store_recipe, trial))

    def _open_writer(self) -> StudyWriter:
        from mlflow import MlflowClient

        from nfnet_ray.tracking.delivery.writer import StudyWriter
        from nfnet_ray.tracking.destination.bulk_metrics import write_metrics_in_bulk

        # Both would print into our progress table while the database is being created, and mlflow a stack trace of
        # 100 lines for each attempt that fails, of which status says all in a few words.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with _database_to_ourselves(self._tracking_uri) as database:
            if database:
                artifacts_stay_beside(database)
                self._opens_database.set()
            try:
                if self._abandoned.is_set():  # whoever closes this looks at the two in the other order
                    raise InterruptedError("closed before MLflow was opened")
                if database:
                    make_if_missing(database)
                client = MlflowClient(tracking_uri=client_uri(self._tracking_uri))
                write_metrics_in_bulk(client)
                noted = self._spool.tracked
                known = noted.experiment_id if noted.tracking_uri == self._tracking_uri else ""
                writer = StudyWriter(
                    client, self._tracking_uri, self._spool.journal_path, self._experiment, known
                )
                self._experiment = writer.experiment
            finally:
                self._opens_database.clear()
        before, cursor, undelivered = (
            self._spool.tracked,
            self._spool.acknowledged_bytes,
            self._spool.undelivered,
        )
        if not writer.tracked.study_run_id or before.tracking_uri != self._tracking_uri:
            # Another server than before, or its database is a new one: it gets the whole journal.
            cursor, undelivered = 0, Undelivered()
        elif not undelivered.refused and writer.has_lost(cursor, undelivered.held):
            # An older backup of its database: what it has already is written again without harm.
            cursor, undelivered = 0, Undelivered()
        else:
            # What is gone for good, as after `mlflow gc`, is written anew.
            for trial in before.trial_run_ids.keys() - writer.tracked.trial_run_ids.keys():
                undelivered = undelivered.holding(trial, 0)
        self._spool.acknowledge(cursor, writer.tracked, undelivered)
        return writer

    def _try_again(self, writer: StudyWriter) -> None:
        """Deliver what was held back or refused before, as far as that is possible now."""
        for run in self._spool.undelivered.held:
            self._try_run_again(writer, run)
        for line in list(self._spool.refused()):
            if self._abandoned.is_set():
                return
            undelivered = self._spool.undelivered
            others = Undelivered(undelivered.held, undelivered.refused - {line.start})
            try:
                undelivered = self._write(writer, [line], others)
                if line.start not in undelivered.refused and line.event["event"] != "epoch":
                    undelivered = self._write_what_followed(writer, line, undelivered)
            except Exception as error:
                if not may_be_of_the_event(error):
                    raise
                self._note_refusal(line, error)
                continue
            self._spool.acknowledge(self._spool.acknowledged_bytes, writer.tracked, undelivered)

    def _write_what_followed(
        self, writer: StudyWriter, line: JournalLine, undelivered: Undelivered
    ) -> Undelivered:
        """Write the later events of a line's runs anew, which say how these runs are by now."""
        for run in runs_of(line.event):
            for later in self._spool.before_cursor(run, line.end):
                is_there = later.start not in undelivered.refused and run not in undelivered.held
                if is_there and later.event["event"] != "epoch":
                    undelivered = self._write_to(writer, run, [later], undelivered)
        return undelivered

    def _try_run_again(self, writer: StudyWriter, run: str) -> None:
        missing = list(self._spool.missing(run))
        undelivered = self._spool.undelivered.without(run)
        for is_epoch, group in groupby(missing, key=lambda line: line.event["event"] == "epoch"):
            for step in [list(group)] if is_epoch else [[line] for line in group]:
                if self._abandoned.is_set():
                    return
                try:
                    undelivered = self._write_to(writer, run, step, undelivered)
                except Exception as error:
                    if not may_be_of_the_event(error):
                        raise
                    self._why_held[run] = "open"
                    undelivered = undelivered.holding(run, step[0].start)
                if run in undelivered.held:
                    break
            if run in undelivered.held:
                break
        else:
            self._why_held.pop(run, None)
        self._spool.acknowledge(self._spool.acknowledged_bytes, writer.tracked, undelivered)

    def _write_or_pass_over(
        self, writer: StudyWriter, step: list[JournalLine], later: list[list[JournalLine]]
    ) -> Undelivered:
        """Write a step, or note that MLflow does not take it, although it takes others; what is undelivered then."""
        before = self._spool.undelivered
        try:
            undelivered = self._write(writer, step, before)
            if undelivered == before and step[-1].event["event"] == "epoch":
                self._taken = [step[-1:]]
            return undelivered
        except Exception as error:
            line, runs = step[0], {run for line in step for run in runs_of(line.event)}
            attempts = self._failing.attempts + 1 if line.start == self._failing.start else 1
            self._failing = _Failing(line.start, step[-1].end, attempts)
            if not may_be_of_the_event(error) or len(step) > 1:  # next time, line by line
                raise
            # Of a run that had one before, each event would take as many seconds.
            is_known = bool(runs & self._failed_before)
            if (attempts < _MOST_ATTEMPTS and not is_known) or not self._takes_another(writer, runs, later):
                raise
            self._failed_before |= runs - {STUDY_RUN}
            self._note_refusal(line, error)
            return Undelivered(before.held, before.refused | {line.start})

    def _takes_another(self, writer: StudyWriter, runs: set[str], later: list[list[JournalLine]]) -> bool:
        """Whether the server takes one of the later steps, which are written again when it is their turn."""
        before = self._spool.undelivered
        same: list[list[JournalLine]] = []
        others: list[list[JournalLine]] = []
        for step in later:
            its_runs = {run for line in step for run in runs_of(line.event)}
            if its_runs - before.held.keys():
                (same if its_runs & runs else others).append(step)
        tried = others[:_OTHERS_TRIED] + same[:_SAME_TRIED]
        if len(tried) == len(later) and self._closing.is_set():
            # The files that are stored in the end are not to wait for the last events: then one counts that was
            # taken before.
            tried += self._taken
        for step in tried:
            if self._abandoned.is_set():
                return False
            try:
                if self._write(writer, step, before) == before:
                    return True
            except Exception as error:
                logger.debug("MLflow does not take a later event either: %s", error)
        return False

    def _write(self, writer: StudyWriter, step: list[JournalLine], undelivered: Undelivered) -> Undelivered:
        """Write a stretch of epochs, or one event of another kind, into its runs; what is undelivered after it."""
        for run in dict.fromkeys(run for line in step for run in runs_of(line.event)):
            if run not in undelivered.held:
                lines = [line for line in step if run in runs_of(line.event)]
                undelivered = self._write_to(writer, run, lines, undelivered)
        return undelivered

    def _write_to(
        self, writer: StudyWriter, run: str, lines: list[JournalLine], undelivered: Undelivered
    ) -> Undelivered:
        """The same for one run."""
        from mlflow.exceptions import MlflowException

        try:
            if lines[0].event["event"] == "epoch":
                writer.write_epochs(run, [cast(EpochEnded, line.event) for line in lines])
            else:
                writer.write(lines[0], run)
                if lines[0].event["event"] == "trial_started":
                    self._store_recipe(writer, run)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            return self._refused(writer, run, lines, undelivered, error)
        return undelivered

    def _refused(
        self,
        writer: StudyWriter,
        run: str,
        lines: list[JournalLine],
        undelivered: Undelivered,
        error: MlflowException,
    ) -> Undelivered:
        state = writer.state_of(run)
        if state == "gone" and lines[0].start and not writer.run_id(run):
            # It was purged while we were there: what was before goes into a new run, when all is tried again.
            self._why_held[run] = state
            return undelivered.holding(run, 0)
        if state in ("deleted", "in a deleted experiment"):
            self._why_held[run] = state
            return undelivered.holding(run, lines[0].start)
        if len(lines) > 1:  # find the one that is meant
            for line in lines:
                if run not in undelivered.held:
                    undelivered = self._write_to(writer, run, [line], undelivered)
            return undelivered
        self._note_refusal(lines[0], error)
        return Undelivered(undelivered.held, undelivered.refused | {lines[0].start})

    def _note_refusal(self, line: JournalLine, error: Exception) -> None:
        self._why_refused = f"{_event_in_words(line.event)}, with: {in_words(error)}"
        logger.debug("MLflow refuses an event: %s", error)


class _Failing(NamedTuple):
    """What has failed the last time: where it begins and ends in the journal, and how often it has."""

    start: int
    end: int
    attempts: int


def _steps(batch: list[JournalLine], singly_until: int) -> list[list[JournalLine]]:
    """What is written at once. Lines that begin before the byte ``singly_until`` are written one by one.

    A stretch of epochs is written in one call for each trial, so that a long backlog is soon gone.
    """

    def is_in_stretch(line: JournalLine) -> bool:
        return line.event["event"] == "epoch" and line.start >= singly_until

    steps: list[list[JournalLine]] = []
    for is_stretch, group in groupby(batch, key=is_in_stretch):
        lines = list(group)
        steps += [lines] if is_stretch else [[line] for line in lines]
    return steps


def _event_in_words(event: Event) -> str:
    """``epoch 3 of seed=0``, ``trial ended: seed=0``, ``study started``."""
    if event["event"] == "epoch":
        return f"epoch {event['epoch']} of {printable(event['trial'])}"
    trial: str | None = cast(dict[str, Any], event).get("trial")
    kind = event["event"].replace("_", " ")
    return f"{kind}: {printable(trial)}" if trial else kind


@contextmanager
def _database_to_ourselves(tracking_uri: str) -> Iterator[Path | None]:
    """Hold a lock next to an SQLite database: of two processes that create its tables at once, one fails.

    Yields the database, or None where there is a server.
    """
    from filelock import FileLock

    database = sqlite_path(tracking_uri)
    if database is None:
        yield None
        return
    database.absolute().parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        yield database
