"""The MLflow server as its manifest starts it: which hosts it serves, and that artifacts go through it.

The same command and flags on a free port, with SQLite in PostgreSQL's place. Takes about fifteen seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfnet_ray.tracking.destination.uri_check import check_tracking_uri
from tests.deadlines import HANG_SECONDS
from tests.deploy.manifests import KUBERNETES, pod_specs, rendered
from tests.ports import unused_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[int]:
    """On a database that has its tables; tests/tracking/test_postgres.py starts a server that has to make them."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_database, folder / "mlflow.db")
    documents = rendered(KUBERNETES / "overlays" / "pvc")
    [pod] = [pod for document in documents for name, pod in pod_specs(document) if name == "mlflow"]
    [container] = pod["containers"]
    free = unused_port()
    # One worker, because each imports MLflow.
    given = [argument.replace("--workers=2", "--workers=1") for argument in container["args"]]
    arguments = [argument.replace("5000", str(free)) for argument in given]
    arguments = [argument.replace("=/artifacts", f"={folder / 'artifacts'}") for argument in arguments]
    environment = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    assert environment["MLFLOW_BACKEND_STORE_URI"].startswith(
        "postgresql+psycopg2://mlflow:$(POSTGRES_PASSWORD)@postgres"
    )
    environment["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    process = subprocess.Popen(
        [sys.executable, "-m", *container["command"], *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while status(free, container["readinessProbe"]["httpGet"]["path"], "10.0.0.7") != 200:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield free
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)


def status(port: int, path: str, host: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": f"{host}:{port}"})
    try:
        with urllib.request.urlopen(request, timeout=HANG_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_it_answers_to_the_names_of_its_service_and_to_no_other(port: int) -> None:
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    for host in ("mlflow", "mlflow.nfnet-ray.svc", "mlflow.nfnet-ray.svc.cluster.local", "localhost"):
        assert status(port, search, host) == 200, host
    for host in ("example.com", "mlflow.example.com"):
        assert status(port, search, host) == 403, host


def test_runs_and_artifacts_go_through_it(port: int, tmp_path: Path) -> None:
    import mlflow

    uri = f"http://127.0.0.1:{port}"
    check_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    run = client.create_run(client.create_experiment("study")).info.run_id
    (tmp_path / "report.html").write_text("<html>")
    client.log_artifact(run, str(tmp_path / "report.html"))
    assert [artifact.path for artifact in client.list_artifacts(run)] == ["report.html"]
