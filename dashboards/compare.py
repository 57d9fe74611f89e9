"""Opens the MLflow UI on a study's comparison: accuracy against training time of all trials, without a click.

    python -m dashboards.compare STUDY [--port 5000] [--no-browser]

STUDY is a study's directory, or its name under runs. If the study was recorded in an SQLite database, an MLflow server
is started on the database, and stopped with Ctrl-C. If it was recorded on a server, that server's page is opened.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first, as the following imports take seconds

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nfnet_ray.command_line.arguments import whole_number
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool, TrackedStudy
from nfnet_ray.tracking.destination.database import artifacts_stay_beside
from nfnet_ray.tracking.destination.experiment import experiment_of_journal
from nfnet_ray.tracking.destination.uri import sqlite_path, sqlite_uri, with_credentials_aside
from nfnet_ray.tracking.destination.uri_check import check_tracking_uri
from nfnet_ray.tracking.events import study_id
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.runs.setting_runs import has_several_seeds
from nfnet_ray.tracking.runs.view import comparison_url, view_key
from nfnet_ray.tracking.study_directory import find_study

HOST = "127.0.0.1"
PORTS_TO_TRY = 20
START_SECONDS = 90.0
"""The longest wait for the server. It takes about 8 s on two quiet cores, and perhaps ten times that with a cold disk
and load."""
STOP_SECONDS = 10.0


def tracked_study(directory: Path) -> TrackedStudy:
    """Returns the ids of the study in MLflow.

    Raises:
        UserError: nothing of the study has reached MLflow.
    """
    tracked = Spool(directory / JOURNAL_FILE, directory / SPOOL_FILE).tracked
    if not tracked.study_run_id:
        raise UserError(
            f"nothing of {directory} is in MLflow yet: python -m nfnet_ray.tracking replay {directory} records it, and "
            f"python -m dashboards.report {directory} needs no MLflow"
        )
    return tracked


@contextmanager
def mlflow_server(tracking_uri: str, port: int) -> Generator[str]:
    """Starts an MLflow server on a database, yields its address once it answers, and stops it after the block.

    If ``port`` is taken, the next free port is used.

    Raises:
        UserError: no port is free, or the server has ended or does not answer within :data:`START_SECONDS`.
    """
    database = sqlite_path(tracking_uri)
    assert database is not None
    if not database.is_file():
        raise UserError(
            f"the study was recorded in {database}, which is gone; restore it, or resume the study"
        )
    artifacts_stay_beside(database)
    url = f"http://{HOST}:{_free_port(port)}"
    # Relative to the working directory, because MLflow would create a second folder if the name has to be quoted.
    backend = "sqlite:///" + sqlite_uri(Path("/") / database.name).removeprefix("sqlite:////")
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend),
                *("--host", HOST, "--port", url.rpartition(":")[2], "--workers", "1"),
            ],
            # Without the user's settings for other servers.
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            cwd=database.absolute().parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C only reaches us, and we can end its workers
        )
        try:
            _wait_until_it_answers(server, url, output)
            yield url
        finally:
            _end(server)


PROGRAM = "python -m dashboards.compare"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog=PROGRAM,
        description="Open MLflow's UI on the trials of a study: accuracy against training time. A study that was"
        " recorded in a database file gets an MLflow server on this machine until Ctrl-C; for one that was recorded on"
        " a server, that server's page is opened.",
        epilog="example:\n  python -m dashboards.compare first_try",
    )
    parser.add_argument(
        "study",
        metavar="STUDY",
        help="a study's folder, or its name under runs (in $NFNET_RAY_HOME, if that is set)",
    )
    parser.add_argument(
        "--port",
        type=whole_number(1, 65535),
        default=5000,
        metavar="PORT",
        help="the first port to try (default: %(default)s)",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    options = parser.parse_args(arguments)
    return exit_code_of(PROGRAM, lambda: _compare(options.study, options.port, not options.no_browser))


def _compare(study: str, port: int, browser: bool) -> None:
    # A person ends the server with Ctrl-C, and a service manager with SIGTERM.
    with suppress(KeyboardInterrupt):
        _open(find_study(study), port, browser)


def _open(directory: Path, port: int, browser: bool) -> None:
    tracked = tracked_study(directory)
    if sqlite_path(tracked.tracking_uri) is None:
        server = with_credentials_aside(tracked.tracking_uri)
        check_tracking_uri(server, experiment_of_journal(directory))
        _show(directory, tracked, server, browser)
        return
    print("Starting the MLflow server …", flush=True)
    with mlflow_server(tracked.tracking_uri, port) as url:
        _show(directory, tracked, url, browser)
        print("Ctrl-C stops the server.", flush=True)
        signal.pause()


def _show(directory: Path, tracked: TrackedStudy, server_url: str, browser: bool) -> None:
    url = comparison_url(server_url, tracked.experiment_id, tracked.view_key)
    print(url, flush=True)
    for started, _ in read_events(directory / JOURNAL_FILE):
        if started["event"] == "study_started" and has_several_seeds(started["study"]):
            key = view_key(study_id(started), "setting")
            print("The mean over the seeds of each setting, once they have ended:", flush=True)
            print(comparison_url(server_url, tracked.experiment_id, key), flush=True)
        break
    if browser:
        webbrowser.open(url)


def _free_port(first: int) -> int:
    for port in range(first, min(first + PORTS_TO_TRY, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port != first:
            print(f"Port {first} is in use; taking {port}.", flush=True)
        return port
    last = min(first + PORTS_TO_TRY - 1, 65535)
    raise UserError(f"ports {first} to {last} cannot be used; name another with --port")


def _wait_until_it_answers(server: subprocess.Popen[bytes], url: str, output: IO[bytes]) -> None:
    # Without a proxy, for which this address means the proxy's machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines() or ["without a word"]
            raise UserError(
                f"the MLflow server has ended (exit code {server.returncode}): {lines[-1].strip()}"
            )
        try:
            with opener.open(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise UserError(f"the MLflow server did not answer at {url} within {START_SECONDS:g} s; try again")


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and its workers."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, signal_number)
            server.wait(STOP_SECONDS)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())
