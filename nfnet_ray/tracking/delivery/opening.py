"""Opens MLflow for a study: its database or server, and the place in the journal where the delivery continues."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nfnet_ray.tracking.delivery.spool import Spool, Undelivered
from nfnet_ray.tracking.destination.database import artifacts_stay_beside, client_uri, make_if_missing
from nfnet_ray.tracking.destination.uri import sqlite_path

if TYPE_CHECKING:
    from nfnet_ray.tracking.delivery.writer import StudyWriter


def open_writer(
    tracking_uri: str,
    spool: Spool,
    experiment: str | None,
    abandoned: threading.Event,
    opens_database: threading.Event,
) -> StudyWriter:
    """Connects to MLflow and records in the spool what has to be delivered.

    ``opens_database`` is set while an SQLite database is being opened. Raises InterruptedError if the delivery was
    ``abandoned`` before that.
    """
    from mlflow import MlflowClient

    from nfnet_ray.tracking.delivery.writer import StudyWriter
    from nfnet_ray.tracking.destination.bulk_metrics import write_metrics_in_bulk

    # Both would print into the progress table while the database is being created. For each failed attempt, mlflow
    # prints a stack trace of 100 lines, which the sink's status summarises in a few words.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _locked_database(tracking_uri) as database:
        if database:
            artifacts_stay_beside(database)
            opens_database.set()
        try:
            # This must come last, because MLflowSink.close first sets ``abandoned`` and then waits for
            # ``opens_database``.
            if abandoned.is_set():
                raise InterruptedError("closed before MLflow was opened")
            if database:
                make_if_missing(database)
            client = MlflowClient(tracking_uri=client_uri(tracking_uri))
            write_metrics_in_bulk(client)
            noted = spool.tracked
            known = noted.experiment_id if noted.tracking_uri == tracking_uri else ""
            writer = StudyWriter(client, tracking_uri, spool.journal_path, experiment, known)
        finally:
            opens_database.clear()
    _note_what_is_missing(spool, writer)
    return writer


def _note_what_is_missing(spool: Spool, writer: StudyWriter) -> None:
    """Moves the cursor back if MLflow no longer has what it has acknowledged."""
    before, cursor, undelivered = spool.tracked, spool.acknowledged_bytes, spool.undelivered
    if not writer.tracked.study_run_id or before.tracking_uri != writer.tracked.tracking_uri:
        # The server is another one than before, or its database is new: deliver the whole journal.
        cursor, undelivered = 0, Undelivered()
    elif not undelivered.refused and writer.has_lost(cursor, undelivered.held):
        # An older backup of the database was restored: writing again what it already has does no harm.
        cursor, undelivered = 0, Undelivered()
    else:
        # Runs that are gone for good, as after `mlflow gc`, are written again.
        for trial in before.trial_run_ids.keys() - writer.tracked.trial_run_ids.keys():
            undelivered = undelivered.holding(trial, 0)
    spool.acknowledge(cursor, writer.tracked, undelivered)


@contextmanager
def _locked_database(tracking_uri: str) -> Generator[Path | None]:
    """Holds a lock next to an SQLite database, because of two processes that create its tables at once, one fails.

    Yields the database, or None for a server.
    """
    from filelock import FileLock

    database = sqlite_path(tracking_uri)
    if database is None:
        yield None
        return
    database.absolute().parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        yield database
