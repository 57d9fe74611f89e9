"""What a training run survives: each test disturbs one and compares it with two plain processes that nobody did."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cluster.machines import Machines
from tests.cluster.training import TrainingPlace, Undisturbed, differing, kill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """A head."""
    cluster = Machines()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def place(tmp_path: Path, few_digits: Path, machines: Machines) -> TrainingPlace:
    """With two machines of one core, whatever has become of those of the test before."""
    for name in sorted({"one", "two"} - machines.ids().keys()):
        machines.add(name)
    return TrainingPlace(tmp_path, few_digits, machines.address)


def test_a_hang_and_kill_9_of_a_worker_the_controller_and_the_driver_change_no_bit(
    place: TrainingPlace, undisturbed: Undisturbed
) -> None:
    """And SIGTERM to a worker, and to the driver, which keep the very step."""
    place.disturb(step_seconds=0.8, hang=[1, 4])
    driver = place.start("--workers", "2", "--checkpoint-minutes", "0.03", "--hang-seconds", "10")
    driver.until_attempt(2)
    stacks = place.folder / "runs" / "run" / "trials" / "seed=0" / "stacks"
    first, second = ((stacks / f"attempt-1-rank-{rank}.txt").read_text() for rank in range(2))
    assert "in step" in second  # where disturbed.py sleeps
    assert "in look" in first or "in backward" in first  # it waits for the other one
    after = place.attempts[1]["after"]
    assert after.startswith("rank 1 hung for")
    assert str(stacks) in after
    assert "Rank 1 hung for" in driver.printed

    kill("ray::RayTrainWorker", os.getpid())
    driver.until_attempt(3)
    kill("ray::TrainController", os.getpid())
    driver.until_attempt(4)
    lost_so_far = place.steps_done_twice
    kill("ray::RayTrainWorker", os.getpid(), signal.SIGTERM)
    driver.until_attempt(5)
    assert place.attempts[4]["after"] == "a worker was asked to end"
    assert place.steps_done_twice == lost_so_far
    assert driver.end(signal.SIGTERM) == 130
    assert "--resume run" in driver.printed
    assert place.state["clock"]["is_pause"] == 1
    kept_at = place.state["step"]["number"]
    assert kept_at == max(place.samples) + 1

    driver = place.resume()
    driver.until_attempt(6)
    assert place.attempts[-1]["step"] == kept_at
    driver.process.kill()
    driver.process.wait()

    place.disturb(step_seconds=0)
    driver = place.resume()
    assert driver.end() == 0, driver.printed
    assert place.trial.state == "finished"
    assert [attempt["workers"] for attempt in place.attempts] == [2] * 7
    assert any(said in place.attempts[2]["after"] for said in ("died", "lost its connection"))
    assert "controller" in place.attempts[3]["after"]
    assert place.samples == undisturbed.samples
    assert differing(place.state["model"], undisturbed.weights) == []
    clock = place.state["clock"]
    assert clock["lost"] > 0
    assert clock["paused"] > 0


def test_a_storage_that_is_not_shared_is_refused_in_one_line(place: TrainingPlace) -> None:
    place.disturb(storage_apart=True)
    driver = place.start("--workers", "2")
    assert driver.end() == 2
    last = driver.printed.strip().splitlines()[-1]
    assert last.startswith("disturbed.py: worker ")  # the name of the program
    assert "need a folder or a URI that all nodes share" in last
    assert "Traceback" not in driver.printed


def test_with_machines_that_come_and_go_it_is_the_same_training(
    place: TrainingPlace, undisturbed: Undisturbed, machines: Machines
) -> None:
    """A machine is taken back, which costs no step; one comes; one is lost without a word."""
    place.is_watched = True
    place.disturb(step_seconds=1.0)
    driver = place.start("--workers", "1-2", "--checkpoint-minutes", "0.03")
    driver.until_attempt(1)
    assert place.attempts[0]["workers"] == 2
    leaving = machines["two"]
    machines.take_back(leaving, seconds=60)
    driver.until_attempt(2)
    assert (place.attempts[1]["workers"], place.attempts[1]["after"]) == (1, "a machine is taken back")
    assert place.steps_done_twice == set()
    machines.remove(leaving)
    machines.add("three")
    driver.until_attempt(3)
    assert (place.attempts[2]["workers"], place.attempts[2]["after"]) == (2, "1 worker became 2")
    assert place.steps_done_twice == set()
    machines.remove(machines["three"])
    driver.until_attempt(4)
    assert place.attempts[3]["workers"] == 1
    place.disturb(step_seconds=0)
    assert driver.end() == 0, driver.printed
    assert place.samples == undisturbed.samples
    for name, weight in undisturbed.weights.items():
        torch.testing.assert_close(place.state["model"][name], weight, rtol=1e-2, atol=1e-3)
