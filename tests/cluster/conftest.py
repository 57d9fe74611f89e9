"""The training that the disturbed ones are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from tests.cluster.training import Undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str, few_digits: Path) -> Undisturbed:
    """Trained once for all processes of a test run: it takes 20 s of a core."""
    if worker_id == "master":  # there is one process
        return Undisturbed(tmp_path_factory.mktemp("undisturbed"), few_digits)
    shared = tmp_path_factory.getbasetemp().parent / "undisturbed"
    with FileLock(f"{shared}.lock"):
        return Undisturbed(shared, few_digits)
