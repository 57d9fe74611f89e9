"""Tracking URIs: which there are, how a path becomes one, what is said of one.

A tracking URI is the address of an MLflow server, or ``sqlite:///`` and the path of a database. In such a path ``%``
and ``?`` are written ``%25`` and ``%3F``: SQLAlchemy unquotes it, and takes what follows a ``?`` for options.

A user name and a password in an address go to MLflow's environment variables and no further: messages, files and MLflow
itself get the address without them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from nfnet_ray.errors import UserError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
USERNAME_VARIABLE = "MLFLOW_TRACKING_USERNAME"
PASSWORD_VARIABLE = "MLFLOW_TRACKING_PASSWORD"

DATABASE_FILE = "mlflow.db"
"""The default database, in the storage folder; SQLite's and our own files beside it begin with this name."""

NOT_RECORDED = "none"
"""In the place of a tracking URI: the study is not recorded in MLflow."""

_SQLITE = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """The tracking URI of an SQLite database."""
    return _SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def default_tracking_uri(folder: Path) -> str:
    """The SQLite database ``mlflow.db`` in ``folder``, as an absolute URI."""
    return sqlite_uri(folder.resolve() / DATABASE_FILE)


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


def named(uri: str) -> str:
    """The URI as the subject of a message, with where it comes from if nobody typed it."""
    source = f" (from {URI_VARIABLE})" if uri and os.environ.get(URI_VARIABLE) == uri else ""
    return f"tracking URI {without_password(uri)!r}{source}"
