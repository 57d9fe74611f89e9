"""The resources of workers, machine by machine, and which worker is at fault for a hang."""

from __future__ import annotations

import pytest

from nfnet_ray.cluster.connection.resources import (
    Resources,
    check_workers_fit,
    training_resources,
    worker_resources,
)
from nfnet_ray.cluster.follower import hang_sentence
from nfnet_ray.cluster.messages import WorkerHung
from nfnet_ray.errors import UserError


def cluster(*machines: tuple[float, float]) -> Resources:
    """(cores, GPUs) of each."""
    cpus, gpus = (sum(machine[index] for machine in machines) for index in range(2))
    return Resources(len(machines), cpus, gpus, 1.0, f"{cpus:g} cores, {gpus:g} GPUs", machines)


def test_workers_get_a_gpu_and_the_cores_beside_it_not_those_of_the_head() -> None:
    with_head = cluster((32, 0), (16, 4), (16, 4))
    worker = training_resources(with_head, 8, None)
    assert (worker.gpus, worker.cpus) == (1, 4)
    trial = worker_resources(with_head, 1)
    assert (trial.gpus, trial.cpus) == (1, 4)
    check_workers_fit(with_head, worker)


def test_without_gpus_they_share_the_cores() -> None:
    assert training_resources(cluster((2, 0)), 1, None).cpus == 2
    assert training_resources(cluster((0, 0), (4, 0), (4, 0)), 2, None).cpus == 4
    assert training_resources(cluster((6, 0), (4, 0)), 3, None).cpus == 3


def test_machines_that_are_missing_count_with_an_elastic_group() -> None:
    half = cluster((4, 0), (8, 1))
    worker = training_resources(half, 2, 1)
    assert (worker.gpus, worker.cpus, worker.min_workers) == (1, 8, 1)
    check_workers_fit(half, worker)
    with pytest.raises(UserError, match=r"2 x \(8 CPU \+ 1 GPU\) do not fit"):
        check_workers_fit(half, training_resources(half, 2, None, cpus=8, gpus=1.0))


def found(rank: int, heartbeats: int, waits: bool, phase: str = "train", workers: int = 2) -> WorkerHung:
    return WorkerHung(
        rank=rank,
        workers=workers,
        heartbeats=heartbeats,
        waits_for_others=waits,
        phase=phase,
        silent_seconds=600.0,
        stacks="runs/x/stacks",
    )


@pytest.mark.parametrize(
    ("hung", "blamed"),
    [
        ([found(0, 12, True), found(1, 11, False, "data_wait")], "rank 1 hung for 600 s in data_wait"),
        (
            [found(0, 12, True, workers=3), found(1, 12, False), found(2, 12, True)],
            "rank 1 hung for 600 s in train",
        ),
        ([found(1, 12, True), found(0, 12, True)], "rank 0 and 1 hung for 600 s in train"),
        ([found(0, 12, True)], "rank 1 gave no sign of life for 600 s"),
    ],
    ids=["came least far", "does not wait", "all wait", "the other one could tell nothing"],
)
def test_the_one_that_hung_is_told_from_those_that_waited(hung: list[WorkerHung], blamed: str) -> None:
    assert blamed in hang_sentence(hung)
    assert "runs/x/stacks" in hang_sentence(hung)
