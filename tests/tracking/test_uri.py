"""A study that could not be recorded does not start, and says in one line why.

Takes about a second.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.tracking import uri as uri_module
from nfnet_ray.tracking.uri import check_tracking_uri, default_tracking_uri, sqlite_path


class _Answers(BaseHTTPRequestHandler):
    """Answers by the first part of the path: how a server that is not as it should be would."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "silent":
            self.server.released.wait(30)  # type: ignore[attr-defined]
            return
        if kind == "dripping":  # never silent for long, and never done
            self.wfile.write(b"HTTP/1.0 200 OK\r\nServer: ")
            while not self.server.released.wait(0.2):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
            return
        status, text = {
            "mlflow": (200, b"OK"),
            "other": (200, b"<html>Welcome to nginx!</html>"),
            "locked": (401, b"You are not authenticated."),
            "host": (403, b"Invalid Host header - possible DNS rebinding attack detected"),
        }.get(kind, (404, b"not found"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as http:
        http.released = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.released.set()  # type: ignore[attr-defined]
        http.shutdown()


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as caught:
        check_tracking_uri(uri)
    message = str(caught.value)
    assert "\n" not in message
    assert uri in message
    return message


def test_a_server_that_answers_as_mlflow_is_taken(server: str) -> None:
    check_tracking_uri(f"{server}/mlflow")
    check_tracking_uri(f"{server}/mlflow/")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("other", "not MLflow's"),
        ("nothing", "HTTP 404"),
        ("locked", "MLFLOW_TRACKING_USERNAME"),
        ("host", "--allowed-hosts"),
        ("silent", "did not answer within 0.5 s"),
        ("dripping", "did not answer within 0.5 s"),
    ],
)
def test_a_server_that_will_not_do_is_refused(
    server: str, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uri_module, "CHECK_SECONDS", 0.5)
    assert words in refusal(f"{server}/{kind}")


def test_a_server_that_is_not_there_is_refused() -> None:
    assert "is it running" in refusal("http://127.0.0.1:9")
    assert "cannot be reached" in refusal("http://no-such-host.invalid:5000")


def test_a_database_that_can_be_written_or_made_is_taken(tmp_path: Path) -> None:
    check_tracking_uri(default_tracking_uri(tmp_path))
    check_tracking_uri(default_tracking_uri(tmp_path / "not" / "there" / "yet"))
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0 and so on")
    check_tracking_uri(default_tracking_uri(tmp_path))
    assert sqlite_path(default_tracking_uri(tmp_path)) == tmp_path / "mlflow.db"
    assert not (tmp_path / "not").exists()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("a shopping list")
    assert "not an SQLite database" in refusal(default_tracking_uri(tmp_path))
    assert "is a folder" in refusal(f"sqlite:///{tmp_path}")
    assert "nothing can be written" in refusal(f"sqlite:///{tmp_path}/mlflow.db/inside/mlflow.db")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mlruns", "use sqlite:///mlflow.db"),
        ("file:///srv/mlruns", "use sqlite:///mlflow.db"),
        ("", "use sqlite:///mlflow.db"),
        ("htp://server:5000", "htp: is not supported"),
        ("postgresql://server/mlflow", "address of an MLflow server"),
        ("sqlite://", "write it as sqlite:///mlflow.db"),
    ],
)
def test_what_mlflow_cannot_use_is_refused_with_what_to_use(uri: str, words: str) -> None:
    assert words in refusal(uri)
