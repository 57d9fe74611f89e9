"""A server as a team has it: PostgreSQL behind it, a password before it; both killed in the middle of a delivery.

Its two starts, and the making of its tables, take most of the time; skipped where PostgreSQL is not installed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.delivery import sink as sink_module
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.destination.uri_check import check_tracking_uri
from nfnet_ray.tracking.journal import JOURNAL_FILE
from tests.deadlines import HANG_SECONDS, wait_until
from tests.ports import unused_port
from tests.tracking.example_study import agc_sweep, write_journal
from tests.tracking.postgres import postgres_server

pytestmark = pytest.mark.slow
EVENTS = agc_sweep(clip_factors=(0.01, 0.04, None))
USER, PASSWORD = "admin", "battery-staple-1"
AUTHENTICATION = """\
[mlflow]
default_permission = READ
database_uri = {uri}
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@contextmanager
def mlflow_server(folder: Path, port: int, database: str, users: str) -> Generator[None]:
    """Runs MLflow's server with its own authentication; at the end it is killed, without a chance to finish."""
    settings = folder / "authentication.ini"
    settings.write_text(AUTHENTICATION.format(uri=users, user=USER))
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth", "--workers=1"]
    command += [f"--port={port}", f"--backend-store-uri={database}", f"--artifacts-destination={folder}"]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def is_up() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=HANG_SECONDS) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    try:
        wait_until(is_up, "MLflow's server")
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(HANG_SECONDS)


def rows(database: str, query: str) -> list[tuple[object, ...]]:
    import psycopg2

    with closing(psycopg2.connect(database.replace("+psycopg2", ""))) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        return list(cursor.fetchall())


def test_a_server_that_is_killed_has_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "_LONGEST_PAUSE_SECONDS", 1.0)
    port = unused_port()
    url = f"http://127.0.0.1:{port}"
    write_journal(tmp_path, EVENTS)
    spool = Spool(tmp_path / JOURNAL_FILE, tmp_path / SPOOL_FILE)
    with postgres_server("mlflow", "users") as postgres:
        database, users = postgres.uris
        with mlflow_server(tmp_path, port, database, users):
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
            with pytest.raises(UserError, match=r"HTTP 401.*check MLFLOW_TRACKING_USERNAME and _PASSWORD"):
                check_tracking_uri(url)
            sink = MLflowSink(url, spool)
            sink.start()
            wait_until(lambda: "check MLFLOW_TRACKING_USERNAME" in sink.status, "the refusal")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            check_tracking_uri(url)
            third = (tmp_path / JOURNAL_FILE).stat().st_size / 3
            wait_until(lambda: spool.acknowledged_bytes > third, "a third of the study")
        assert spool.pending_count(), "it was killed too late"
        wait_until(lambda: "server does not answer since" in sink.status, "the outage")
        with mlflow_server(tmp_path, port, database, users):
            wait_until(lambda: spool.acknowledged_bytes > 2 * third, "two thirds of the study")
            assert spool.pending_count(), "PostgreSQL is restarted too late"
            postgres.restart()
            assert sink.close(HANG_SECONDS) == 0, sink.status
        logged = rows(
            database,
            "SELECT t.value, m.key, m.step FROM metrics m JOIN tags t USING (run_uuid) WHERE t.key = 'trial'",
        )
        ends = rows(
            database,
            "SELECT t.value, s.value, r.status FROM runs r JOIN tags t USING (run_uuid) JOIN tags s USING (run_uuid)"
            " WHERE t.key = 'trial' AND s.key = 'state'",
        )
    written = [
        (event["trial"], name, event["epoch"])
        for event in EVENTS
        if event["event"] == "epoch"
        for name in event["metrics"]
    ]
    assert Counter(entry for entry in logged if " at " not in str(entry[1])) == Counter(written)
    status = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED"}
    assert sorted(ends) == sorted(
        (event["trial"], event["state"], status[event["state"]])
        for event in EVENTS
        if event["event"] == "trial_ended"
    )
