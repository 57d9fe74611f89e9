"""Where MLflow lives: which tracking URIs are taken, and whether one answers, without importing mlflow."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nfnet_ray.errors import UserError

CHECK_SECONDS = 5.0
"""How long a person who starts a study is kept waiting for a server that says nothing."""

MOST_DATABASE_PATH_BYTES = 504
"""MAX_PATHNAME of SQLite's os_unix.c, 512, less its "-journal"."""

_WHAT_TO_USE = "use sqlite:///mlflow.db, or the http(s) address of an MLflow server"


def default_tracking_uri(folder: Path) -> str:
    """The SQLite database ``mlflow.db`` in ``folder``, as an absolute URI."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a ``sqlite:///`` URI (four slashes before an absolute path), or None for any other URI."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(unquote(tracking_uri.removeprefix("sqlite:///").partition("?")[0]))


def check_tracking_uri(uri: str) -> None:
    """Find out within :data:`CHECK_SECONDS` whether a study can be recorded at ``uri``.

    Raises:
        UserError: the scheme is not one that is supported, the server does not answer, answers as
            something else than MLflow or refuses us, or the database cannot be written.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in ("", "file"):
        raise UserError(f"tracking URI {uri!r}: MLflow no longer keeps runs in folders; {_WHAT_TO_USE}")
    else:
        raise UserError(f"tracking URI {uri!r}: {scheme}: is not supported; {_WHAT_TO_USE}")


def _check_sqlite(uri: str) -> None:
    path = sqlite_path(uri)
    if path is None or not path.name:
        raise UserError(f"tracking URI {uri!r} names no file; write it as sqlite:///mlflow.db")
    if path.is_dir():
        raise UserError(f"tracking URI {uri!r}: {path} is a folder; name a file in it, such as mlflow.db")
    if len(os.fsencode(path.absolute())) > MOST_DATABASE_PATH_BYTES:
        raise UserError(
            f"tracking URI {uri!r}: SQLite opens no path of more than {MOST_DATABASE_PATH_BYTES} bytes; "
            "name a shorter one"
        )
    if path.exists() and not path.is_file():
        raise UserError(f"tracking URI {uri!r}: {path} is not a regular file; name another one")
    if path.exists():
        with path.open("rb") as stream:
            first_bytes = stream.read(16)
        # https://www.sqlite.org/fileformat.html section 1.3; a file that is still empty becomes a database.
        if first_bytes not in (b"", b"SQLite format 3\0"):
            raise UserError(f"tracking URI {uri!r}: {path} is not an SQLite database; name another file")
        if not os.access(path, os.W_OK):
            raise UserError(f"tracking URI {uri!r}: {path} cannot be written; check its permissions")
    folder = path.absolute().parent
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"tracking URI {uri!r}: nothing can be written in {nearest}; name a file elsewhere")


def _check_server(uri: str) -> None:
    """Ask in a thread: a name server that does not answer has no timeout of its own."""
    problem: list[str | None] = []
    asking = threading.Thread(target=lambda: problem.append(_server_problem(uri)), daemon=True)
    asking.start()
    asking.join(CHECK_SECONDS)
    found = problem[0] if problem else f"did not answer within {CHECK_SECONDS:g} s; is it running?"
    if found:
        raise UserError(f"MLflow server {uri} {found}")


def _server_problem(uri: str) -> str | None:
    """What is wrong with the server, or None. ``/health`` answers ``OK`` (mlflow/server/__init__.py)."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CHECK_SECONDS) as answer:
            text = answer.read(100)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(200)
        if error.code == 403 and b"Host" in text:
            return "refuses this host name; start it with --allowed-hosts, or use its IP address"
        if error.code in (401, 403):
            return f"refuses the request (HTTP {error.code}); check MLFLOW_TRACKING_USERNAME and _PASSWORD"
        return f"answers HTTP {error.code} to /health; is that the address of an MLflow server?"
    except TimeoutError:
        return f"did not answer within {CHECK_SECONDS:g} s; is it running?"
    except urllib.error.URLError as error:
        return f"cannot be reached ({_cause(error.reason)}); is it running, and the address right?"
    except (OSError, ValueError) as error:
        return f"cannot be reached ({_cause(error)}); is it running, and the address right?"
    if text.strip() != b"OK":
        return "is a web server but not MLflow's; check the address and the port"
    return None


def _cause(error: object) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
