"""A folder to run studies from, and a Ray cluster that is up already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import Machines
from tests.e2e.workplace import Workplace, one_at_a_time


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """A new, empty folder."""
    return Workplace(tmp_path)


@pytest.fixture
def used_workplace(tmp_path: Path, empty_database: Path) -> Workplace:
    """A folder in which there is a tracking database."""
    return Workplace(tmp_path, database=empty_database)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A new, empty folder, whose studies are not recorded in MLflow."""
    return Workplace(tmp_path, is_recorded=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of one node and two cores, started as an administrator would.

    It is ended by its own processes: `ray stop` would end every Ray on the machine, whoever started it.
    """
    machines = Machines(head_cores=2)
    try:
        yield machines.address
    finally:
        machines.close()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, few_digits: Path, cluster: str) -> Workplace:
    """A workplace with the undisturbed study ``whole``: three trials of three epochs, one after another.

    It found the cluster by ``--address auto``. Its second and third trial ran in a used actor.
    """
    del cluster  # it only has to be up
    place = Workplace(tmp_path_factory.mktemp("whole"), is_recorded=False)
    result = place.run("--name", "whole", *one_at_a_time(few_digits), "--trials", "3", "--address", "auto")
    assert result.returncode == 0, result.stdout + result.stderr
    return place
