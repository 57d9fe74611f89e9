"""A tracking database that is ready: creating one takes seconds, copying one does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("")
    return path


@pytest.fixture
def tracking_uri(_empty_database: Path, tmp_path: Path) -> str:
    """The URI of an MLflow database of the test's own, with no run in it."""
    shutil.copy(_empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
