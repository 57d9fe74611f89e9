"""A folder to run studies from, and a Ray cluster that is up already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.workplace import Workplace, one_at_a_time

GCS_PORT, DASHBOARD_PORT = 6399, 8299  # not Ray's own, which a developer's cluster may have


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of one node and two cores, started as an administrator would."""
    ray = str(Path(sys.executable).with_name("ray"))
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    start = [
        ray,
        "start",
        "--head",
        "--num-cpus=2",
        f"--port={GCS_PORT}",
        f"--dashboard-port={DASHBOARD_PORT}",
    ]
    subprocess.run(start, env=environment, check=True, capture_output=True, timeout=120)
    try:
        yield f"127.0.0.1:{GCS_PORT}"
    finally:
        subprocess.run(
            [ray, "stop", "--force"], env=environment, check=False, capture_output=True, timeout=120
        )


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, few_digits: Path, cluster: str) -> Workplace:
    """A workplace with the undisturbed study ``whole``: three trials of three epochs, one after another.

    It found the cluster by ``--address auto``. Its second and third trial ran in a used actor.
    """
    del cluster  # it only has to be up
    place = Workplace(tmp_path_factory.mktemp("whole"))
    result = place.run("--name", "whole", *one_at_a_time(few_digits), "--trials", "3", "--address", "auto")
    assert result.returncode == 0, result.stdout + result.stderr
    return place
