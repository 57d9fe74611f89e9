"""The data on every node of a cluster: there, the same, whole, and read once. About 40 s: a Ray of two nodes.

The second node runs in a mount namespace of its own, in which another folder is at the data's place: a disk of its
own. That takes root, or the right to mount.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfnet_ray.cluster.connection import nodes, placement
from nfnet_ray.cluster.connection.nodes import check_nodes
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.connection.session import ray_session
from nfnet_ray.data.files.dataset import check_dataset, open_dataset
from nfnet_ray.data.files.file_identity import file_identity
from nfnet_ray.errors import UserError
from tests.cluster.machines import Machines
from tests.e2e.workplace import Workplace

pytestmark = pytest.mark.slow

WORKER = WorkerResources(workers=1, cpus=1, gpus=0.0)


def flip(dataset: Path, index: int) -> None:
    beton = open_dataset(dataset).train.beton
    with beton.path.open("r+b") as file:
        place = int(beton.offsets[index]) + 20
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.fixture(scope="module")
def places(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``shared`` is one folder for both nodes; what lies in ``first`` the second node sees as it is in ``second``."""
    root = tmp_path_factory.mktemp("places")
    for place in ("shared", "first/same", "second/same", "first/only", "first/damaged", "second/damaged"):
        shutil.copytree(few_digits, root / place)
    flip(root / "second/damaged", 7)
    shutil.copytree(few_digits, root / "first/other")
    (root / "second/other").mkdir()
    for name in ("train", "validation"):  # the splits have changed places
        for suffix in (".beton", ".parquet"):
            other = "validation" if name == "train" else "train"
            shutil.copy(few_digits / f"{name}{suffix}", root / f"second/other/{other}{suffix}")
    return root


@pytest.fixture(scope="module")
def address(places: Path) -> Iterator[str]:
    allowed = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True)
    if allowed.returncode:
        pytest.skip(f"no mount namespaces here: {allowed.stderr.decode().strip()}")
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    apart = ("unshare", "--mount", "bash", "-c", script, "-", str(places / "second"), str(places / "first"))
    # Ray reads when it is imported whether it shows a token, and this process may have imported it.
    without_token = {"RAY_AUTH_MODE": "disabled"}
    machines = Machines(variables=without_token, head_cores=1)
    try:
        machines.add("second", inside=apart, variables=without_token)
        yield machines.address
    finally:
        machines.close()


@pytest.fixture(scope="module")
def session(address: str) -> Iterator[str]:
    with ray_session(address):
        yield address


class Read:
    """A progress that remembers what was read."""

    def __init__(self) -> None:
        self.name, self.total, self.done = "", 0, 0

    @contextmanager
    def __call__(self, name: str, total: int) -> Generator[Callable[[int], None]]:
        self.name, self.total = name, total
        yield self.advance

    def advance(self, count: int) -> None:
        self.done += count


def check(path: Path, *, verify: bool) -> Read:
    read = Read()
    check_nodes(check_dataset(path), WORKER, verify=verify, progress=read)
    return read


@pytest.mark.usefixtures("session")
def test_what_all_nodes_share_is_not_read_again_and_a_copy_is_read_once(places: Path) -> None:
    assert check(places / "shared", verify=True).total == 0
    assert check(places / "first/same", verify=False).total == 0
    read = check(places / "first/same", verify=True)
    dataset = open_dataset(places / "first/same")
    stored = sum(int(split.beton.sizes.sum()) for split in (dataset.train, dataset.validation))
    assert read.total == read.done == stored
    assert read.name.startswith("node ")


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("place", "verify", "complaint"),
    [
        ("first/only", False, r"^node \S+ \(\S+\): there is no \S+first/only: put the data where every node sees it"),
        ("first/other", False, r"^node \S+ \(\S+\): \S+first/other has other data there \(fingerprint \w+, here \w+\)"),
        ("first/damaged", True, r"^node \S+ \(\S+\): .* 1 damaged sample, first train: train\.beton: sample 7 "),
    ],
)  # fmt: skip
def test_a_node_without_the_data_is_named(places: Path, place: str, verify: bool, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        check(places / place, verify=verify)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("session")
def test_damage_that_only_reading_every_byte_finds_is_left_to_the_loader(places: Path) -> None:
    with pytest.raises(UserError, match="1 damaged sample"):
        check(places / "first/damaged", verify=True)
    # At once: the process that found it is still there, takes this up, and must not be ended by the end of the other.
    check(places / "first/damaged", verify=False)


@pytest.mark.usefixtures("session")
def test_only_a_node_that_may_see_other_files_is_asked(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    asked, ask = list[str](), nodes._on_node
    monkeypatch.setattr(nodes, "_on_node", lambda task, node: asked.append(node) or ask(task, node))
    check(places / "shared", verify=False)
    here = ray.get_runtime_context().get_node_id()
    assert asked == [node["NodeID"] for node in ray.nodes() if node["NodeID"] != here]


@pytest.mark.usefixtures("session")
def test_a_node_on_which_no_worker_fits_need_not_have_the_data(places: Path) -> None:
    data = check_dataset(places / "first/only")
    check_nodes(data, WorkerResources(1, cpus=2, gpus=0.0), verify=True, progress=Read())


def test_a_study_that_would_train_on_a_damaged_copy_starts_nothing(
    session: str, places: Path, tmp_path: Path
) -> None:
    flags = [
        "--data",
        places / "first/damaged",
        "--verify",
        "full",
        "--address",
        session,
        "--storage",
        "runs",
    ]
    # In a new process: preloaded ones have imported Ray for clusters with a token.
    result = Workplace(tmp_path).run_as_typed(*flags, HOME=os.environ["HOME"])
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if "MB" not in line]
    assert len(lines) == 1
    assert "agc_sweep.py: node " in lines[0]
    assert "sample 7 " in lines[0]
    assert not (tmp_path / "runs").exists()


def test_a_file_is_one_under_two_names_and_a_copy_is_another(tmp_path: Path) -> None:
    path, link, copy = (tmp_path / name for name in ("file", "link", "copy"))
    path.write_bytes(b"bytes")
    os.link(path, link)
    shutil.copy2(path, copy)
    assert file_identity(path) == file_identity(link) != file_identity(copy)


@pytest.mark.usefixtures("session")
def test_what_finds_no_place_is_explained_and_what_has_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of one core each."""
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr(placement, "SECONDS_BETWEEN_CHECKS", 0.1)
    monkeypatch.setattr(placement, "SECONDS_BEFORE_EXPLAINING", 0.2)
    large, small = WorkerResources(1, 2, 0.0), WorkerResources(2, 1, 0.0)

    def said(wanted: int, worker: WorkerResources) -> list[str]:
        lines: list[str] = []
        with placement.waiting_is_explained(lambda: wanted, worker, lines.append, lines.append):
            time.sleep(1)
        return lines

    [line] = said(1, large)
    assert "a worker that asks for (2 CPU) has no place. Ray has 2 CPU on 2 nodes" in line
    assert said(2, small) == []
    group = placement_group([{"CPU": 1.0}, {"CPU": 1.0}])
    assert group.wait(30)
    try:
        assert said(2, small) == []  # they have their places
        [line] = said(3, small)
        assert "of which 0 CPU are free; it starts when others leave room" in line
    finally:
        remove_placement_group(group)
