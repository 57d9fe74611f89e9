"""MLflow's SQLite database as a file that is copied and moved. Asked without mlflow, whose import takes seconds.

MLflow keeps where the artifacts lie as absolute URIs, so a database that was moved or copied points to its old place.
What this package creates is in ``mlartifacts/EXPERIMENT`` next to the database; :func:`artifacts_stay_beside` writes
that anew wherever it is opened.
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

# (table, column) of MLflow 3.17 (store/tracking/dbmodels/models.py) that hold places below an experiment's.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
_BUSY_SECONDS = 20.0  # how long a writer waits for another one's transaction


def artifact_folder(database: Path, experiment: str) -> Path:
    """Where the artifacts of an experiment lie that this package creates."""
    return database.absolute().parent / ARTIFACTS_FOLDER / experiment


def has_run(database: Path, run_id: str) -> bool:
    """Whether MLflow's database has a run, deleted or not; False too for what is no such database."""
    with suppress(sqlite3.Error, OSError), _open(database, "ro") as connection:
        return connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    return False


def check_experiment(database: Path, experiment: str) -> None:
    """Raises UserError if an experiment is there and has been deleted."""
    found = None
    with suppress(sqlite3.Error, OSError), _open(database, "ro") as connection:
        found = connection.execute(
            "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'",
            (experiment,),
        ).fetchone()
    if found:
        raise deleted_experiment(sqlite_uri(database), experiment, str(found[0]))


def deleted_experiment(tracking_uri: str, experiment: str, experiment_id: str) -> UserError:
    """The error that says so, and how to restore it."""
    return UserError(
        f"{named(tracking_uri)}: the experiment {experiment!r} was deleted there; set {EXPERIMENT_VARIABLE} to "
        f"another name, or restore it with:  {restore_experiment_command(tracking_uri, experiment_id)}"
    )


def make_if_missing(database: Path) -> None:
    """Makes MLflow's tables in a database that is missing or empty: all of them, or the file stays as it was.

    MLflow makes them in dozens of transactions, which take seconds. A disk that fills up meanwhile, or a kill, would
    leave a part of them, and such a database MLflow neither opens nor completes: "table webhooks already exists". One
    process at a time may call this. Raises what mlflow raises.
    """
    database = database.resolve()  # a link stays one
    if database.exists() and database.stat().st_size:
        return
    # Of MLflow 3.17, which its store calls too. Its client would keep the file open, under the name that it loses.
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
    from sqlalchemy import event

    partial = partial_path(database)
    _remove(partial)
    # SQLite's own files can be written by their owner alone; this one by whomever the umask lets.
    partial.touch()
    engine = create_sqlalchemy_engine(sqlite_uri(partial))
    # Nobody needs what an interruption leaves of it, so the disk is waited for once, and not in each transaction.
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
    """Removes a database, and the journal without which SQLite would not open one that a kill interrupted."""
    for file in (database, database.with_name(f"{database.name}-journal")):
        file.unlink(missing_ok=True)


def artifacts_stay_beside(database: Path) -> None:
    """Points the database to its own artifacts, if it has been moved or copied since it was last opened.

    Changes experiments whose artifacts were in ``mlartifacts/EXPERIMENT`` next to some database: if they are next to
    this one now, or no longer lie there. Any other place was chosen by somebody.
    """
    if not database.is_file():
        return
    with suppress(sqlite3.OperationalError), _open(database, "rw") as connection:  # one without tables, yet
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
    """What MLflow's client is given for a tracking URI.

    MLflow makes the folder of a database under its name in the URI, unquoted or not (store/db/utils.py,
    _make_parent_dirs_if_sqlite). Where a ``%`` or ``?`` had to be quoted in it, that would be another folder, so there
    the database is reached through a link whose name needs no quoting.
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
        # A version of MLflow that has not this table has nothing to move in it.
        with suppress(sqlite3.OperationalError):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )
