"""Delivers pending events, and decides what happens to events that MLflow does not accept."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from nfnet_ray.printable import printable
from nfnet_ray.tracking.delivery.opening import open_writer
from nfnet_ray.tracking.delivery.spool import STUDY_RUN, JournalLine, Spool, Undelivered, runs_of
from nfnet_ray.tracking.destination.failures import (
    REFUSALS,
    in_words,
    is_out_of_reach,
    is_trouble_of_the_server,
    may_be_of_the_event,
)
from nfnet_ray.tracking.events import EpochEnded, Event
from nfnet_ray.tracking.runs.files import RECIPE_FILE

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

    from nfnet_ray.tracking.delivery.writer import RunState, StudyWriter

logger = logging.getLogger(__name__)

_EVENTS_PER_READ = 1000
# The number of attempts for an event or a file that the server answers with an error, before others are delivered
# without it. With the pauses in between, they take seven seconds, in which a server that was just starting is up.
_MOST_ATTEMPTS = 4
# The number of later events, of other runs and of the same run, that are tried to find out whether the server accepts
# any.
_OTHERS_TRIED, _SAME_TRIED = 3, 2


class PendingDelivery:
    """Delivers the pending events in ``spool``, in order, until the server raises an error.

    Events of a deleted run are held back, and an event that MLflow refuses is recorded, so that neither blocks other
    events. Both are retried when MLflow is opened and when the sink is closing. An event that fails repeatedly counts
    as refused as soon as the server accepts another event; as long as it accepts none, all events wait.

    Attributes:
        experiment: the name of the study's experiment; None before MLflow was opened, unless it was given.
        attachments: files that remain to be stored with the study's run.
        not_stored: {file: the reason why it could not be stored}.
        why_held: {run: the reason why its events are held back}.
        why_refused: the last event that was refused, and the server's answer; empty if none was.
        opens_database: set while an SQLite database is being opened.
    """

    def __init__(
        self,
        tracking_uri: str,
        spool: Spool,
        experiment: str | None,
        closing: threading.Event,
        abandoned: threading.Event,
    ) -> None:
        """The sink sets ``closing`` when the study has ended, and ``abandoned`` when the time for delivery is up."""
        self._tracking_uri, self._spool = tracking_uri, spool
        self._closing, self._abandoned = closing, abandoned
        self.experiment = experiment
        self.attachments: list[Path] = []
        self.not_stored: dict[Path, str] = {}
        self.why_held: dict[str, RunState] = {}
        self.why_refused = ""
        self.opens_database = threading.Event()
        self._writer: StudyWriter | None = None
        self._has_tried_again = False
        self._failure = _Failure(-1, -1, 0)
        self._failed_before: set[str] = set()  # the runs that have had a refused event
        self._taken: list[list[JournalLine]] = []  # the latest accepted epoch, as a step
        self._failed_stores: Counter[Path] = Counter()

    def deliver(self, on_progress: Callable[[], None]) -> None:
        """Delivers everything that is pending, then the attachments; stops between two calls if abandoned.

        ``on_progress`` is called whenever the server has accepted something.
        """
        if self._writer is None:
            if not self._spool.pending_count() and not self.attachments:
                return
            self._writer = self._open_writer()
            self._try_again(self._writer)
        while batch := list(islice(self._spool.pending(), _EVENTS_PER_READ)):
            steps = _steps(batch, self._failure.end)
            for number, step in enumerate(steps):
                if self._abandoned.is_set():
                    return
                undelivered = self._write_or_pass_over(self._writer, step, steps[number + 1 :])
                self._spool.acknowledge(step[-1].end, self._writer.tracked, undelivered)
                on_progress()
        if self._closing.is_set() and not self._has_tried_again:
            self._try_again(self._writer)
            for path in [path for path in self.not_stored if path.name == RECIPE_FILE]:
                self._store_recipe(self._writer, path.parent.name)
            self._has_tried_again = True
        while self.attachments and not self._abandoned.is_set():
            if STUDY_RUN not in self._spool.undelivered.held:  # else --resume attaches the file
                path = self.attachments[0]
                self._store(path, partial(self._writer.attach, path), _MOST_ATTEMPTS)
            self.attachments.pop(0)

    @property
    def is_open(self) -> bool:
        """Whether MLflow has been opened."""
        return self._writer is not None

    def reopen(self) -> None:
        """Opens MLflow again before the next delivery, because its state may have changed after an error."""
        self._writer = None

    def _open_writer(self) -> StudyWriter:
        writer = open_writer(
            self._tracking_uri, self._spool, self.experiment, self._abandoned, self.opens_database
        )
        self.experiment = writer.experiment
        return writer

    def _write_or_pass_over(
        self, writer: StudyWriter, step: list[JournalLine], later: list[list[JournalLine]]
    ) -> Undelivered:
        """Writes a step, or records that MLflow refuses it but accepts others; returns what is undelivered."""
        before = self._spool.undelivered
        try:
            undelivered = self._write(writer, step, before)
            if undelivered == before and step[-1].event["event"] == "epoch":
                self._taken = [step[-1:]]
            return undelivered
        except Exception as error:
            line, runs = step[0], {run for line in step for run in runs_of(line.event)}
            attempts = self._failure.attempts + 1 if line.start == self._failure.start else 1
            self._failure = _Failure(line.start, step[-1].end, attempts)
            if not may_be_of_the_event(error) or len(step) > 1:  # the next attempt is made line by line
                raise
            # If a run had a refused event before, retrying each further one would take just as many seconds.
            is_known = bool(runs & self._failed_before)
            if (attempts < _MOST_ATTEMPTS and not is_known) or not self._takes_another(writer, runs, later):
                raise
            self._failed_before |= runs - {STUDY_RUN}
            self._note_refusal(line, error)
            return Undelivered(before.held, before.refused | {line.start})

    def _takes_another(self, writer: StudyWriter, runs: set[str], later: list[list[JournalLine]]) -> bool:
        """Whether the server accepts one of the later steps, which are written again when it is their turn."""
        before = self._spool.undelivered
        same: list[list[JournalLine]] = []
        others: list[list[JournalLine]] = []
        for step in later:
            its_runs = {run for line in step for run in runs_of(line.event)}
            if its_runs - before.held.keys():
                (same if its_runs & runs else others).append(step)
        tried = others[:_OTHERS_TRIED] + same[:_SAME_TRIED]
        if len(tried) == len(later) and self._closing.is_set():
            # Files that are stored at the end must not wait for the last events, so an earlier accepted event is
            # sufficient.
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
        """Writes several epochs, or one event of another kind, to its runs; returns what is undelivered."""
        for run in dict.fromkeys(run for line in step for run in runs_of(line.event)):
            if run not in undelivered.held:
                lines = [line for line in step if run in runs_of(line.event)]
                undelivered = self._write_to(writer, run, lines, undelivered)
        return undelivered

    def _write_to(
        self, writer: StudyWriter, run: str, lines: list[JournalLine], undelivered: Undelivered
    ) -> Undelivered:
        """Writes several epochs, or one event of another kind, to one run; returns what is undelivered."""
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
        """Holds back a deleted run, or records which line is refused; returns what is undelivered."""
        state = writer.state_of(run)
        if state == "gone" and lines[0].start and not writer.run_id(run):
            # The run was purged while this writer was open. Earlier events go into a new run when all are retried.
            self.why_held[run] = state
            return undelivered.holding(run, 0)
        if state in ("deleted", "in a deleted experiment"):
            self.why_held[run] = state
            return undelivered.holding(run, lines[0].start)
        if len(lines) > 1:  # find the refused line
            for line in lines:
                if run not in undelivered.held:
                    undelivered = self._write_to(writer, run, [line], undelivered)
            return undelivered
        self._note_refusal(lines[0], error)
        return Undelivered(undelivered.held, undelivered.refused | {lines[0].start})

    def _try_again(self, writer: StudyWriter) -> None:
        """Retries what was held back or refused before."""
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

    def _try_run_again(self, writer: StudyWriter, run: str) -> None:
        """Delivers the events of a run that were held back, up to the first event that is refused."""
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
                    self.why_held[run] = "open"
                    undelivered = undelivered.holding(run, step[0].start)
                if run in undelivered.held:
                    break
            if run in undelivered.held:
                break
        else:
            self.why_held.pop(run, None)
        self._spool.acknowledge(self._spool.acknowledged_bytes, writer.tracked, undelivered)

    def _write_what_followed(
        self, writer: StudyWriter, line: JournalLine, undelivered: Undelivered
    ) -> Undelivered:
        """Writes the later events of a line's runs again, so that these runs end up in their latest state."""
        for run in runs_of(line.event):
            for later in self._spool.before_cursor(run, line.end):
                is_there = later.start not in undelivered.refused and run not in undelivered.held
                if is_there and later.event["event"] != "epoch":
                    undelivered = self._write_to(writer, run, [later], undelivered)
        return undelivered

    def _note_refusal(self, line: JournalLine, error: Exception) -> None:
        self.why_refused = f"{_event_in_words(line.event)}, with: {in_words(error)}"
        logger.debug("MLflow refuses an event: %s", error)

    def _store(self, path: Path, store: Callable[[], None], attempts: int = 1) -> None:
        """Stores a file. After ``attempts`` refusals by the server, the failure is recorded and not raised."""
        try:
            store()
        except Exception as error:
            if is_out_of_reach(error):
                raise
            self._failed_stores[path] += 1
            if is_trouble_of_the_server(error) and self._failed_stores[path] < attempts:
                raise
            self.not_stored[path] = in_words(error)
        else:
            self.not_stored.pop(path, None)

    def _store_recipe(self, writer: StudyWriter, trial: str) -> None:
        # The name that the file would have in the study's directory.
        path = self._spool.journal_path.parent / "trials" / trial / RECIPE_FILE
        self._store(path, partial(writer.store_recipe, trial))


class _Failure(NamedTuple):
    """The step that failed last: its first and last byte in the journal, and the number of failures."""

    start: int
    end: int
    attempts: int


def _steps(batch: list[JournalLine], singly_until: int) -> list[list[JournalLine]]:
    """Groups the lines that are written at once: successive epochs together, and each other line alone.

    All epochs of a trial are then written in one call, which shortens a long backlog. Lines that begin before the byte
    ``singly_until`` are written one by one.
    """

    def is_written_together(line: JournalLine) -> bool:
        return line.event["event"] == "epoch" and line.start >= singly_until

    steps: list[list[JournalLine]] = []
    for is_together, group in groupby(batch, key=is_written_together):
        lines = list(group)
        steps += [lines] if is_together else [[line] for line in lines]
    return steps


def _event_in_words(event: Event) -> str:
    """Describes an event: ``epoch 3 of seed=0``, ``trial ended: seed=0``, ``study started``."""
    if event["event"] == "epoch":
        return f"epoch {event['epoch']} of {printable(event['trial'])}"
    trial: str | None = cast(dict[str, Any], event).get("trial")
    kind = event["event"].replace("_", " ")
    return f"{kind}: {printable(trial)}" if trial else kind
