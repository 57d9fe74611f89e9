"""The comparison opens, or one line says why it does not. Starting a server is tested with the tracking.

Takes less than a second.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dashboards.compare import main
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool, TrackedStudy
from tests.tracking.example_study import agc_sweep, write_journal


class _Mlflow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Mlflow) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def tracked_at(directory: Path, tracking_uri: str) -> str:
    journal = write_journal(directory, agc_sweep((0.01,), (64,)))
    tracked = TrackedStudy(tracking_uri, experiment_id="7", view_key="abc", study_run_id="run")
    Spool(journal, directory / SPOOL_FILE).acknowledge(10, tracked)
    return str(directory)


def test_a_study_on_a_server_opens_there(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which is not for this machine
    study = tracked_at(tmp_path, server)
    assert main([study, "--no-browser"]) == 0
    assert opened == []
    assert main([study]) == 0
    url = f"{server}/#/experiments/7/runs?viewStateShareKey=abc&compareRunsMode=CHART&workflowType=machine_learning"
    assert capsys.readouterr().out.split() == [url, url]
    assert opened == [url]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "nothing of"),
        ("http://127.0.0.1:9", "is it running"),
        ("sqlite:////nowhere/mlflow.db", "which is gone"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(
    tmp_path: Path, uri: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tracked_at(tmp_path, uri)
    if not uri:
        (tmp_path / SPOOL_FILE).unlink()
    assert main([study, "--no-browser"]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_without_a_study_the_message_says_what_a_study_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "journal.jsonl" in capsys.readouterr().err
