"""What a driver records: each epoch once, however often a training resumes and whatever is killed."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.driver import run_trials
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal, read_events

RECIPE = Recipe().with_values({"model.name": "nfnet_pico", "schedule.epochs": 8})
STUDY = Study(
    "s", "?", RECIPE, {"optimizer.agc.clip_factor": (0.01, 0.02)}, halving=Halving(4, 2.0, finalists=1)
)
FIRST, SECOND = (trial.name for trial in STUDY.trials())
MEASURED = {METRIC: 0.5, "validation_loss": 1.25, "train_seconds": 3.5, "images_per_second": 700.0}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, said: list[str]) -> Iterator[Recorder]:
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        yield Recorder(journal, STUDY.waiting_state(), lambda: None, said.append)


def epochs(folder: Path) -> list[Any]:
    return [event for event, _ in read_events(folder / JOURNAL_FILE) if event["event"] == "epoch"]


@pytest.mark.parametrize(
    "again",
    [
        MEASURED,
        MEASURED | {"train_seconds": 4.0, "images_per_second": 650.0},
        MEASURED | {"shared_batches": 0.5},
    ],
    ids=["reported anew", "trained anew", "trained beside another trial"],
)
def test_an_epoch_that_is_known_is_not_recorded_again(
    recorder: Recorder, said: list[str], tmp_path: Path, again: dict[str, float]
) -> None:
    measured, again = MEASURED | {"signal": math.nan}, again | {"signal": math.nan}
    recorder.record_epoch(FIRST, 1, measured)
    recorder.record_epoch(FIRST, 1, again)
    recorder.record_epoch(SECOND, 1, again)
    recorder.record_epoch(FIRST, 2, again)
    assert [(event["trial"], event["epoch"]) for event in epochs(tmp_path)] == [
        (FIRST, 1),
        (SECOND, 1),
        (FIRST, 2),
    ]
    assert epochs(tmp_path)[0]["metrics"]["train_seconds"] == 3.5
    assert said == []


def test_which_images_were_correct_is_kept_for_an_epoch_that_was_known_without_it(
    recorder: Recorder, said: list[str], tmp_path: Path
) -> None:
    """A training may have passed an epoch before an early stopping with other rungs made it pause there."""
    for correct_images in (None, "3:oA==", "3:oA==", None):
        texts = {"clipping": "c"} | ({"correct_images": correct_images} if correct_images else {})
        recorder.record_epoch(FIRST, 1, MEASURED, texts)
    assert [event.get("correct_images") for event in epochs(tmp_path)] == [None, "3:oA=="]
    assert recorder.state.trials[FIRST].correct_images == {1: "3:oA=="}
    assert recorder.state.trials[FIRST].clipping == {1: "c"}
    assert said == []
    recorder.record_epoch(FIRST, 1, MEASURED | {METRIC: 0.4})
    assert recorder.state.trials[FIRST].texts_of(1) == {}, "those of weights that are not trained further"


def test_an_epoch_that_is_done_again_is_recorded_again_only_under_other_conditions(
    recorder: Recorder, tmp_path: Path
) -> None:
    """An attempt that resumes from before the last known epoch tells its conditions with that one, done again."""
    for epoch, texts in ((1, {"conditions": "two workers"}), (2, {}), (2, {"conditions": "two workers"})):
        recorder.record_epoch(FIRST, epoch, MEASURED, texts)
    one = {"conditions": "one worker"}
    for epoch, texts in ((2, one), (2, one), (3, {}), (3, one)):
        recorder.record_epoch(FIRST, epoch, MEASURED, texts)
    told = [(event["epoch"], event.get("conditions")) for event in epochs(tmp_path)]
    assert told == [(1, "two workers"), (2, None), (2, "one worker"), (3, None)]


def test_how_busy_the_nodes_were_makes_no_known_epoch_a_new_one(recorder: Recorder, tmp_path: Path) -> None:
    for use in (40.0, 60.0):
        recorder.record_epoch(
            FIRST, 1, MEASURED, {"system": f'{{"a":{{"cpu_utilization_percentage":{use}}}}}'}
        )
    assert [event["system"] for event in epochs(tmp_path)] == [{"a": {"cpu_utilization_percentage": 40.0}}]


@pytest.mark.parametrize(
    "other", [{METRIC: 0.4}, {"validation_loss": math.nan}, {"raw_validation_top1": 0.1}]
)
def test_an_epoch_that_came_out_differently_replaces_the_first_and_is_said(
    recorder: Recorder, said: list[str], tmp_path: Path, other: dict[str, float]
) -> None:
    recorder.record_epoch(FIRST, 1, MEASURED)
    recorder.record_epoch(FIRST, 1, MEASURED | other)
    assert len(epochs(tmp_path)) == 2
    (name,) = other
    assert recorder.state.trials[FIRST].last(name) == pytest.approx(other[name], nan_ok=True)
    (sentence,) = said
    assert sentence.startswith(
        f"{FIRST}: epoch 1 was done again and came out differently ({name} {other[name]}, was"
    )


def test_a_trial_whose_driver_was_killed_before_it_could_give_it_up_is_given_up(
    recorder: Recorder, tmp_path: Path
) -> None:
    """Nothing is started: there is no Ray here."""
    for trial, top1 in ((FIRST, 0.9), (SECOND, 0.2)):
        recorder.record({"event": "trial_started", "time": 0.0, "trial": trial, "attempt": 1})
        for epoch in range(1, 5):
            recorder.record_epoch(trial, epoch, MEASURED | {METRIC: top1 + epoch / 100})
    recorder.end_trial(FIRST, "finished", None)
    data = DatasetSummary(Path("digits"), 1437, 360, tuple("0123456789"), "0123456789ab", (32, 32))
    run_trials(STUDY, data, recorder, tmp_path, 1, WorkerResources(1, 1, 0.0), print, threading.Event())
    ended = recorder.state.trials[SECOND]
    assert (ended.state, ended.reason) == (
        "stopped",
        "given up at epoch 4: 24.0%, 2nd of 2; the 1st had 94.0%",
    )


def test_the_time_of_drivers_that_were_killed_is_counted() -> None:
    progress = STUDY.waiting_state()

    def happens(event: str, time: float, **more: Any) -> float:
        described: Any = {"event": event, "time": time, **more}
        progress.apply(described)
        return progress.wall_seconds

    plans = [{"name": trial.name, "point": {}, "recipe": {}} for trial in STUDY.trials()]
    assert happens("study_started", 1000.0, trials=plans) == 0
    assert happens("trial_started", 1003.0, trial=FIRST, attempt=1) == 3
    assert happens("epoch", 1010.0, trial=FIRST, epoch=1, metrics=MEASURED) == 10
    assert happens("study_resumed", 5000.0) == 10  # killed, and nobody was there meanwhile
    assert happens("epoch", 5020.0, trial=FIRST, epoch=2, metrics=MEASURED) == 30
    assert happens("study_ended", 5025.0, state="interrupted", wall_seconds=35.5) == 35.5
    assert happens("study_resumed", 9000.0) == 35.5
    assert happens("epoch", 9001.0, trial=FIRST, epoch=3, metrics=MEASURED) == 36.5


def test_what_halving_decided_by_is_what_was_reported_first() -> None:
    """Journals of earlier versions have the epoch of each checkpoint twice."""
    progress = STUDY.waiting_state()
    for epoch, top1 in ((1, 0.1), (2, 0.2), (2, 0.2), (3, 0.3), (3, 0.35), (4, 0.4)):
        event: Any = {
            "event": "epoch",
            "time": 0.0,
            "trial": FIRST,
            "epoch": epoch,
            "metrics": MEASURED | {METRIC: top1},
        }
        progress.apply(event)
    reported = [progress.reported_at(epoch) for epoch in range(1, 6)]
    assert reported == [[(FIRST, 0.1)], [(FIRST, 0.2)], [(FIRST, 0.3)], [(FIRST, 0.4)], []]
    assert progress.trials[FIRST].epochs[3][METRIC] == 0.35
