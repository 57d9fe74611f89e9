"""What a training run survives: each test disturbs one and compares it with two plain processes that nobody did."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nfnet_ray.data.files.dataset import open_dataset
from tests.cluster.machines import QUIET, Machines
from tests.cluster.training import TrainingPlace, Undisturbed, differing, kill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """A head, and two machines of one core."""
    cluster = Machines(head_arguments=QUIET)
    try:
        cluster.add("one")
        cluster.add("two")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def place(tmp_path: Path, few_digits: Path, machines: Machines) -> TrainingPlace:
    return TrainingPlace(tmp_path, few_digits, machines.address)


def test_with_machines_that_come_and_go_it_is_the_same_training(
    place: TrainingPlace, undisturbed: Undisturbed, machines: Machines
) -> None:
    """A machine is taken back, which costs no step; one comes; one is lost without a word."""
    place.disturb(step_seconds=0.5)
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
    machines.add("four")
    assert place.samples == undisturbed.samples
    for name, weight in undisturbed.weights.items():
        torch.testing.assert_close(place.state["model"][name], weight, rtol=1e-2, atol=1e-3)


def test_kill_9_of_a_worker_the_controller_and_the_driver_changes_no_bit(
    place: TrainingPlace, undisturbed: Undisturbed
) -> None:
    """And SIGTERM to a worker, and to the driver, which keep the very step."""
    place.disturb(step_seconds=0.3)
    driver = place.start("--workers", "2", "--checkpoint-minutes", "0.03")
    driver.until_attempt(1)
    kill("ray::RayTrainWorker", os.getpid())
    driver.until_attempt(2)
    kill("ray::TrainController", os.getpid())
    driver.until_attempt(3)
    lost_so_far = place.steps_done_twice
    kill("ray::RayTrainWorker", os.getpid(), signal.SIGTERM)
    driver.until_attempt(4)
    assert place.attempts[3]["after"] == "a worker was asked to end"
    assert place.steps_done_twice == lost_so_far
    assert driver.end(signal.SIGTERM) == 130
    assert "--resume run" in driver.printed
    assert place.state["clock"]["is_pause"] == 1
    kept_at = place.state["step"]["number"]
    assert kept_at == max(place.samples) + 1

    driver = place.resume()
    driver.until_attempt(5)
    assert place.attempts[-1]["step"] == kept_at
    driver.process.kill()
    driver.process.wait()

    place.disturb(step_seconds=0)
    driver = place.resume()
    assert driver.end() == 0, driver.printed
    assert place.trial.state == "finished"
    assert [attempt["workers"] for attempt in place.attempts] == [2] * 6
    assert any(said in place.attempts[1]["after"] for said in ("died", "lost its connection"))
    assert "controller" in place.attempts[2]["after"]
    assert place.samples == undisturbed.samples
    assert differing(place.state["model"], undisturbed.weights) == []
    clock = place.state["clock"]
    assert clock["lost"] > 0
    assert clock["paused"] > 0


def test_a_worker_that_hangs_is_found_and_all_stacks_are_kept(
    place: TrainingPlace, undisturbed: Undisturbed
) -> None:
    place.disturb(hang=[1, 12])
    driver = place.start("--workers", "2", "--hang-seconds", "8")
    assert driver.end() == 0, driver.printed
    stacks = place.folder / "runs" / "run" / "trials" / "seed=0" / "stacks"
    first, second = ((stacks / f"attempt-1-rank-{rank}.txt").read_text() for rank in range(2))
    assert "in step" in second  # where disturbed.py sleeps
    assert "in look" in first or "in backward" in first  # it waits for the other one
    after = place.attempts[1]["after"]
    assert after.startswith("rank 1 hung for")
    assert str(stacks) in after
    assert "Rank 1 hung for" in driver.printed
    assert differing(place.state["model"], undisturbed.weights) == []


def test_a_storage_that_is_not_shared_is_refused_in_one_line(place: TrainingPlace) -> None:
    place.disturb(storage_apart=True)
    driver = place.start("--workers", "2")
    assert driver.end() == 2
    last = driver.printed.strip().splitlines()[-1]
    assert last.startswith("disturbed.py: worker ")  # the name of the program
    assert "need a folder or a URI that all nodes share" in last
    assert "Traceback" not in driver.printed


def test_a_sample_that_only_one_worker_finds_damaged_ends_a_training_at_once(
    place: TrainingPlace, few_digits: Path
) -> None:
    """The other one is in the middle of a step by then, and waits for the gradients of the first."""
    data = place.folder / "damaged"
    shutil.copytree(few_digits, data)
    beton = open_dataset(data).train.beton
    with beton.path.open("r+b") as file:
        file.seek(int(beton.offsets[3]))
        file.write(bytes(int(beton.sizes[3])))
    alone = ["data.resident=never", "data.mixing.mixup_alpha=none", "data.mixing.cutmix_alpha=none"]
    flags = [part for setting in alone for part in ("--set", setting)]
    driver = place.start("--data", str(data), "--workers", "2", "--hang-seconds", "20", *flags)
    assert driver.end() == 2, driver.printed
    assert "sample 3 is damaged" in driver.printed.strip().splitlines()[-1]
    assert [attempt["attempt"] for attempt in place.attempts] == [1]
    assert "start again" not in driver.printed


def test_an_error_of_the_network_ends_a_training_at_once(place: TrainingPlace) -> None:
    """On one of two workers: it is not tried again as if a machine had been lost."""
    place.disturb(fails=[1, 7])
    driver = place.start("--workers", "2", "--checkpoint-minutes", "0.01")
    assert driver.end() == 1
    assert [attempt["attempt"] for attempt in place.attempts] == [1]
    ended = place.events[-2]
    assert (ended["event"], ended["state"]) == ("trial_ended", "failed")
    assert ended["reason"].startswith("ValueError: this network cannot do that (trace in ")
    assert "start again" not in driver.printed
