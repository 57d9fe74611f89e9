"""A folder to run studies from, and a Ray cluster that is up already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from nfnet_ray.cluster.connection.address import temporary_folder
from nfnet_ray.cluster.connection.ray_internals import CURRENT_CLUSTER_FILE
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


_up: list[Machines] = []


def _end_cluster() -> None:
    while _up:
        _up.pop().close()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """After the last test of this folder: an idle cluster takes 2% of a core, for the rest of a test run."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _end_cluster()


@pytest.fixture(scope="session")
def _no_cluster_outlives_the_tests() -> Iterator[None]:
    """Also where a test run is cut short."""
    yield
    _end_cluster()


@pytest.fixture(scope="module")
def cluster(_no_cluster_outlives_the_tests: None) -> str:
    """The address of a Ray cluster of one node and two cores, started as an administrator would.

    All files of this folder that one process runs share it. It is ended by its own processes: `ray stop` would end
    every Ray on the machine, whoever started it.
    """
    if not _up:
        _up.append(Machines(head_cores=2))
    return _up[0].address


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, few_digits: Path, cluster: str
) -> Workplace:
    """A workplace with the undisturbed study ``whole``: three trials of three epochs, one after another.

    It found the cluster by ``--address auto``. Its second and third trial ran in a used actor. It is run once for all
    processes of a test run: it takes 15 s of a core.
    """
    # As `ray start` does; other Rays that this process of the tests has started may have left another address there.
    file = temporary_folder() / CURRENT_CLUSTER_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(cluster)
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "whole"
    with FileLock(f"{shared}.lock"):
        shared.mkdir(exist_ok=True)
        place = Workplace(shared, is_recorded=False)
        if not place.events("whole"):
            flags = [*one_at_a_time(few_digits), "--trials", "3", "--address", "auto"]
            result = place.run("--name", "whole", *flags)
            assert result.returncode == 0, result.stdout + result.stderr
        # Another process may have run it, and failed.
        assert {trial.state for trial in place.progress("whole").trials.values()} == {"finished"}
    return place
