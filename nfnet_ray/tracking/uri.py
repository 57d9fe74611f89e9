"""Tracking URIs: which there are, how a path becomes one, and whether a study can be recorded at one.

A tracking URI is the address of an MLflow server, or ``sqlite:///`` and the path of a database. In such a path ``%``
and ``?`` are written ``%25`` and ``%3F``: SQLAlchemy unquotes it, and takes what follows a ``?`` for options.

A user name and a password in an address go to MLflow's environment variables and no further: messages, files and MLflow
itself get the address without them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from nfnet_ray.errors import UserError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
USERNAME_VARIABLE = "MLFLOW_TRACKING_USERNAME"
PASSWORD_VARIABLE = "MLFLOW_TRACKING_PASSWORD"

MOST_DATABASE_PATH_BYTES = 504
"""MAX_PATHNAME of SQLite's os_unix.c, 512, less its "-journal"."""

_SQLITE = "sqlite:///"
# What SQLAlchemy takes from the options of an SQLite URI (dialects/sqlite/pysqlite.py, create_connect_args), but for
# ``uri``, which gives the path another meaning.
_SQLITE_OPTIONS = {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"}
_WHAT_TO_USE = "use sqlite:///mlflow.db, or the http(s) address of an MLflow server"


def sqlite_uri(path: Path) -> str:
    """The tracking URI of an SQLite database."""
    return _SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def default_tracking_uri(folder: Path) -> str:
    """The SQLite database ``mlflow.db`` in ``folder``, as an absolute URI."""
    return sqlite_uri(folder.resolve() / "mlflow.db")


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a ``sqlite:///`` URI (four slashes before an absolute path), or None for any other URI."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(unquote(tracking_uri.removeprefix(_SQLITE).partition("?")[0]))


def without_password(text: str) -> str:
    """A text, such as an address or a command, without what comes before the hosts of the addresses in it.

    >>> without_password("python train.py --tracking-uri=https://me:secret@host/mlflow")
    'python train.py --tracking-uri=https://host/mlflow'
    """
    text = re.sub(r"://[^/?#\s]*@", "://", text)
    # A password with a sign that would have to be quoted, such as a slash.
    return re.sub(r"://[^/\s@:]+:[^\s]*@", "://", text)


def with_credentials_aside(uri: str) -> str:
    """The address without its user name and password, which go to MLflow's environment variables of this process.

    Raises:
        UserError: it is not clear what is the password and what is the host.
    """
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018  raises ValueError
    except ValueError:
        raise UserError(
            f"tracking URI {without_password(uri)!r}: after a host's colon comes the number of its port; in a user "
            "name or a password write / as %2F, ? as %3F, # as %23 and @ as %40"
        ) from None
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    if parts.username:
        os.environ[USERNAME_VARIABLE] = unquote(parts.username)
    if parts.password:
        os.environ[PASSWORD_VARIABLE] = unquote(parts.password)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def check_tracking_uri(uri: str) -> None:
    """Find out whether a study can be recorded at ``uri``: a look at the file system, or a question to the server.

    A server is asked by MLflow's own client, so that imports mlflow.

    Raises:
        UserError: the scheme is not one that is supported; the server does not answer, answers as something else than
            MLflow or refuses us; the database cannot be written; or the experiment has been deleted.
    """
    uri = with_credentials_aside(uri)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        from nfnet_ray.tracking.server import check_server

        if "#" in uri or "?" in uri:
            raise UserError(
                f"{named(uri)}: leave out the ? or # and what follows, which are pages of a browser"
            )
        check_server(uri)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in ("", "file"):
        raise UserError(f"{named(uri)}: MLflow no longer keeps runs in folders; {_WHAT_TO_USE}")
    else:
        raise UserError(f"{named(uri)}: {scheme}: is not supported; {_WHAT_TO_USE}")


def named(uri: str) -> str:
    """The URI as the subject of a message, with where it comes from if nobody typed it."""
    source = f" (from {URI_VARIABLE})" if uri and os.environ.get(URI_VARIABLE) == uri else ""
    return f"tracking URI {without_password(uri)!r}{source}"


def _check_sqlite(uri: str) -> None:
    from nfnet_ray.tracking.database import check_experiment

    path = sqlite_path(uri)
    if path is None or not path.name:
        raise UserError(f"{named(uri)} names no file; write it as sqlite:///mlflow.db")
    options = {name for name, _ in parse_qsl(uri.partition("?")[2], keep_blank_values=True)}
    if ("?" in uri and not options) or options - _SQLITE_OPTIONS:
        raise UserError(f"{named(uri)}: what follows ? are no options of SQLite; in a path write ? as %3F")
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
        # https://www.sqlite.org/fileformat.html section 1.3; a file that is still empty becomes a database.
        if first_bytes not in (b"", b"SQLite format 3\0"):
            raise UserError(f"{named(uri)}: {path} is not an SQLite database; name another file")
        if not os.access(path, os.W_OK):
            raise UserError(f"{named(uri)}: {path} cannot be written; check its permissions")
        check_experiment(path)
    folder = path.absolute().parent
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{named(uri)}: nothing can be written in {nearest}; name a file elsewhere")
