"""Defines tracking URIs: the supported forms, conversion from paths, and their names in messages.

A tracking URI is the address of an MLflow server, or ``sqlite:///`` and the path of a database. In such a path ``%``
and ``?`` are written ``%25`` and ``%3F``, because SQLAlchemy unquotes the path and treats what follows a ``?`` as
options.

A user name and a password in an address are moved to MLflow's environment variables: messages, files and MLflow itself
get the address without them.
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
"""The default database, in the storage folder. The names of SQLite's and our own files beside it begin with this
name."""

NOT_RECORDED = "none"
"""The value of a tracking URI that means: do not record the study in MLflow."""

_SQLITE = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """Returns the tracking URI of an SQLite database."""
    return _SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def default_tracking_uri(folder: Path) -> str:
    """Returns the absolute URI of the SQLite database ``mlflow.db`` in ``folder``."""
    return sqlite_uri(folder.resolve() / DATABASE_FILE)


def sqlite_path(tracking_uri: str) -> Path | None:
    """Returns the file of a ``sqlite:///`` URI (four slashes before an absolute path); None for any other URI."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(unquote(tracking_uri.removeprefix(_SQLITE).partition("?")[0]))


def without_password(text: str) -> str:
    """Removes from a text, such as an address or a command, everything before the hosts of its addresses.

    >>> without_password("python train.py --tracking-uri=https://me:secret@host/mlflow")
    'python train.py --tracking-uri=https://host/mlflow'
    """
    text = re.sub(r"://[^/?#\s]*@", "://", text)
    # A password with a character that should have been quoted, such as a slash.
    return re.sub(r"://[^/\s@:]+:[^\s]*@", "://", text)


def with_credentials_aside(uri: str) -> str:
    """Returns an address without its user name and password, which are moved to MLflow's environment variables.

    Raises:
        UserError: the password cannot be distinguished from the host.
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
    """Returns the URI as the subject of a message, with its origin if it was not typed."""
    source = f" (from {URI_VARIABLE})" if uri and os.environ.get(URI_VARIABLE) == uri else ""
    return f"tracking URI {without_password(uri)!r}{source}"
