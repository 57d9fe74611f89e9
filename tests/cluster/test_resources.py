"""The resources of workers, machine by machine, and which worker is at fault for a hang."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from nfnet_ray.cluster import slots, trial
from nfnet_ray.cluster.connection import gpu_driver, nodes
from nfnet_ray.cluster.connection.gpu_driver import gpu_problem
from nfnet_ray.cluster.connection.gpu_sharing import mps_is_up, sharing_sentence
from nfnet_ray.cluster.connection.resources import (
    Resources,
    WorkerResources,
    check_workers_fit,
    concurrent_trials,
    training_resources,
    worker_resources,
    workers_on_a_gpu,
    workers_that_fit,
)
from nfnet_ray.cluster.follower import hang_sentence
from nfnet_ray.cluster.messages.configs import tune_space, worker_config
from nfnet_ray.cluster.messages.notes import WorkerHung
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study import Study


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


def test_workers_with_gpus_stay_on_one_machine_rather_than_have_more_cores() -> None:
    two = cluster((4, 0), (64, 8), (64, 8))
    assert [training_resources(two, workers, None).cpus for workers in (1, 8, 9, 16)] == [64, 8, 12, 8]
    assert training_resources(cluster((64, 8), (96, 4)), 8, None).cpus == 8
    assert training_resources(cluster((64, 0), (64, 0)), 2, None).cpus == 64


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


@pytest.mark.parametrize(
    ("gpus", "on_a_gpu"),
    [(0.1, 10), (0.2, 5), (0.25, 4), (0.3, 3), (1 / 3, 3), (0.4, 2), (0.7, 1), (0.07, 14)],
)
def test_a_share_of_a_gpu_is_counted_as_ray_counts_it(gpus: float, on_a_gpu: int) -> None:
    two = cluster((64, 2))
    assert workers_on_a_gpu(gpus) == on_a_gpu
    # A share is never spread over two GPUs: 0.4 fits twice on each, and not five times on both.
    assert workers_that_fit(two, 1, gpus) == 2 * on_a_gpu
    worker = worker_resources(two, 1, gpus=gpus)
    assert worker.cpus == 64 // (2 * on_a_gpu)
    assert concurrent_trials(two, worker) == 2 * on_a_gpu


@pytest.mark.parametrize("gpus", [1.5, 2.0])
def test_what_a_worker_cannot_use_or_ray_cannot_give_it_is_refused(gpus: float) -> None:
    with pytest.raises(UserError, match=rf"--gpus-per-worker {gpus:g}: a worker computes on one GPU"):
        worker_resources(cluster((8, 4)), 1, gpus=gpus)
    with pytest.raises(UserError, match="too small a part"):
        training_resources(cluster((8, 4)), 1, None, gpus=1e-5)


def test_too_few_gpus_do_not_mean_none() -> None:
    four = cluster((64, 4))
    with pytest.raises(UserError, match=r"8 workers would need 8 GPUs.*or 0"):
        worker_resources(four, 8)
    with pytest.raises(UserError, match=r"5 workers would need 5 GPUs"):
        training_resources(four, 8, 5)
    assert worker_resources(four, 8, gpus=0.5).gpus == 0.5
    assert training_resources(four, 8, None, gpus=0.0).gpus == 0.0
    assert training_resources(four, 8, 4).gpus == 1.0


def test_mps_is_found_where_its_daemon_reads(tmp_path: Path) -> None:
    where = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert not mps_is_up(where)
    pipe = tmp_path / "control"
    pipe.touch()  # some file
    assert not mps_is_up(where)
    pipe.unlink()
    os.mkfifo(pipe)  # of a daemon that has died
    assert not mps_is_up(where)
    daemon = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert mps_is_up(where)
    os.close(daemon)
    pipe.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(pipe))
        assert mps_is_up(where)


def test_a_shared_gpu_is_named_with_what_sharing_is_worth() -> None:
    quarter = WorkerResources(1, 2, 0.25)
    assert sharing_sentence(quarter, {"node a": True}) == "4 workers share each GPU, through MPS."
    assert "4 workers share each GPU, without MPS: they take turns" in sharing_sentence(
        quarter, {"node a": False}
    )
    assert "without MPS on node b:" in sharing_sentence(quarter, {"node a": True, "node b": False})
    assert sharing_sentence(WorkerResources(1, 2, 1.0), {"node a": False}) == ""
    assert sharing_sentence(WorkerResources(1, 2, 0.0), {"node a": False}) == ""


class Driver:
    """NVIDIA's library as ctypes gives it; ``visible`` is what the environment says when it is started."""

    def __init__(self, version: int, code: int = 0) -> None:
        self.version, self.code, self.visible = version, code, "never started"

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuInit(self, _flags: int) -> int:
        self.visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        return self.code

    def cuGetErrorString(self, _code: int, said: Any) -> int:
        said._obj.value = b"system not yet initialized"
        return 0


@pytest.mark.parametrize(
    ("built_for", "version", "code", "problem"),
    [
        ("13.2", 13020, 0, None),
        ("13.2", 13000, 0, None),  # an older one of the same major version will do
        ("12.8", 13000, 0, None),
        (
            "13.2",
            12040,
            0,
            "NVIDIA's driver is too old for torch: it knows CUDA 12.4, and torch is built for 13.2",
        ),
        ("13.2", 13020, 802, "CUDA does not start: system not yet initialized (error 802 of cuInit)"),
        ("", 13020, 0, "torch is built for CPUs alone"),
        (None, 0, 0, None),
    ],
)
def test_a_node_whose_gpus_torch_cannot_use_says_why(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, version: int, code: int, problem: str | None
) -> None:
    """NVML counts its GPUs all the same, and so does Ray."""
    driver = Driver(version, code)
    monkeypatch.setattr(gpu_driver, "_cuda_of_torch", lambda: built_for)
    monkeypatch.setattr(gpu_driver.ctypes, "CDLL", lambda _name: driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of a task of Ray that has asked for no GPU
    assert gpu_problem() == problem
    assert driver.visible in ("all", "never started")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # of a worker, which must not see more of them afterwards
    assert gpu_problem(of_all=False) == problem
    assert driver.visible in ("3", "never started")


def test_what_torch_is_built_for_is_read_without_importing_it() -> None:
    import torch

    assert gpu_driver._cuda_of_torch() == (
        None if torch.version.hip or torch.version.xpu else torch.version.cuda or ""
    )


def test_workers_do_not_start_on_gpus_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"node a (one)": None, "node b (two)": "there is no CUDA driver (libcuda.so.1)"}
    monkeypatch.setattr(nodes, "_answers", lambda *_args, **_options: answers)
    nodes.check_gpus(WorkerResources(1, 2, 0.0))
    with pytest.raises(
        UserError, match=r"^node b \(two\): torch cannot use its GPUs: there is no CUDA driver"
    ):
        nodes.check_gpus(WorkerResources(1, 2, 0.5))


def test_a_trial_on_a_node_that_has_joined_with_gpus_that_torch_cannot_use_stops_the_study(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else all trials that are left would fail there, one right after the other."""
    (one,) = Study("s", "?", Recipe(), {}).trials()
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "_report", lambda _configs, reports: said.extend(map(vars, reports)))
    monkeypatch.setattr(trial, "_starts_too_late", lambda _configs: False)
    monkeypatch.setattr(trial, "train_alone", Mock(side_effect=RuntimeError("no CUDA-capable device")))
    monkeypatch.setattr(trial, "remove_run", lambda _run: None)
    for gpus, problem, reason, stops in (
        (
            1.0,
            "CUDA does not start",
            "torch cannot use its GPUs: CUDA does not start; put that right, or take",
            True,
        ),
        (1.0, None, "RuntimeError: no CUDA-capable device", False),
        (0.0, "CUDA does not start", "RuntimeError: no CUDA-capable device", False),
    ):
        monkeypatch.setattr(trial, "gpu_problem", Mock(return_value=problem))
        config = worker_config(one, "0", tmp_path, WorkerResources(1, 1, gpus))
        trial.run_in_actor(tune_space([config]))
        assert reason in said[-1]["reason"]
        assert said[-1]["stops_study"] is stops


def test_workers_that_do_not_start_name_the_node_whose_gpus_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "_answers", lambda *_args, **_options: {"node a": None, "node b": "no driver"})
    assert slots._bad_gpus(WorkerResources(2, 1, 1.0)) == "; node b: torch cannot use its GPUs: no driver"
    assert slots._bad_gpus(WorkerResources(2, 1, 0.0)) == ""


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
