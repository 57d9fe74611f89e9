"""What the processes of a run tell each other arrives as it was sent. No Ray is started."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nfnet_ray.cluster import mailbox as mailbox_module
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.mailbox import Mailbox, Register, remove_run
from nfnet_ray.cluster.messages import (
    ATTEMPTS,
    METRICS,
    STOP,
    AttemptCount,
    AttemptStarted,
    CheckpointKept,
    EpochEnded,
    FinalReport,
    GroupResizing,
    Note,
    TrainingOptions,
    WorkerHung,
    WorkersLost,
    epoch_result,
    worker_config,
)
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.study import Study

NOTES: list[Note] = [
    AttemptStarted(attempt=2, workers=4, step=17),
    EpochEnded({"epoch": 3, METRIC: 0.5, "train_loss": 1.25}),
    EpochEnded({"epoch": 4, METRIC: 0.5}, "3:oA=="),
    WorkerHung(1, 4, "data_wait", 12, False, 600.0, "runs/x/stacks"),
    GroupResizing(before=4, after=2),
    CheckpointKept("preempted"),
    WorkersLost("rank 1 died", preempted=False),
    FinalReport("failed", "no room; make room", 3, stops_study=True, refused=True),
]


@pytest.fixture(autouse=True)
def head(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The values of the cluster's head, in this process."""
    values: dict[str, bytes] = {}

    class Internals:
        get_value = staticmethod(values.get)

        @staticmethod
        def put_value(key: str, value: str) -> None:
            values[key] = value.encode()

        @staticmethod
        def delete_value(key: str) -> None:
            values.pop(key, None)

        @staticmethod
        def delete_values(prefix: str) -> None:
            for key in [key for key in values if key.startswith(prefix)]:
                del values[key]

        @staticmethod
        def value_keys(prefix: str) -> list[str]:
            return [key for key in values if key.startswith(prefix)]

    monkeypatch.setattr(mailbox_module, "ray_internals", Internals)
    return values


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
    assert result == {"epoch": 3, METRIC: 0.5, METRICS: metrics}
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
