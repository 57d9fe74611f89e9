"""What an error of MLflow's client means: that nobody answers, that an event is refused, that we are; and its words."""

from __future__ import annotations

import re
from http import HTTPStatus

from nfnet_ray.printable import printable
from nfnet_ray.tracking.destination.uri import without_password

REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}
"""What MLflow says of an event that it will not take, however often it is asked."""

# What it says of us, which may be put right while a study runs; and what is said of that.
_REFUSES_US = {
    "UNAUTHENTICATED": "server refuses us (HTTP 401), check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "PERMISSION_DENIED": "server does not let us write (HTTP 403), ask for the permission EDIT on the experiment",
}

# How urllib3 words the status of an answer for which a request is made again (urllib3/util/retry.py), and how MLflow
# words that of another answer that is none of its own, such as a proxy's (mlflow/utils/rest_utils.py).
_ANSWERED = re.compile(r"too many (\d{3}) error responses|failed with error code (\d{3}) ")


def is_out_of_reach(error: Exception) -> bool:
    """Whether a server did not answer, so that it may another time."""
    from requests import exceptions

    signs = ("Max retries exceeded", "Connection", "timed out", "Timeout")
    return _status_of(error) is None and (
        isinstance(error, exceptions.ConnectionError | exceptions.Timeout)
        or any(sign in str(error) for sign in signs)
    )


def may_be_of_the_event(error: Exception) -> bool:
    """Whether what was asked may be the reason for an error, as in a server that meets a bug, or has no room for it.

    It is not if nobody answers, if we are refused, or if there were too many requests.
    """
    if getattr(error, "error_code", "") in _REFUSES_US or isinstance(error, InterruptedError):
        return False
    return not is_out_of_reach(error) and _status_of(error) != HTTPStatus.TOO_MANY_REQUESTS


def is_trouble_of_the_server(error: Exception) -> bool:
    """Whether a server, or a proxy before it, answers that it cannot do now what was asked."""
    status = _status_of(error)
    return status is not None and (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    )


def in_words(error: Exception) -> str:
    """An error in a few words, in one line."""
    if (known := _REFUSES_US.get(getattr(error, "error_code", ""))) is not None:
        return known
    # A server that answers with an error, or a proxy before it, is told apart from one that is away.
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
    """The HTTP status of an answer that is no answer of MLflow's own."""
    found = _ANSWERED.search(str(error))
    return int(found[1] or found[2]) if found else None
