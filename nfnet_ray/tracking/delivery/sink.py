"""The thread that delivers a study's journal to MLflow, without ever holding up the study."""

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
_MOST_RUNS_NAMED, _MOST_FILES_NAMED = 5, 3

_MLFLOW_ENVIRONMENT = {
    **MLFLOW_ENVIRONMENT,
    # set_terminated prints a link, in the middle of the progress table.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_MLFLOW_DEFAULTS = {
    # mlflow would wait 120 s for an answer and ask 7 more times before it says so. The sink asks again itself.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


class MLflowSink:
    """Delivers what is pending in ``spool``, in order, in one background thread.

    A call that fails is made again, after longer and longer pauses, until it succeeds or the sink is
    closed; what is missing then stays in the journal and is delivered when the study is resumed, into
    the same runs. :meth:`last_words` names what is missing, and what MLflow refuses
    (:class:`nfnet_ray.tracking.delivery.pending.PendingDelivery`).

    No method raises because of MLflow, and none but :meth:`close` waits for it.

    Args:
        tracking_uri: what :func:`nfnet_ray.tracking.destination.uri_check.check_tracking_uri` accepts.
        spool: the study's; nobody else may acknowledge in it.
        experiment: its name, by default that of the study's file.
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
        # When the trouble began: as Unix seconds, and by time.monotonic.
        self._trouble_since = self._silent_since = 0.0

    def start(self) -> None:
        """Begins to deliver, if that has not begun. Sets MLflow's environment variables for this process."""
        if self._thread.ident is not None:
            return
        os.environ.update(_MLFLOW_ENVIRONMENT)
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        go_past_proxies_to_this_machine(self._tracking_uri)
        self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """Tells the thread that the journal has grown."""
        # Before anything is delivered, so that a study that was killed is resumed in the same place.
        if self._thread.ident is None and self._spool.tracked.tracking_uri != self._tracking_uri:
            self._spool.acknowledge(0, TrackedStudy(self._tracking_uri), Undelivered())
        self._wake.set()

    def attach(self, path: Path) -> None:
        """Stores a file with the study's run, once all that is pending now has been delivered."""
        self._delivery.attachments.append(path)
        self._wake.set()

    def attach_study(self) -> None:
        """Stores the files of the study's directory (:func:`nfnet_ray.tracking.runs.files.study_files`)."""
        for path in study_files(self._spool.journal_path.parent):
            self.attach(path)

    def close(self, deadline_seconds: float, unanswered_seconds: float | None = None) -> int:
        """Delivers what can be delivered within the deadline; returns how many events and files were not taken.

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
        while self._thread.is_alive() and self._delivery.opens_database.is_set():
            self._thread.join(_LOOK_SECONDS)
        return self._spool.pending_count() + len({*self._delivery.not_stored, *self._delivery.attachments})

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
        """The thread: delivers whenever it is woken, with pauses, until the sink is closed or abandoned."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._abandoned.is_set():
            self._wake.wait()
            self._wake.clear()
            was_open, began = self._delivery.is_open, time.monotonic()
            delivered_before = self._spool.acknowledged_bytes
            try:
                self._delivery.deliver(on_progress=self._answers_again)
            except Exception as error:  # whatever it is, the study continues
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
                seconds = time.monotonic() - began if was_open else 0.0  # opening happens once
                between = max(_SECONDS_BETWEEN_DELIVERIES, seconds / _LARGEST_SHARE)
                self._closing.wait(min(between, _MOST_SECONDS_BETWEEN_DELIVERIES))

    def _answers_again(self) -> None:
        self._trouble = ""  # though a backlog may take long


def _words_about_files(not_stored: dict[Path, str]) -> list[tuple[str, str]]:
    """A sentence for each reason, without a command, about {file: why it could not be stored}."""
    words = []
    for why in dict.fromkeys(not_stored.values()):
        files = [printable(display_path(path)) for path, reason in not_stored.items() if reason == why]
        words.append((f"{_first_of(files, _MOST_FILES_NAMED)} could not be stored in MLflow: {why}", ""))
    return words


def _first_of(names: list[str], most: int) -> str:
    """``a, b, c and 2 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
