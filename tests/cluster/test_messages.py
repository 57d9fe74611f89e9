"""What the processes of a run tell each other arrives as it was sent. No Ray is started."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.mailbox import Mailbox, Register, remove_run
from nfnet_ray.cluster.messages.configs import TrainingOptions, worker_config
from nfnet_ray.cluster.messages.notes import (
    AttemptStarted,
    CheckpointKept,
    EpochEnded,
    FinalReport,
    FormChosen,
    GroupResizing,
    Note,
    WorkerHung,
    WorkersLost,
)
from nfnet_ray.cluster.messages.register_values import ATTEMPTS, STOP, AttemptCount
from nfnet_ray.cluster.messages.tune_reports import METRICS, epoch_result, metrics_of, with_epochs_of_trial
from nfnet_ray.cluster.worker import stacks_place
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.decisions import Leg
from nfnet_ray.study.halving import with_schedule_of
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.trial_progress import TrialProgress
from tests.cluster.fake_head import fake_head

NOTES: list[Note] = [
    AttemptStarted(attempt=2, workers=4, step=17),
    EpochEnded({"epoch": 3, METRIC: 0.5, "train_loss": 1.25}),
    EpochEnded({"epoch": 4, METRIC: 0.5}, {"correct_images": "3:oA=="}),
    FormChosen("nfnet_pico, 32 px", {"form": {"memory_format": "contiguous", "compile": False}}),
    WorkerHung(1, 4, "data_wait", 12, False, 600.0, "runs/x/stacks"),
    GroupResizing(before=4, after=2),
    CheckpointKept("preempted"),
    WorkersLost("rank 1 died", preempted=False),
    FinalReport("failed", "no room; make room", 3, stops_study=True, refused=True),
]


@pytest.fixture(autouse=True)
def head(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The values of the cluster's head, in this process."""
    return fake_head(monkeypatch)


def test_notes_arrive_once_and_in_their_order() -> None:
    for note in NOTES:
        Mailbox("run").post(note)
    Mailbox("another run").post(NOTES[0])
    assert Mailbox("run").take() == NOTES
    assert Mailbox("run").take() == []


def test_metrics_that_json_does_not_know_arrive() -> None:
    Mailbox("run").post(EpochEnded({"epoch": 1, "train_loss": math.nan}))
    (note,) = Mailbox("run").take()
    assert isinstance(note, EpochEnded)
    assert math.isnan(note.metrics["train_loss"])


def test_a_value_is_the_last_that_was_set_and_a_run_leaves_nothing(head: dict[str, bytes]) -> None:
    register = Register("run")
    assert register.get(STOP) is None
    register.set(STOP, False)
    register.set(STOP, True)
    register.set(ATTEMPTS, AttemptCount(attempt=2, step=17, count=1))
    assert register.get(STOP) is True
    assert Register("run").get(ATTEMPTS) == {"attempt": 2, "step": 17, "count": 1}
    assert Register("run2").get(STOP) is None
    register.unset(STOP)
    assert register.get(STOP) is None
    register.set_first(STOP, True)
    register.set_first(STOP, False)
    assert register.get(STOP) is True
    Mailbox("run").post(NOTES[0])
    Register("run2").set(STOP, True)
    remove_run("run")
    assert list(head) == ["run2/value/stop"]


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (FinalReport("finished", None, 8), "finished"),
        (FinalReport("diverged", "at step 3", 1), "diverged"),
        (FinalReport("failed", "ValueError: x"), "failed"),
        (FinalReport("stopped", None, 2), "interrupted"),
        (FinalReport("failed", "no room; make room", stops_study=True), "interrupted"),
    ],
)
def test_a_final_report_goes_through_tune_and_says_the_state_of_the_trial(
    report: FinalReport, state: str
) -> None:
    result = json.loads(json.dumps(report.to_result())) | {"training_iteration": 3, "done": False}
    assert METRIC not in result  # no scheduler takes it for an epoch
    assert FinalReport.from_result(result) == report
    assert report.trial_outcome == state


def test_the_report_of_an_epoch_is_not_a_final_one() -> None:
    metrics = {"epoch": 3, METRIC: 0.5, "train_loss": 1.25}
    result = epoch_result(metrics)
    assert metrics_of(result) == metrics
    # Tune keeps statistics of every number that it finds in dictionaries.
    assert result == {"epoch": 3, METRIC: 0.5, METRICS: tuple(metrics.items())}
    assert FinalReport.from_result(result) is None


def test_the_configuration_of_workers_is_plain_values(tmp_path: Path) -> None:
    study = Study("x", "?", Recipe(), {})
    (trial,) = study.trials()
    resources = WorkerResources(4, 2, 0.5, min_workers=2)
    plain = worker_config(trial, "0123", tmp_path, resources)
    carried = json.loads(json.dumps(plain))
    assert carried | {"recipe": {}} == plain | {"recipe": {}}
    assert Recipe.from_values(carried["recipe"]) == trial.recipe
    assert WorkerResources(**plain["resources"]) == resources
    assert plain["checkpoints"] == str(tmp_path / "checkpoints")
    other = worker_config(trial, "0123", tmp_path, resources, TrainingOptions(checkpoints="s3://b/c"))
    assert other["checkpoints"] == "s3://b/c"
    assert other["mailbox"] != plain["mailbox"]


def test_a_complete_schedule_has_a_recipe_and_checkpoints_of_its_own(tmp_path: Path) -> None:
    recipe = Recipe().with_values({"schedule.epochs": 90, "schedule.warmup_epochs": 5.0})
    (trial,) = Study("x", "?", recipe, {}).trials()
    before = TrialProgress(trial.name, held_since=7.0)
    before.epochs[10] = {METRIC: 0.5, "train_seconds": 3.5, "eval_seconds": 1.0, "gpu_energy_joules": 9.0}
    leg = Leg(trial.name, until=40, rung=40, epochs_before=10, schedule_epochs=30)
    config = worker_config(trial, "0123", tmp_path, WorkerResources(1, 1, 0), leg=leg, before=before)
    assert config["checkpoints"] == str(tmp_path / "checkpoints" / "epochs-30")
    assert Recipe.from_values(config["recipe"]).schedule == with_schedule_of(recipe, 30).schedule
    assert (config["until_epoch"], config["until_seconds"]) == (None, None)
    spent = config["spent"]
    assert spent is not None
    assert spent["joules"] == 9
    assert spent["clock"] == {"train": 3.5, "eval": 1.0, "taken_at": 7.0, "is_pause": 1.0}
    told = with_epochs_of_trial({"epoch": 3, METRIC: 0.5}, config["epochs_before"], config["schedule_epochs"])
    assert told == {"epoch": 13, METRIC: 0.5, "schedule_epoch": 3, "schedule_epochs": 30}
    assert stacks_place(config) == str(tmp_path / "stacks")


def test_a_leg_to_a_rung_in_seconds_keeps_the_schedule_of_all_epochs(tmp_path: Path) -> None:
    (trial,) = Study("x", "?", Recipe(), {}).trials()
    leg = Leg(trial.name, until=360, rung=60.0, until_seconds=60.0)
    config = worker_config(trial, "0123", tmp_path, WorkerResources(1, 1, 0), leg=leg)
    assert (config["until_epoch"], config["until_seconds"]) == (360, 60.0)
    assert (config["spent"], config["schedule_epochs"]) == (None, None)
    assert Recipe.from_values(config["recipe"]) == trial.recipe
