"""A webhook is told once, keeps its secrets, and never delays or changes a study for long. About five seconds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.command_line.terminal import new_console
from nfnet_ray.errors import StopsStudyError, UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.live import webhook
from nfnet_ray.study.live.webhook import check_webhook, notify, outcome_text, shown_webhook, webhook_event
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import study_ended, study_resumed
from nfnet_ray.tracking.state import StudyState
from studies.running.execution.execute import execute
from studies.running.execution.notification import notify_of_end
from studies.running.execution.study_run import StudyRun
from studies.running.runner import WorkerDemand
from tests.ports import unused_port
from tests.tracking.example_study import START, agc_sweep, state_of, write_journal

TOLD: dict[str, Any] = {"event": "finished", "text": "It is done.", "wall_seconds": float("nan")}


class Receiver:
    """A web server that answers with the codes that it is given, and keeps what it was sent."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.received: list[tuple[str, dict[str, str], Any]] = []
        self.is_slow = threading.Event()


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kept.received.append((self.path, dict(self.headers), body))
            if kept.is_slow.is_set():
                time.sleep(30)
            self.send_response(kept.codes.pop(0) if kept.codes else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield kept, f"127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_an_event_is_posted_as_json(receiver: tuple[Receiver, str], monkeypatch: pytest.MonkeyPatch) -> None:
    kept, host = receiver
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which is not for this machine
    assert notify(f"http://me:se%40cret@{host}/hooks/key?a=b#c", TOLD) == ""
    [(path, headers, body)] = kept.received
    assert path == "/hooks/key?a=b"
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Basic bWU6c2VAY3JldA=="
    assert body == {"event": "finished", "text": "It is done.", "wall_seconds": None}


@pytest.mark.parametrize(
    ("codes", "requests", "words"),
    [([503], 2, ""), ([429, 500], 2, "HTTP 500"), ([404], 1, "HTTP 404"), ([200], 1, "")],
)
def test_trouble_of_its_own_is_asked_once_more(
    receiver: tuple[Receiver, str],
    codes: list[int],
    requests: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, host = receiver
    kept.codes = codes
    monkeypatch.setattr(webhook, "_PAUSE_SECONDS", 0.01)
    why = notify(f"http://{host}/key", TOLD)
    assert len(kept.received) == requests
    assert words in why
    assert (why == "") == (words == "")
    assert "key" not in why


def test_one_that_says_nothing_is_not_waited_for(
    receiver: tuple[Receiver, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, host = receiver
    kept.is_slow.set()
    monkeypatch.setattr(webhook, "WEBHOOK_SECONDS", 0.5)
    began = time.monotonic()
    why = notify(f"http://me:secret@{host}/key", TOLD)
    assert time.monotonic() - began < 2
    assert why == f"http://{host}/… was not told: it did not answer within 0.5 s"


def test_one_that_is_not_there_is_named_without_its_secrets() -> None:
    port = unused_port()
    why = notify(f"http://me:secret@127.0.0.1:{port}/key", TOLD)
    assert why == f"http://127.0.0.1:{port}/… was not told: Connection refused"
    assert notify(None, TOLD) == ""


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.slack.com/secret",
        "ftp://host/secret",
        "http://",
        "http:///secret",
        "https://host:port/secret",
        "https://host:99999/secret",
        "https://me:secret@/x",
        "https://host/sec ret",
        "https://host/secret\n",
        "http://[::1/secret",
    ],
)
def test_anything_but_a_webhook_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_webhook(url)
    message = str(refusal.value)
    assert message.startswith("--notify: ")
    assert "secret" not in message
    assert "\n" not in message


@pytest.mark.parametrize("url", ["http://host", "https://me:word@host:8080/a/b?c=d", "http://[::1]:80/x"])
def test_a_webhook_is_accepted(url: str) -> None:
    check_webhook(url)
    assert "word" not in shown_webhook(url)


def test_the_event_says_how_the_study_is_doing() -> None:
    state = state_of(agc_sweep((0.01, None), (256,)))
    text = outcome_text("finished", "first", state, ["Best setting: clip_factor 0.01"])
    assert text == (
        f"first has finished after {round(state.wall_seconds // 60)}:{round(state.wall_seconds % 60):02}. "
        "Trials: 1 finished, 1 diverged. Best setting: clip_factor 0.01."
    )
    told = webhook_event("finished", "first", state, Path("/runs/first"), text)
    assert (told["event"], told["study"], told["trials"]) == (
        "finished",
        "first",
        {"finished": 1, "diverged": 1},
    )
    assert told["study_id"].startswith("agc_sweep-")
    json.dumps(told)


@pytest.mark.parametrize(
    ("outcome", "reason", "error", "event", "words"),
    [
        ("finished", None, None, "finished", "has finished after"),
        ("interrupted", None, None, "interrupted", "was interrupted after"),
        ("interrupted", "its cap of 5 hours was reached", None, "cap", "It ended early: its cap of 5 hours"),
        (
            None,
            None,
            StopsStudyError("stopped, as the disk is full"),
            "failed",
            "stopped, as the disk is full.",
        ),
        (None, None, ZeroDivisionError("secret"), "failed", "it met a bug, ZeroDivisionError."),
    ],
)
def test_the_end_of_a_study_is_told_and_its_exit_code_stays(
    receiver: tuple[Receiver, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Any,
    reason: str | None,
    error: Exception | None,
    event: str,
    words: str,
) -> None:
    kept, host = receiver
    kept.codes = [404]  # whatever it answers
    events = agc_sweep((0.01,), (64,), epochs=2)[:-1]
    write_journal(tmp_path, events)
    state = StudyState()
    assert events[0]["event"] == "study_started"
    study = Study.from_event(events[0])
    run = StudyRun(study, Any, tmp_path, "", "", state, notify_url=f"http://{host}/key")  # type: ignore[arg-type]

    def inner(run: StudyRun, _address: object, _demand: object, console: Any) -> int:
        for happened in events:
            state.apply(happened)
        if error:
            raise error
        ended = study_ended(outcome, 10.0, reason)
        state.apply(ended | {"time": state.last_event_time + 1})
        notify_of_end(run, 0, console)
        return 130

    monkeypatch.setattr("studies.running.execution.execute._execute", inner)
    if error:
        with pytest.raises(type(error)):
            execute(run, None, WorkerDemand(1, None, None), new_console())
    else:
        assert execute(run, None, WorkerDemand(1, None, None), new_console()) == 130
    [(_, _, body)] = kept.received
    assert body["event"] == event
    assert words in body["text"]
    assert "secret" not in body["text"]


def test_the_end_is_told_where_the_clock_is_behind_that_of_the_driver_before(
    receiver: tuple[Receiver, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, host = receiver
    events = agc_sweep((0.01,), (64,), epochs=2)
    write_journal(tmp_path, events)
    assert events[0]["event"] == "study_started"
    state = state_of(events)
    study = Study.from_event(events[0])
    run = StudyRun(study, Any, tmp_path, "", "", state, notify_url=f"http://{host}/key")  # type: ignore[arg-type]

    def inner(run: StudyRun, _address: object, _demand: object, console: Any) -> int:
        before = len(state.sessions)
        state.apply(study_resumed(changed={}) | {"time": START - 3600})
        state.apply(study_ended("finished", 10.0, None) | {"time": START - 3590})
        notify_of_end(run, before, console)
        state.apply(study_resumed(changed={}) | {"time": START - 3580})
        raise StopsStudyError("stopped, as the disk is full")

    monkeypatch.setattr("studies.running.execution.execute._execute", inner)
    with pytest.raises(StopsStudyError):
        execute(run, None, WorkerDemand(1, None, None), new_console())
    assert [body["event"] for _, _, body in kept.received] == ["finished", "failed"]


def test_a_study_that_has_not_begun_tells_nobody(
    receiver: tuple[Receiver, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, host = receiver
    study = Study("first", "?", Recipe(), {})
    run = StudyRun(study, Any, tmp_path, "", "", StudyState(), notify_url=f"http://{host}/key")  # type: ignore[arg-type]

    def inner(*_: object) -> int:
        raise UserError("another process is running first")

    monkeypatch.setattr("studies.running.execution.execute._execute", inner)
    with pytest.raises(UserError):
        execute(run, None, WorkerDemand(1, None, None), new_console())
    assert kept.received == []
