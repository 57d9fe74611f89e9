"""Handles MLflow's SQLite database as a file that may be copied and moved, without the slow import of mlflow.

MLflow stores the locations of artifacts as absolute URIs, so a database that was moved or copied refers to its old
place. This package stores artifacts in ``mlartifacts/EXPERIMENT`` next to the database, and
:func:`artifacts_stay_beside` updates these locations wherever the database is opened.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.destination.experiment import EXPERIMENT_VARIABLE, restore_experiment_command
from nfnet_ray.tracking.destination.uri import named, sqlite_path, sqlite_uri
from nfnet_ray.whole_file import partial_path, replace_for_good

ARTIFACTS_FOLDER = "mlartifacts"

# (table, column) of MLflow 3.17 (store/tracking/dbmodels/models.py) with locations below that of an experiment.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
_BUSY_SECONDS = 20.0  # the time for which a writer waits for another transaction


def artifact_folder(database: Path, experiment: str) -> Path:
    """Returns the folder of the artifacts of an experiment that this package creates."""
    return database.absolute().parent / ARTIFACTS_FOLDER / experiment


def has_run(database: Path, run_id: str) -> bool:
    """Whether MLflow's database has a run, deleted or not; False if the file is not such a database."""
    with suppress(sqlite3.Error, OSError), _open(database, "ro") as connection:
        return connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    return False


def check_experiment(database: Path, experiment: str) -> None:
    """Raises UserError if the experiment exists and has been deleted."""
    found = None
    with suppress(sqlite3.Error, OSError), _open(database, "ro") as connection:
        found = connection.execute(
            "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'",
            (experiment,),
        ).fetchone()
    if found:
        raise deleted_experiment(sqlite_uri(database), experiment, str(found[0]))


def deleted_experiment(tracking_uri: str, experiment: str, experiment_id: str) -> UserError:
    """Returns the error for a deleted experiment, with the command that restores it."""
    return UserError(
        f"{named(tracking_uri)}: the experiment {experiment!r} was deleted there; set {EXPERIMENT_VARIABLE} to "
        f"another name, or restore it with:  {restore_experiment_command(tracking_uri, experiment_id)}"
    )


def make_if_missing(database: Path) -> None:
    """Creates MLflow's tables in a database that is missing or empty: either all of them, or the file is unchanged.

    MLflow creates them in dozens of transactions, which take seconds. If the disk fills up meanwhile, or the process is
    killed, only some tables exist, and MLflow neither opens nor completes such a database: "table webhooks already
    exists". Only one process at a time may call this. Raises mlflow's errors.
    """
    database = database.resolve()  # so that a link remains a link
    if database.exists() and database.stat().st_size:
        return
    # From MLflow 3.17, whose store calls it, too. Its client would keep the file open under the temporary name.
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
    from sqlalchemy import event

    partial = partial_path(database)
    _remove(partial)
    # SQLite makes files that only their owner can write. This one is created first, with the permissions of the umask.
    partial.touch()
    engine = create_sqlalchemy_engine(sqlite_uri(partial))
    # The result of an interruption is discarded, so waiting for the disk once at the end is sufficient.
    event.listen(engine, "connect", _do_not_wait_for_the_disk)
    try:
        _initialize_tables(engine)
        engine.dispose()
        replace_for_good(partial, database)
    finally:
        engine.dispose()
        _remove(partial)


def _do_not_wait_for_the_disk(connection: sqlite3.Connection, *_: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=MEMORY")


def _remove(database: Path) -> None:
    """Removes a database and its journal, without which SQLite would not open a database that a kill interrupted."""
    for file in (database, database.with_name(f"{database.name}-journal")):
        file.unlink(missing_ok=True)


def artifacts_stay_beside(database: Path) -> None:
    """Updates the locations of artifacts in the database, if it has been moved or copied since it was last opened.

    Changes experiments whose artifacts were in ``mlartifacts/EXPERIMENT`` next to some database, if the artifacts are
    next to this one now, or no longer exist there. Any other location was chosen by a person and is kept.
    """
    if not database.is_file():
        return
    with suppress(sqlite3.OperationalError), _open(database, "rw") as connection:  # it may lack tables
        experiments = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
        for name, location in experiments:
            own, before = artifact_folder(database, name), _local_folder(location)
            if before is None or before.parts[-2:] != (ARTIFACTS_FOLDER, name) or before == own:
                continue
            if before.exists() and (not own.exists() or before.samefile(own)):
                continue
            _move_places(connection, location, own.as_uri())
        connection.commit()


def client_uri(tracking_uri: str) -> str:
    """Returns the URI with which MLflow's client is opened for a tracking URI.

    MLflow creates the folder of a database under its quoted name in the URI (store/db/utils.py,
    _make_parent_dirs_if_sqlite). If a ``%`` or ``?`` had to be quoted, that would be another folder. The database is
    then accessed through a link whose name needs no quoting.
    """
    database = sqlite_path(tracking_uri)
    if database is None or not set(str(database.absolute().parent)) & {"%", "?"}:
        return tracking_uri
    database.absolute().parent.mkdir(parents=True, exist_ok=True)
    options = tracking_uri.partition("?")[2]
    link = sqlite_uri(_link_to(database.absolute().parent) / database.name)
    return f"{link}?{options}" if options else link


@cache
def _link_to(folder: Path) -> Path:
    scratch = Path(tempfile.mkdtemp(prefix="nfnet_ray-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    (scratch / "storage").symlink_to(folder)
    return scratch / "storage"


@contextmanager
def _open(database: Path, mode: str) -> Generator[sqlite3.Connection]:
    uri = f"file:{quote(os.fsencode(database.absolute()))}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as connection:
        yield connection


def _local_folder(location: str | None) -> Path | None:
    parts = urlsplit(location or "")
    if parts.scheme != "file" or parts.netloc:
        return None
    return Path(unquote(parts.path))


def _move_places(connection: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in _PLACES:
        # A version of MLflow without this table has nothing to update in it.
        with suppress(sqlite3.OperationalError):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )
