"""What complete schedules of each length have reached, and what rungs in seconds have compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nfnet_ray.analysis import budget_points, budget_sentences, load_study, rung_summaries
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.events import trial_paused
from tests.tracking.example_study import CLIP_FACTOR, START, study_started, trial_events, write_journal


def study_of(
    directory: Path, halving: dict[str, Any], curves: list[list[float]], rungs: list[list[Any]]
) -> Any:
    """The record of a study at two batch sizes. A trial pauses at each of its rungs: (epoch, rung)."""
    started: Any = study_started({CLIP_FACTOR: (0.01, 0.02), "batch_size": (64, 256)}, epochs=6)
    started["study"]["halving"] = {
        "grace_epochs": 2,
        "reduction_factor": 2.0,
        "rule": "synchronous",
    } | halving
    events = [started]
    for number, (plan, curve, paused) in enumerate(zip(started["trials"], curves, rungs, strict=True)):
        state = "finished" if len(curve) == 6 else "stopped"
        told = trial_events(plan["name"], START + 1000 * number, curve, state, seconds_per_epoch=10.0)
        for event in told:
            if event["event"] == "epoch" and halving.get("schedule") == "stretched":
                own = (event["epoch"], 2) if event["epoch"] <= 2 else (event["epoch"] - 2, 4)
                event["metrics"] |= {"schedule_epoch": own[0], "schedule_epochs": own[1]}
        ended = told.pop()
        told += [{**trial_paused(plan["name"], *rung), "time": ended["time"]} for rung in paused]
        events += [*told, ended]
    write_journal(directory, events)
    return load_study(directory)


CURVES = [[0.1, 0.5, 0.2, 0.3, 0.6, 0.7], [0.1, 0.2], [0.2, 0.4], [0.1, 0.3, 0.2, 0.3, 0.6, 0.9]]


def test_each_length_of_a_schedule_is_a_point_of_accuracy_against_budget(tmp_path: Path) -> None:
    record = study_of(tmp_path, {"schedule": "stretched"}, CURVES, [[(2,)]] * 4)
    points = budget_points(record)
    assert list(points) == [(64,), (256,)]
    assert [
        (point.epochs, point.train_seconds, point.top1, point.point[CLIP_FACTOR], point.settings)
        for point in points[(64,)]
    ] == [(2, 20.0, 0.5, 0.01, 2), (4, 40.0, 0.7, 0.01, 1)]
    assert [(point.top1, point.point[CLIP_FACTOR]) for point in points[(256,)]] == [(0.3, 0.02), (0.9, 0.02)]
    assert budget_sentences(record)[0] == (
        "Accuracy against budget at batch_size 64: 50.0% with 2 epochs (20 s of training, clip_factor 0.01), "
        "70.0% with 4 epochs (40 s of training, clip_factor 0.01)."
    )
    (rung,) = rung_summaries(record)
    assert (rung.rung, rung.where, rung.compared, rung.given_up) == (2, "after schedules of 2 epochs", 4, 2)


def test_a_rung_in_seconds_is_reached_at_different_epochs(tmp_path: Path) -> None:
    curves = [[0.1] * 6, [0.1, 0.2], [0.2], [0.1, 0.3, 0.2, 0.3, 0.6, 0.9]]
    rungs: list[list[Any]] = [[(2, 15.0)], [(2, 15.0)], [(1, 15.0)], []]  # the last one ended before the rung
    record = study_of(tmp_path, {"unit": "seconds", "grace_epochs": 15.0}, curves, rungs)
    assert budget_points(record) == {}
    (rung,) = rung_summaries(record)
    assert (rung.rung, rung.where, rung.compared, rung.given_up) == (15.0, "after 15 s of training", 3, 2)
    assert METRIC in record.epochs
