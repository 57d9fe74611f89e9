"""A thread that delivers a study's journal to MLflow without ever delaying the study."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from nfnet_ray.printable import display_path, printable
from nfnet_ray.tracking.delivery.pending import PendingDelivery
from nfnet_ray.tracking.delivery.spool import STUDY_RUN, Spool, TrackedStudy, Undelivered
from nfnet_ray.tracking.destination.experiment import restore_experiment_command, restore_runs_command
from nfnet_ray.tracking.destination.failures import in_words
from nfnet_ray.tracking.destination.server import MLFLOW_ENVIRONMENT, go_past_proxies_to_this_machine
from nfnet_ray.tracking.destination.uri import with_credentials_aside
from nfnet_ray.tracking.runs.files import study_files
from nfnet_ray.wording import agree, count

logger = logging.getLogger(__name__)

# The pause between two deliveries. A call of log_batch takes the driver at least 10 ms, for one epoch or a hundred, so
# a study of many short epochs would spend half of its driver's time on these calls. A long delivery is followed by a
# longer pause, so that at most a tenth of the time is spent on MLflow, unless a backlog grows.
_SECONDS_BETWEEN_DELIVERIES, _MOST_SECONDS_BETWEEN_DELIVERIES = 1.0, 20.0
_LARGEST_SHARE = 0.1
# The pause between two attempts on a server that does not answer: long enough to leave the server alone, short enough
# that the delivery has caught up by the time a person has looked.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_PAUSE_WHILE_CLOSING_SECONDS = 0.5
_LOOK_SECONDS = 0.2
_MOST_RUNS_NAMED, _MOST_FILES_NAMED = 5, 3

_MLFLOW_ENVIRONMENT = {
    **MLFLOW_ENVIRONMENT,
    # set_terminated prints a link in the middle of the progress table.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_MLFLOW_DEFAULTS = {
    # mlflow would wait 120 s for an answer and retry 7 times before it reports an error. The sink retries itself.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


class MLflowSink:
    """Delivers the pending events in ``spool``, in order, in one background thread.

    A failed call is repeated, after longer and longer pauses, until it succeeds or the sink is closed. Missing events
    then stay in the journal and are delivered to the same runs when the study is resumed. :meth:`last_words` lists what
    is missing, and what MLflow refuses (:class:`nfnet_ray.tracking.delivery.pending.PendingDelivery`).

    No method raises errors of MLflow, and only :meth:`close` waits for it.

    Args:
        tracking_uri: a URI that :func:`nfnet_ray.tracking.destination.uri_check.check_tracking_uri` accepts.
        spool: the study's spool, in which only this sink may acknowledge.
        experiment: the name of the experiment, by default that of the study's file.
    """

    def __init__(self, tracking_uri: str, spool: Spool, experiment: str | None = None) -> None:
        self._tracking_uri = with_credentials_aside(tracking_uri)
        self._spool = spool
        self._thread = threading.Thread(target=self._run, name="mlflow-sink", daemon=True)
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._delivery = PendingDelivery(
            self._tracking_uri, spool, experiment, self._closing, self._abandoned
        )
        self._trouble = ""
        # When the trouble began: in Unix seconds, and by time.monotonic.
        self._trouble_since = self._silent_since = 0.0

    def start(self) -> None:
        """Starts delivering, unless it has started already. Sets MLflow's environment variables for this process."""
        if self._thread.ident is not None:
            return
        os.environ.update(_MLFLOW_ENVIRONMENT)
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        go_past_proxies_to_this_machine(self._tracking_uri)
        self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """Notifies the thread that the journal has grown."""
        # Recorded before anything is delivered, so that a study that is killed is resumed at the same address.
        if self._thread.ident is None and self._spool.tracked.tracking_uri != self._tracking_uri:
            self._spool.acknowledge(0, TrackedStudy(self._tracking_uri), Undelivered())
        self._wake.set()

    def attach(self, path: Path) -> None:
        """Stores a file with the study's run, once everything that is pending now has been delivered."""
        self._delivery.attachments.append(path)
        self._wake.set()

    def attach_study(self) -> None:
        """Stores the files of the study's directory (:func:`nfnet_ray.tracking.runs.files.study_files`)."""
        for path in study_files(self._spool.journal_path.parent):
            self.attach(path)

    def close(self, deadline_seconds: float, unanswered_seconds: float | None = None) -> int:
        """Delivers what it can within the deadline; returns the number of events and files that were not accepted.

        If MLflow does not answer, it is retried for only ``unanswered_seconds``, by default until the deadline. If a
        database is being created, this is waited for in any case, because it takes only seconds and the next process
        would start again.
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
        while self._thread.is_alive() and self._delivery.opens_database.is_set():
            self._thread.join(_LOOK_SECONDS)
        return self._spool.pending_count() + len({*self._delivery.not_stored, *self._delivery.attachments})

    @property
    def backlog(self) -> int:
        """The number of events that MLflow has not received; 0 if delivery has not started, before the first epoch."""
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
        """Returns what did not reach MLflow, as [(sentences, a command or "")]; [] if nothing is missing."""
        undelivered = self._spool.undelivered
        waiting = self._spool.pending_count() - self._spool.undelivered_count()
        missing = waiting + self._spool.undelivered_count()
        words = self._words_about_deleted_runs()
        if undelivered.refused and self._delivery.why_refused:
            refused = count(len(undelivered.refused), "event")
            words.append((f"MLflow refused {refused}, the last one {self._delivery.why_refused}", ""))
        if missing:
            why = f" ({self._trouble})" if waiting and self._trouble else ""
            journal = printable(display_path(self._spool.journal_path))
            left = f"{count(missing, 'event')} could not be delivered to MLflow{why}, and kept in {journal}."
            words.append((f"{left} Deliver with:", resume_command))
        not_stored = dict(self._delivery.not_stored)
        if not missing:
            not_stored |= dict.fromkeys(self._delivery.attachments, self._trouble or "no time was left")
        return words + _words_about_files(not_stored)

    def _words_about_deleted_runs(self) -> list[tuple[str, str]]:
        tracked, why_held = self._spool.tracked, self._delivery.why_held
        held = self._spool.undelivered.held
        if "in a deleted experiment" in why_held.values():
            command = restore_experiment_command(self._tracking_uri, tracked.experiment_id)
            return [
                (
                    f"The experiment {self._delivery.experiment!r} was deleted in MLflow. Restore it with:",
                    command,
                )
            ]
        deleted = [run for run, why in why_held.items() if why == "deleted" and run in held]
        if not deleted:
            return []
        ids = {STUDY_RUN: tracked.study_run_id, **tracked.trial_run_ids}
        names = _first_of([run or "the study" for run in deleted], _MOST_RUNS_NAMED)
        command = restore_runs_command(self._tracking_uri, [ids[run] for run in deleted])
        verb = agree(len(deleted), "run was", "runs were")
        return [(f"In MLflow the {verb} deleted of {names}. Restore with:", command)]

    def _run(self) -> None:
        """Runs in the thread: delivers when woken, with pauses, until the sink is closed or abandoned."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._abandoned.is_set():
            self._wake.wait()
            self._wake.clear()
            was_open, began = self._delivery.is_open, time.monotonic()
            delivered_before = self._spool.acknowledged_bytes
            try:
                self._delivery.deliver(on_progress=self._answers_again)
            except Exception as error:  # whatever the error, the study continues
                self._delivery.reopen()
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
                seconds = time.monotonic() - began if was_open else 0.0  # opening happens only once
                between = max(_SECONDS_BETWEEN_DELIVERIES, seconds / _LARGEST_SHARE)
                self._closing.wait(min(between, _MOST_SECONDS_BETWEEN_DELIVERIES))

    def _answers_again(self) -> None:
        self._trouble = ""  # even if the backlog takes long


def _words_about_files(not_stored: dict[Path, str]) -> list[tuple[str, str]]:
    """Returns a sentence for each reason, without a command, from {file: why it could not be stored}."""
    words = []
    for why in dict.fromkeys(not_stored.values()):
        files = [printable(display_path(path)) for path, reason in not_stored.items() if reason == why]
        words.append((f"{_first_of(files, _MOST_FILES_NAMED)} could not be stored in MLflow: {why}", ""))
    return words


def _first_of(names: list[str], most: int) -> str:
    """Lists names, such as ``a, b, c and 2 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
