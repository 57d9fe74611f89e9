"""Classifies errors of MLflow's client: no answer, a refused event, or refused credentials; and describes them."""

from __future__ import annotations

import re
from http import HTTPStatus

from nfnet_ray.printable import printable
from nfnet_ray.tracking.destination.uri import without_password

REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}
"""MLflow's error codes for an event that it will never accept."""

# MLflow's error codes for refused credentials or permissions, which may be corrected while a study runs, with messages.
_REFUSES_US = {
    "UNAUTHENTICATED": "server refuses us (HTTP 401), check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "PERMISSION_DENIED": "server does not let us write (HTTP 403), ask for the permission EDIT on the experiment",
}

# The wording of urllib3 for the status of an answer after which a request is retried (urllib3/util/retry.py), and of
# MLflow for an answer that is not its own, such as a proxy's (mlflow/utils/rest_utils.py).
_ANSWERED = re.compile(r"too many (\d{3}) error responses|failed with error code (\d{3}) ")


def is_out_of_reach(error: Exception) -> bool:
    """Whether a server did not answer, so that a retry may succeed."""
    from requests import exceptions

    signs = ("Max retries exceeded", "Connection", "timed out", "Timeout")
    return _status_of(error) is None and (
        isinstance(error, exceptions.ConnectionError | exceptions.Timeout)
        or any(sign in str(error) for sign in signs)
    )


def may_be_of_the_event(error: Exception) -> bool:
    """Whether the event itself may be the reason for an error, e.g. if it triggers a bug of the server.

    It is not if the server does not answer, refuses the credentials, or received too many requests.
    """
    if getattr(error, "error_code", "") in _REFUSES_US or isinstance(error, InterruptedError):
        return False
    return not is_out_of_reach(error) and _status_of(error) != HTTPStatus.TOO_MANY_REQUESTS


def is_trouble_of_the_server(error: Exception) -> bool:
    """Whether a server, or a proxy in front of it, answers that it cannot handle the request at present."""
    status = _status_of(error)
    return status is not None and (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    )


def in_words(error: Exception) -> str:
    """Describes an error in a few words, on one line."""
    if (known := _REFUSES_US.get(getattr(error, "error_code", ""))) is not None:
        return known
    # A server (or a proxy in front of it) that answers with an error is distinguished from one that does not answer.
    if (status := _status_of(error)) is not None:
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return f"server takes no more requests for now (HTTP {status})"
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return f"server has trouble of its own (HTTP {status})"
        return f"server answers with HTTP {status}"
    if is_out_of_reach(error):
        return "server does not answer"
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = without_password(printable(text.strip().partition("\n")[0])) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:159]}…"


def _status_of(error: Exception) -> int | None:
    """Returns the HTTP status of an answer that does not come from MLflow itself."""
    found = _ANSWERED.search(str(error))
    return int(found[1] or found[2]) if found else None
