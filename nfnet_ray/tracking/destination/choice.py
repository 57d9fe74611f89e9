"""Chooses the MLflow in which a study is recorded if no address is given."""

from __future__ import annotations

import os
from pathlib import Path

from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.destination.uri import (
    NOT_RECORDED,
    URI_VARIABLE,
    default_tracking_uri,
    sqlite_path,
    sqlite_uri,
    with_credentials_aside,
)
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events


def tracking_uri_of_run(given: str | None, storage: Path, home: Path, study: str | None) -> str:
    """Returns the URI of :func:`tracking_uri_for`, for a study that is trained.

    A study that began with NOT_RECORDED is not recorded when it is resumed or extended either, until an address is
    given.
    """
    if given is None and study and _is_kept_out(storage / study):
        return NOT_RECORDED
    return tracking_uri_for(given, storage, home, study)


def tracking_uri_for(given: str | None, storage: Path, home: Path, study: str | None) -> str:
    """Returns the tracking URI, absolute and without a password, or NOT_RECORDED: the first one that is set.

    1. ``given``, on the command line;
    2. the one at which the study of this name in ``storage`` has been recorded so far;
    3. MLFLOW_TRACKING_URI in the environment;
    4. the database ``mlflow.db`` in ``storage``.

    Args:
        given: the URI on the command line, or None.
        storage: the folder of all studies, absolute.
        home: the folder to which relative paths refer.
        study: the name of the study if it is known; the study need not exist.

    Raises:
        UserError: the user name and password in an address cannot be distinguished from its host.
    """
    uri = given
    if uri is None and study:
        uri = _recorded_at(storage / study)
    uri = uri or (os.environ.get(URI_VARIABLE) if given is None else given)
    if not uri and given is None:
        return default_tracking_uri(storage)
    uri = with_credentials_aside(uri or "")
    path = sqlite_path(uri)
    if path is None or path.is_absolute() or not path.name or str(path).startswith((":memory:", "file:")):
        return uri
    options = uri.partition("?")[2]
    return sqlite_uri(home / path) + (f"?{options}" if options else "")


def _recorded_at(directory: Path) -> str:
    """Returns the tracking URI at which a study has been recorded so far; empty if there is none."""
    return Spool(directory / "unused", directory / SPOOL_FILE).tracked.tracking_uri


def _is_kept_out(directory: Path) -> bool:
    """Whether a study began with NOT_RECORDED, and has not been recorded since."""
    for event, _ in read_events(directory / JOURNAL_FILE):
        is_kept_out = event["event"] == "study_started" and event["study"].get("unrecorded", False)
        return is_kept_out and not _recorded_at(directory)
    return False
