"""A study that could not be recorded does not start, and one line says why.

Takes a second, and mlflow's import.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import make_url

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool, TrackedStudy
from nfnet_ray.tracking.destination import server as server_module
from nfnet_ray.tracking.destination.choice import tracking_uri_for
from nfnet_ray.tracking.destination.uri import default_tracking_uri, sqlite_path, sqlite_uri, without_password
from nfnet_ray.tracking.destination.uri_check import check_tracking_uri
from nfnet_ray.tracking.journal import JOURNAL_FILE
from tests.deadlines import HANG_SECONDS, wait_until
from tests.tracking.example_study import agc_sweep, write_journal

QUESTION = "api/2.0/mlflow/experiments/get-by-name"
NOT_THERE_YET = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}'
DELETED = b'{"experiment": {"experiment_id": "7", "name": "nfnet_ray", "lifecycle_stage": "deleted"}}'


class _Answers(BaseHTTPRequestHandler):
    """Answers by the first part of the path: as MLflow, or how a server that is not as it should be would."""

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
            "mlflow": (404, NOT_THERE_YET),
            "deleted": (200, DELETED),
            "other": (200, b"<html>Welcome to nginx!</html>"),
            "healthy": (200, b"OK"),
            "host": (403, b"Invalid Host header - possible DNS rebinding attack detected"),
            "forbidden": (403, b'{"message": "Permission denied"}'),
            "broken": (502, b"Bad Gateway"),
            "busy": (429, b"Too Many Requests"),
            **{scheme: self._locked(scheme) for scheme in ("Basic", "Bearer")},
        }.get(kind, (404, b"not found"))
        if self.path.startswith("/mlflow/") and QUESTION not in self.path:
            status, text = 400, b"asked for something else"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text)

    def _locked(self, scheme: str) -> tuple[int, bytes]:
        right = {"Basic": base64.b64encode("me:p@ss/wörd".encode()).decode(), "Bearer": "a-token"}[scheme]
        if self.headers.get("Authorization") == f"{scheme} {right}":
            return 404, NOT_THERE_YET
        return 401, b"You are not authenticated."

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither MLflow's nor proxies', and none that a test has had the code set."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("MLFLOW_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # MLflow's file of credentials


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
        ("healthy", "not MLflow's"),
        ("nothing", "HTTP 404"),
        ("Basic", "MLFLOW_TRACKING_USERNAME"),
        ("forbidden", "does not permit"),
        ("broken", "has trouble of its own (HTTP 502)"),
        ("busy", "takes no more requests for now (HTTP 429)"),
        ("deleted", "mlflow experiments restore --experiment-id 7"),
        ("host", "--allowed-hosts"),
        ("silent", "did not answer within 0.5 s"),
        ("dripping", "did not answer within 0.5 s"),
    ],
)
def test_a_server_that_will_not_do_is_refused(
    server: str, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    says_nothing = kind in ("silent", "dripping")
    monkeypatch.setattr(server_module, "CHECK_SECONDS", 0.5 if says_nothing else HANG_SECONDS)
    assert words in refusal(f"{server}/{kind}")


@pytest.mark.parametrize(("kind", "status"), [("broken", 502), ("busy", 429)])
def test_a_study_tells_a_server_that_answers_with_an_error_from_one_that_is_away(
    server: str, kind: str, status: int, tmp_path: Path
) -> None:
    write_journal(tmp_path, agc_sweep(clip_factors=(0.01,), batch_sizes=(64,), epochs=1))
    sink = MLflowSink(f"{server}/{kind}", Spool(tmp_path / JOURNAL_FILE, tmp_path / SPOOL_FILE))
    sink.start()
    wait_until(lambda: f"(HTTP {status}) since" in sink.status, "the trouble")
    assert "does not answer" not in sink.status
    assert sink.close(HANG_SECONDS, unanswered_seconds=0) == 5


@pytest.mark.parametrize("place", ["environment", "file", "address"])
def test_the_password_is_sent_and_never_shown(
    server: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{server}/Basic"
    if place == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@ss/wörd")
    elif place == "file":
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow" / "credentials").write_text(
            "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = p@ss/wörd\n"
        )
    else:
        uri = uri.replace("//", "//me:p%40ss%2Fw%C3%B6rd@")
    taken = tracking_uri_for(uri, tmp_path, tmp_path, None)
    assert taken == f"{server}/Basic"
    check_tracking_uri(taken)


@pytest.mark.parametrize("kind", ["Basic", "other", "nothing", "#/experiments/1"])
def test_a_wrong_password_is_not_shown(server: str, kind: str) -> None:
    with pytest.raises(UserError) as caught:
        check_tracking_uri(f"{server}/{kind}".replace("//", "//me:secret@"))
    assert "secret" not in str(caught.value)
    assert "me:" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://me:se/cret@host:5000", "postgresql://me:secret@host/mlflow"])
def test_a_password_in_an_address_that_is_no_good_is_not_shown(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        check_tracking_uri(uri)
    assert "cret" not in str(caught.value)
    assert without_password(f"--tracking-uri={uri} --name x").split()[1:] == ["--name", "x"]


def test_a_token_is_sent(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MLFLOW_TRACKING_TOKEN" in refusal(f"{server}/Bearer")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    check_tracking_uri(f"{server}/Bearer")


def test_a_proxys_answer_is_not_taken_for_the_servers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.replace("//", "//me:secret@"))
    message = refusal("http://mlflow.example:5000")
    assert f"the proxy {server}" in message
    assert "NO_PROXY=mlflow.example" in message
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert "through the proxy http://127.0.0.1:9" in refusal("http://mlflow.example:5000")
    check_tracking_uri(f"{server}/mlflow")  # of this machine: there is no proxy between


def test_certificates_are_those_of_mlflows_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = self_signed(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as http:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        http.socket = context.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        uri = f"https://127.0.0.1:{http.server_address[1]}/mlflow"
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in refusal(uri)
        for name, value in {
            "MLFLOW_TRACKING_INSECURE_TLS": "true",
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(certificate),
            "REQUESTS_CA_BUNDLE": str(certificate),
        }.items():
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                check_tracking_uri(uri)
        http.shutdown()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mlflow")])
    today = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "certificate.pem", folder / "key.pem"


def test_the_place_is_the_first_that_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = tmp_path / "runs"
    (storage / "old").mkdir(parents=True)
    spool = Spool(storage / "old" / "journal.jsonl", storage / "old" / SPOOL_FILE)
    spool.acknowledge(0, TrackedStudy("http://before:5000"))

    def chosen(given: str | None, study: str | None = None) -> str:
        return tracking_uri_for(given, storage, tmp_path, study)

    assert chosen(None) == chosen(None, "new") == default_tracking_uri(storage)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert chosen(None) == chosen(None, "new") == "http://environment:5000"
    assert chosen(None, "old") == "http://before:5000"
    assert chosen("http://flag:5000") == chosen("http://flag:5000", "old") == "http://flag:5000"
    assert chosen("sqlite:///db/mlflow.db") == f"sqlite:///{tmp_path}/db/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(UserError, match=r"from MLFLOW_TRACKING_URI.*no longer keeps runs in folders"):
        check_tracking_uri(chosen(None))


def test_a_local_database_is_checked_without_importing_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from nfnet_ray.tracking.destination.uri_check import check_tracking_uri; "
        "check_tracking_uri(sys.argv[1]); "
        "assert 'mlflow' not in sys.modules"
    )
    uri = default_tracking_uri(tmp_path)
    subprocess.run([sys.executable, "-c", code, uri], check=True, timeout=HANG_SECONDS)


@pytest.mark.parametrize("name", ["d?x=1", "d#y", "100%", "a%20b", "a b", "ü", "file:x", "a:b@c"])
def test_a_path_becomes_a_uri_and_a_uri_that_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    assert sqlite_path(sqlite_uri(path)) == path
    assert make_url(sqlite_uri(path)).database == str(path)  # as MLflow's library reads it
    check_tracking_uri(sqlite_uri(path))


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
        ("sqlite:////runs/d?x=1/mlflow.db", "write ? as %3F"),
        ("sqlite:///file:/runs/mlflow.db?uri=true", "is not an option of SQLite"),
        ("sqlite:///:memory:", "name a file"),
        ("http://mlflow:5000/#/experiments/1", "leave out"),
    ],
)
def test_what_mlflow_cannot_use_is_refused_with_what_to_use(uri: str, words: str) -> None:
    assert words in refusal(uri)
