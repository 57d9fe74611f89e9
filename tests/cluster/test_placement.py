"""The line that explains why workers cannot start."""

from __future__ import annotations

import pytest

from nfnet_ray.cluster.connection import placement
from nfnet_ray.cluster.connection.placement import Machines, lack_of_room
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources, concurrent_trials
from nfnet_ray.errors import UserError
from tests.deadlines import wait_until

TWO_NODES = [(2.0, 0.0), (2.0, 0.0)]


def test_nothing_is_said_where_there_is_room_or_nothing_is_missing() -> None:
    assert lack_of_room(0, WorkerResources(1, 3, 0.0), TWO_NODES, TWO_NODES) is None
    assert lack_of_room(2, WorkerResources(1, 2, 0.0), TWO_NODES, TWO_NODES) is None
    assert lack_of_room(4, WorkerResources(4, 1, 0.25), [(4.0, 1.0)], [(4.0, 1.0)]) is None


@pytest.mark.parametrize(
    ("missing", "worker", "machines", "free", "words"),
    [
        (
            1,
            WorkerResources(1, 3, 0.0),
            TWO_NODES,
            TWO_NODES,
            ["a worker that asks for (3 CPU)", "4 CPU on 2 nodes", "no node that is up is that large"],
        ),
        (
            2,
            WorkerResources(2, 2, 1.0),
            [(8.0, 2.0)],
            [(1.0, 2.0)],
            ["2 workers that ask for (2 CPU + 1 GPU)", "8 CPU + 2 GPU on 1 node, of which 1 CPU + 2 GPU are free"],
        ),
        (3, WorkerResources(3, 2, 0.0), TWO_NODES, TWO_NODES, ["3 workers", "the nodes that are up take 2 of them"]),
        (1, WorkerResources(1, 1, 1.0), [(8.0, 0.0)], [(8.0, 0.0)], ["(1 CPU + 1 GPU)", "is that large"]),
        (1, WorkerResources(1, 1, 0.0), [], [], ["0 CPU on 0 nodes", "autoscaler adds nodes"]),
    ],
    ids=["too large for any node", "others have the cores", "too few nodes", "no GPU", "no node is up"],
)  # fmt: skip
def test_what_is_asked_for_and_what_there_is(
    missing: int, worker: WorkerResources, machines: Machines, free: Machines, words: list[str]
) -> None:
    line = lack_of_room(missing, worker, machines, free)
    assert line is not None
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_driver_whose_ray_has_no_node_any_more_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A local Ray on a machine that slept: its head took the only node for dead, and lives on."""
    monkeypatch.setattr(placement, "SECONDS_BETWEEN_CHECKS", 0.01)
    monkeypatch.setattr(placement, "SECONDS_BEFORE_EXPLAINING", 0.1)
    answers: list[Machines | None] = [[(2.0, 0.0)], None, [], [(2.0, 0.0)]]
    asked: list[int] = []

    def nodes(_worker: WorkerResources) -> tuple[Machines, Machines, int]:
        found = answers[len(asked)] if len(asked) < len(answers) else []
        asked.append(1)
        if found is None:
            raise OSError("the head does not answer")
        return found, found, 0

    monkeypatch.setattr(placement, "_nodes", nodes)
    said, lost = list[str](), list[str]()
    with placement.waiting_is_explained(lambda: 1, WorkerResources(1, 1, 0.0), said.append, lost.append):
        wait_until(lambda: bool(lost), "the end of a study without Ray")
    assert len(asked) > len(answers)
    assert said == []
    assert lost == ["no node of Ray is up any more; look into Ray's logs"]


def test_cores_of_two_nodes_do_not_make_one_worker() -> None:
    nodes = Resources(2, 4.0, 0.0, 1.0, "4 CPU cores, 2 nodes", tuple(TWO_NODES))
    with pytest.raises(UserError, match=r"needs 1 x \(3 CPU\)"):
        concurrent_trials(nodes, WorkerResources(1, 3, 0.0))
    assert concurrent_trials(nodes, WorkerResources(2, 1, 0.0)) == 2
    assert concurrent_trials(nodes, WorkerResources(8, 1, 0.0, min_workers=2)) == 1
    with pytest.raises(UserError, match="a trial needs 5 x"):
        concurrent_trials(nodes, WorkerResources(8, 1, 0.0, min_workers=5))
