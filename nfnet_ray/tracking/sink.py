"""The thread that carries a study's journal to MLflow, and never into the study's way."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nfnet_ray.tracking.events import EpochEnded, Event
from nfnet_ray.tracking.spool import Spool
from nfnet_ray.tracking.uri import sqlite_path
from nfnet_ray.wording import count

if TYPE_CHECKING:
    from nfnet_ray.tracking.writer import StudyWriter

logger = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "nfnet_ray"

_EVENTS_PER_READ = 200
# Between two attempts on a server that does not answer: long enough to leave it alone, short enough
# that it has caught up by the time a person has looked.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_PAUSE_WHILE_CLOSING_SECONDS = 0.5

_MLFLOW_ENVIRONMENT = {
    # The telemetry thread changes os.environ while requests iterates over it, which fails at random.
    "MLFLOW_DISABLE_TELEMETRY": "true",
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
    the same runs. An event that the server refuses as invalid is set aside, said so in :attr:`status`,
    and does not hold up the others.

    No method raises because of MLflow, and none but :meth:`close` waits for it.

    Args:
        tracking_uri: what :func:`nfnet_ray.tracking.uri.check_tracking_uri` accepts.
        spool: the study's; nobody else may acknowledge in it.
        experiment: by default the environment's MLFLOW_EXPERIMENT_NAME, or else ``nfnet_ray``.
    """

    def __init__(self, tracking_uri: str, spool: Spool, experiment: str | None = None) -> None:
        self._tracking_uri = tracking_uri
        self._spool = spool
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
        self._thread = threading.Thread(target=self._run, name="mlflow-sink", daemon=True)
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._attachments: list[Path] = []
        self._writer: StudyWriter | None = None
        self._refused = 0
        self._trouble = ""
        self._trouble_since = 0.0

    def start(self) -> None:
        """Begin to deliver, if that has not begun. Sets MLflow's environment variables for this process."""
        if self._thread.ident is not None:
            return
        os.environ.update(_MLFLOW_ENVIRONMENT)
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """Say that the journal has grown."""
        self._wake.set()

    def attach(self, path: Path) -> None:
        """Store a file with the study's run, once all that is pending now has been delivered."""
        self._attachments.append(path)
        self._wake.set()

    def close(self, deadline_seconds: float) -> int:
        """Deliver what can be delivered within the deadline; return how many events could not be."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(deadline_seconds)
        self._abandoned.set()
        return self._spool.pending_count()

    @property
    def status(self) -> str:
        """One line for a progress display."""
        waiting = self._spool.pending_count()
        refused = f", {count(self._refused, 'event')} refused" if self._refused else ""
        if self._trouble:
            since = time.strftime("%H:%M", time.localtime(self._trouble_since))
            return f"MLflow: {count(waiting, 'event')} waiting, {self._trouble} since {since}{refused}"
        return f"MLflow: {count(waiting, 'event') + ' waiting' if waiting else 'up to date'}{refused}"

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._abandoned.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                self._deliver()
            except Exception as error:  # whatever it is, the study goes on
                self._writer = None  # what it knew of the server may no longer hold
                if not self._trouble:
                    self._trouble_since = time.time()
                self._trouble = _in_words(error)
                logger.debug("MLflow: delivery failed", exc_info=True)
                self._wake.set()
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

    def _deliver(self) -> None:
        """Deliver everything that is pending, then the attachments; stop between two calls if abandoned."""
        if self._writer is None:
            if not self._spool.pending_count() and not self._attachments:
                return
            self._writer = self._open_writer()
        while batch := list(islice(self._spool.pending(), _EVENTS_PER_READ)):
            for is_epoch, group in groupby(batch, key=lambda item: item[0]["event"] == "epoch"):
                # A stretch of epochs goes in one call for each trial, so that a long backlog is soon gone.
                for step in [list(group)] if is_epoch else [[item] for item in group]:
                    if self._abandoned.is_set():
                        return
                    self._write(self._writer, [event for event, _ in step])
                    self._spool.acknowledge(step[-1][1], self._writer.tracked)
        while self._attachments and not self._abandoned.is_set():
            self._writer.attach(self._attachments[0])
            self._attachments.pop(0)

    def _open_writer(self) -> StudyWriter:
        from mlflow import MlflowClient

        from nfnet_ray.tracking.writer import StudyWriter

        # Both would print into our progress table while the database is being created, and mlflow a stack trace of
        # 100 lines for each attempt that fails, of which status says all in a few words.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with _database_to_ourselves(self._tracking_uri):
            client = MlflowClient(tracking_uri=self._tracking_uri)
            writer = StudyWriter(client, self._tracking_uri, self._experiment, self._spool.journal_path)
        if not writer.tracked.study_run_id:
            # Another server than before, or its database is a new one: it gets the whole journal.
            self._spool.acknowledge(0, writer.tracked)
        return writer

    def _write(self, writer: StudyWriter, events: list[Event]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            if events[0]["event"] == "epoch":
                writer.write_epochs(cast(list[EpochEnded], events))
            else:
                writer.write(events[0])
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or not writer.tracked.study_run_id:
                raise
            if len(events) > 1:  # find the one that is meant
                for event in events:
                    self._write(writer, [event])
                return
            self._refused += 1
            logger.warning("MLflow refuses an event: %s", error.message)


@contextmanager
def _database_to_ourselves(tracking_uri: str) -> Iterator[None]:
    """Hold a lock beside an SQLite database: of two processes that create its tables at once, one fails."""
    from filelock import FileLock

    database = sqlite_path(tracking_uri)
    if database is None:
        yield
        return
    database.absolute().parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        yield


def _in_words(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    unreachable = ("Max retries exceeded", "Connection", "timed out", "Timeout")
    if any(sign in text for sign in unreachable) or isinstance(error, OSError):
        return "server does not answer"
    return text if len(text) <= 100 else f"{text[:99]}…"
