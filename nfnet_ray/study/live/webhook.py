"""Posts a JSON document to a webhook, which tells a chat, a pager or a script how a study is doing.

The address of a webhook is a secret, because everybody who knows it can post there. It is therefore neither printed nor
recorded in the journal; messages only contain :func:`shown_webhook`. A webhook never stops a study, and never delays it
for long.
"""

from __future__ import annotations

import base64
import json
import math
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import unquote, urlsplit, urlunsplit

from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable
from nfnet_ray.tracking.destination.server import is_this_machine
from nfnet_ray.tracking.events import study_id
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.wording import clock_time

WEBHOOK_VARIABLE = "NFNET_RAY_NOTIFY"
"""The environment variable for the webhook's address. An argument would be less safe: other users of a machine see the
arguments of its processes, and everybody who may see a job sees its command."""
WEBHOOK_SECONDS = 10.0
"""The longest time that one notification may take, including a retry."""
_ANSWER_SECONDS, _PAUSE_SECONDS, _ATTEMPTS = 4.0, 1.0, 2

Happening = Literal["finished", "failed", "interrupted", "cap"]


class WebhookEvent(TypedDict):
    """The JSON document that is posted.

    ``text`` contains everything in one paragraph, which Slack, Mattermost and Google Chat show.

    Attributes:
        event: ``finished`` (all trials have ended, some perhaps with a failure), ``interrupted`` (a person stopped the
            study), ``failed`` (the study had to stop), ``cap`` (a limit on time or money was reached).
        study_id: the tag ``study_id`` in MLflow.
        trials: {state: number of trials}.
        wall_seconds: the time for which drivers were at work.
        directory: the study's folder on ``host``.
        time: Unix seconds.
    """

    event: Happening
    study: str
    study_id: str
    text: str
    trials: dict[str, int]
    wall_seconds: float
    directory: str
    host: str
    time: float


def webhook_event(event: Happening, name: str, state: StudyState, directory: Path, text: str) -> WebhookEvent:
    """Returns the document to post about the study ``name``; ``text`` consists of sentences."""
    return {
        "event": event,
        "study": name,
        "study_id": study_id(state.started) if state.started else "",
        "text": text,
        "trials": dict(Counter(trial.state or "waiting" for trial in state.members)),
        "wall_seconds": state.wall_seconds,
        "directory": str(directory),
        "host": socket.gethostname(),
        "time": time.time(),
    }


_IN_WORDS: dict[Happening, str] = {
    "finished": "has finished",
    "failed": "had to stop",
    "interrupted": "was interrupted",
    "cap": "has reached its cap",
}


def outcome_text(event: Happening, name: str, state: StudyState, sentences: Sequence[str]) -> str:
    """Returns the paragraph for people: what happened to the study ``name``, its trials, and further ``sentences``."""
    states = Counter(trial.state or "waiting" for trial in state.members)
    trials = ", ".join(f"{number:,} {trial_state}" for trial_state, number in states.items())
    beginning = f"{name} {_IN_WORDS[event]} after {clock_time(state.wall_seconds)}. Trials: {trials}."
    return " ".join([beginning, *(_full_stop(sentence) for sentence in sentences)])


def _full_stop(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def shown_webhook(url: str) -> str:
    """Returns a webhook's address without its secret part, such as ``https://hooks.slack.com/…``, for messages.

    >>> shown_webhook("https://me:secret@hooks.slack.com/services/T0/B0/key")
    'https://hooks.slack.com/…'
    """
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    except ValueError:
        return "…"
    return f"{parts.scheme}://{host}/…" if host else "…"


def check_webhook(url: str) -> None:
    """Raises UserError if nothing can be posted to ``url``. Checks only the address and sends nothing."""
    why = "write http://HOST/PATH or https://HOST/PATH"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UserError(f"--notify: after the host's colon comes the number of its port; {why}") from None
    if parts.scheme not in ("http", "https"):
        shown = (
            f"{printable(parts.scheme[:20])}: is not supported" if parts.scheme else "this is not an address"
        )
        raise UserError(f"--notify: {shown}; {why}")
    if not parts.hostname or port == 0:
        raise UserError(f"--notify: {shown_webhook(url)} names no host or no port; {why}")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(
            f"--notify: {shown_webhook(url)} has a space or a character in it that an address writes as %XX"
        )


def notify(url: str | None, event: Mapping[str, Any]) -> str:
    """Posts an event, such as a :class:`WebhookEvent`, and waits at most :data:`WEBHOOK_SECONDS`.

    If the server does not answer, or reports a problem of its own, the event is posted once more. Never raises.

    Returns:
        The reason why the event could not be posted, as a sentence without its full stop; empty on success or without
        ``url``.
    """
    if url is None:
        return ""
    answer: list[str] = []
    # A thread limits the time, because looking up a name has no timeout when the name server does not answer.
    posting = threading.Thread(target=lambda: answer.append(_post(url, event)), daemon=True, name="webhook")
    try:
        posting.start()
        posting.join(WEBHOOK_SECONDS)
    except KeyboardInterrupt:
        return f"{shown_webhook(url)} was not told: stopped"
    why = answer[0] if answer else f"it did not answer within {WEBHOOK_SECONDS:g} s"
    return f"{shown_webhook(url)} was not told: {why}" if why else ""


def _post(url: str, event: Mapping[str, Any]) -> str:
    """Posts with one retry. Returns the reason of the failure, or an empty text."""
    try:
        request = _request(url, event)
        handlers = [urllib.request.ProxyHandler({})] if is_this_machine(url) else []
        opener = urllib.request.build_opener(*handlers)
    except Exception as error:
        return type(error).__name__
    why = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            with opener.open(request, timeout=_ANSWER_SECONDS):
                return ""
        except urllib.error.HTTPError as error:
            why = f"it answers HTTP {error.code}"
            if error.code < 500 and error.code != 429:  # a retry would be answered in the same way
                return why
        except Exception as error:
            # Sockets, TLS and proxies raise many kinds of errors, and none of them may affect a study that has ended
            # well.
            why = _in_words(error)
    return why


def _request(url: str, event: Mapping[str, Any]) -> urllib.request.Request:
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "nfnet_ray"}
    if "@" in parts.netloc:  # urllib would take the account for a part of the host's name
        account = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(account.encode()).decode()}"
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    body = json.dumps(_finite(event), ensure_ascii=False, allow_nan=False).encode()
    return urllib.request.Request(address, data=body, headers=headers, method="POST")


def _finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None, because JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_words(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"it did not answer within {_ANSWER_SECONDS:g} s"
    if isinstance(reason, OSError):
        return reason.strerror or os.strerror(reason.errno or 0) or type(reason).__name__
    # The message of the error may contain the address, which is secret.
    return type(reason).__name__
