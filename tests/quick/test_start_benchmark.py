"""What `benchmarks.driver.start` reads from a journal is what the trials' clocks and the events' times say."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.driver.start import moments

CLOCK = {"data_wait": 0.5, "eval": 1.0, "checkpoint": 0.25, "report": 0.25}


def epoch(time: float, trial: str, train: float, startup: float) -> dict[str, Any]:
    seconds = {**CLOCK, "train": train, "startup": startup}
    metrics = {f"{phase}_seconds": value for phase, value in seconds.items()}
    return {"event": "epoch", "time": time, "trial": trial, "metrics": metrics}


def test_the_first_batch_is_where_the_clock_of_the_first_epoch_began() -> None:
    events = [
        {"event": "study_started", "time": 102.0, "study": {"places": 2}},
        {"event": "trial_started", "time": 103.0, "trial": "a"},
        {"event": "trial_started", "time": 103.5, "trial": "b"},
        epoch(110.0, "a", train=3.0, startup=2.0),
        epoch(111.0, "b", train=4.0, startup=2.0),
        epoch(116.0, "a", train=8.0, startup=2.0),
        {"event": "trial_ended", "time": 116.5, "trial": "a"},
        {"event": "trial_ended", "time": 117.0, "trial": "b"},
        {"event": "study_ended", "time": 118.0},
    ]
    row = moments(events, began=100.0)
    assert row["first_batch"] == 110.0 - (3.0 + 0.5 + 1.0 + 0.25 + 0.25) - 100.0
    order = (
        "study_started",
        "trial_started",
        "first_batch",
        "first_epoch",
        "last_trial_ended",
        "study_ended",
    )
    assert [row[name] for name in order] == [2.0, 3.0, 5.0, 10.0, 17.0, 18.0]
    # Of the last epoch of each trial, whose clock counts from its first, for each of the two that run at once.
    assert (row["train"], row["evaluation"], row["startup"]) == (6.0, 1.0, 2.0)


def test_a_study_that_did_not_end_is_no_row() -> None:
    with pytest.raises(SystemExit, match="did not end"):
        moments([{"event": "study_started", "time": 1.0, "study": {}}], began=0.0)
