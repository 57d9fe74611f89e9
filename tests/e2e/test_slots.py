"""A study whose trials have several workers: one worker group trains them one after another, and what it survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nfnet_ray.cluster.connection.ray_internals import LOCAL_SETTINGS
from nfnet_ray.study.study import Study
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
from tests.cluster.training import SCRIPT, differing
from tests.deadlines import HANG_SECONDS
from tests.e2e.test_study import numbers
from tests.e2e.workplace import QUICK, Workplace
from tests.preloaded import TRAINING_MODULES, start_program

pytestmark = pytest.mark.slow

FIELD = "schedule.base_learning_rate"
RATES = ["0.4", "0.3", "1e+06", "0.2", "0.1", "0.05", "0.01"]
USUAL, DIES, DIVERGES, REUSED, LEAKS, FAILS, LAST = (f"base_learning_rate={rate}" for rate in RATES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, few_digits: Path, cluster: str) -> Workplace:
    """With the study ``slots``: seven trials of two workers, one slot, and something wrong with every other one."""
    place = Workplace(tmp_path_factory.mktemp("slots"), SCRIPT)
    wrong = {DIES: {"dies": [1, 7]}, FAILS: {"fails": [1, 4]}, LEAKS: {"leaks": [0, 4]}}
    (place.folder / "disturbance.json").write_text(json.dumps(wrong))
    result = place.run(
        place.folder, "--study", "--name", "slots", "--data", few_digits, "--epochs", "3", *QUICK,
        "--sweep", f"{FIELD}={','.join(RATES)}", "--workers-per-trial", "2", "--address", cluster,
        "--set", "compile=auto", "--tracking-uri", "none",
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5", **LOCAL_SETTINGS,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout + result.stderr  # a trial failed
    (place.folder / "printed").write_text(result.stdout)
    return place


def weights(place: Workplace, trial: str) -> dict[str, torch.Tensor]:
    store = CheckpointStore(place.folder / "runs" / "slots" / "trials" / trial / "checkpoints")
    found: dict[str, torch.Tensor] = store.load(store.entries()[0])["model"]
    return found


def starts(place: Workplace) -> list[tuple[str, int, bool]]:
    """(trial, attempt, whether its workers had trained another one) of each start."""
    return [
        (event["trial"], event["attempt"], event["reused"])
        for event in place.events("slots")
        if event["event"] == "trial_started"
    ]


def test_workers_stay_up_unless_something_is_wrong_with_them(place: Workplace) -> None:
    """A trial that diverges leaves them as they are; one that raises, and memory that has grown, replace them."""
    progress = place.progress("slots")
    states = {name: trial.state for name, trial in progress.trials.items()}
    assert states == dict.fromkeys(states, "finished") | {DIVERGES: "diverged", FAILS: "failed"}
    assert starts(place) == [
        (USUAL, 1, False),
        (DIES, 1, True),
        (DIES, 2, False),
        (DIVERGES, 1, True),
        (REUSED, 1, True),
        (LEAKS, 1, True),
        (FAILS, 1, False),
        (LAST, 1, False),
    ]
    assert progress.trials[FAILS].reason is not None
    assert progress.trials[FAILS].reason.startswith("ValueError: this network cannot do that (trace in ")
    printed = (place.folder / "printed").read_text()
    again = [line for line in printed.splitlines() if "the workers start again" in line]
    assert len(again) == 1  # an error that would recur ends a trial at once
    assert f"{DIES}: Rank 1 died" in again[0] or f"{DIES}: Rank 0 lost its connection" in again[0]
    assert "the memory of rank 0 has grown from" in printed.lower()


def test_a_trial_in_used_workers_has_the_weights_of_one_in_fresh_processes(place: Workplace) -> None:
    """Of two that have trained nothing else, and know nothing of Ray.

    What a trial has that lost a worker is compared in tests/cluster/test_training.py.
    """
    started: Any = place.events("slots")[0]
    (trial,) = (trial for trial in Study.from_event(started).trials() if trial.name == REUSED)
    recipe, out = place.folder / "recipe.json", place.folder / "fresh.pt"
    recipe.write_text(json.dumps(trial.recipe.to_values()))
    plain = start_program(TRAINING_MODULES, str(SCRIPT), str(place.folder), "--plain", str(recipe), str(out))
    assert plain.wait(HANG_SECONDS) == 0, plain.communicate()
    assert differing(weights(place, REUSED), torch.load(out, weights_only=True)) == []


def test_the_first_trial_chooses_the_form_for_all(place: Workplace) -> None:
    chosen = [event for event in place.events("slots") if event["event"] == "form_chosen"]
    assert [event["trial"] for event in chosen] == [USUAL]
    assert chosen[0]["choice"]["form"] == {
        "memory_format": "channels_last",
        "compile": False,
        "grouped_convolutions": "whole",
    }


def test_the_next_trial_begins_within_seconds(place: Workplace) -> None:
    """Five with two cores for themselves; the test's machine is shared."""
    for trial in (DIES, REUSED):
        assert place.progress("slots").trials[trial].epochs[1]["startup_seconds"] < 20


def test_two_workers_train_like_one(place: Workplace, whole: Workplace) -> None:
    """Nothing in the network is random, so only the order of sums differs."""
    together = numbers(place, "slots", USUAL)
    alone = numbers(whole, "whole", "clip_factor=0.01,batch_size=48")
    assert sorted(together) == [1, 2, 3]
    for epoch, metrics in together.items():
        assert metrics["train_loss"] == pytest.approx(alone[epoch]["train_loss"], rel=1e-4)
        assert metrics["validation_loss"] == pytest.approx(alone[epoch]["validation_loss"], rel=1e-3)
