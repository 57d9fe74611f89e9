"""Checks whether a study can be recorded at a tracking URI."""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, urlsplit

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.destination.database import check_experiment
from nfnet_ray.tracking.destination.experiment import experiment_name
from nfnet_ray.tracking.destination.server import check_server
from nfnet_ray.tracking.destination.uri import NOT_RECORDED, named, sqlite_path, with_credentials_aside

MOST_DATABASE_PATH_BYTES = 496
"""MAX_PATHNAME of SQLite's os_unix.c, 512, minus the lengths of "-journal" and of ".partial", used during creation."""

# The options of an SQLite URI that SQLAlchemy accepts (dialects/sqlite/pysqlite.py, create_connect_args), without
# ``uri``, which gives the path another meaning.
_SQLITE_OPTIONS = {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"}
_WHAT_TO_USE = "use sqlite:///mlflow.db, or the http(s) address of an MLflow server"


def check_tracking_uri(uri: str, experiment: str | None = None) -> None:
    """Checks whether a study can be recorded at ``uri``, by looking at the file system or asking the server.

    A server is asked with MLflow's own client, which imports mlflow. ``experiment`` is the study's experiment, by
    default the environment's or ``nfnet_ray``.

    Raises:
        UserError: the scheme is not supported; the server does not answer, is not MLflow or refuses us; the database
            cannot be written; or the experiment has been deleted.
    """
    uri = with_credentials_aside(uri)
    check_scheme(uri)
    if urlsplit(uri).scheme in ("http", "https"):
        if "#" in uri or "?" in uri:
            raise UserError(
                f"{named(uri)}: leave out the ? or # and what follows, which are pages of a browser"
            )
        check_server(uri, experiment)
    else:
        _check_sqlite(uri, experiment or experiment_name())


def check_scheme(uri: str) -> None:
    """Raises UserError if ``uri`` is neither an address nor a database. Accesses neither files nor network."""
    scheme = urlsplit(uri).scheme
    if uri == NOT_RECORDED:
        raise UserError(f"{named(uri)} names no MLflow; {_WHAT_TO_USE}")
    if scheme in ("", "file"):
        raise UserError(f"{named(uri)}: MLflow no longer keeps runs in folders; {_WHAT_TO_USE}")
    if scheme not in ("http", "https", "sqlite"):
        raise UserError(f"{named(uri)}: {scheme}: is not supported; {_WHAT_TO_USE}")


def _check_sqlite(uri: str, experiment: str) -> None:
    path = sqlite_path(uri)
    if path is None or not path.name:
        raise UserError(f"{named(uri)} names no file; write it as sqlite:///mlflow.db")
    options = {name for name, _ in parse_qsl(uri.partition("?")[2], keep_blank_values=True)}
    if ("?" in uri and not options) or options - _SQLITE_OPTIONS:
        raise UserError(
            f"{named(uri)}: the text after ? is not an option of SQLite; in a path write ? as %3F"
        )
    if str(path).startswith(":memory:"):
        raise UserError(f"{named(uri)} is gone when the study ends; name a file")
    if path.is_dir():
        raise UserError(f"{named(uri)}: {path} is a folder; name a file in it, such as mlflow.db")
    if len(os.fsencode(path.absolute())) > MOST_DATABASE_PATH_BYTES:
        raise UserError(
            f"{named(uri)}: SQLite opens no path of more than {MOST_DATABASE_PATH_BYTES} bytes; "
            "name a shorter one"
        )
    if path.exists() and not path.is_file():
        raise UserError(f"{named(uri)}: {path} is not a regular file; name another one")
    if path.exists():
        try:
            with path.open("rb") as stream:
                first_bytes = stream.read(16)
        except OSError as error:
            raise UserError(f"{named(uri)}: {path} cannot be read ({error.strerror})") from None
        # https://www.sqlite.org/fileformat.html section 1.3. An empty file will become a database.
        if first_bytes not in (b"", b"SQLite format 3\0"):
            raise UserError(f"{named(uri)}: {path} is not an SQLite database; name another file")
        if not os.access(path, os.W_OK):
            raise UserError(f"{named(uri)}: {path} cannot be written; check its permissions")
        check_experiment(path, experiment)
    folder = path.absolute().parent
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{named(uri)}: nothing can be written in {nearest}; name a file elsewhere")
