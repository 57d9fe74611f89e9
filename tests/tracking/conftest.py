"""A tracking database for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def tracking_uri(empty_database: Path, tmp_path: Path) -> str:
    """The URI of an MLflow database of the test's own, with no run in it."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
