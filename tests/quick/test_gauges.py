"""What monitoring is told of a study follows from its state, and is handed to Ray while the study runs. 2 s for Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from ray.util import metrics

from nfnet_ray.cluster.gauge_export import gauges_are_exported
from nfnet_ray.study.live.gauges import GAUGES, SECONDS_AFTER_THE_END, STATES, Sample, samples
from nfnet_ray.tracking.events import Event
from tests.deadlines import HANG_SECONDS
from tests.quick.test_idle import begins, ends, pauses
from tests.tracking.example_study import state_of

Told = dict[tuple[str, ...], float]


def started(*names: str, caps: dict[str, float] | None = None) -> Any:
    worker = {"workers": 2, "cpus": 1, "gpus": 1}
    study = {"name": "s", "seeds": [0], "worker": worker, "places": 2, "caps": caps or {}}
    plans = [{"name": name, "point": {}, "recipe": {}} for name in names]
    return {"event": "study_started", "time": 0.0, "study": study, "trials": plans}


def epoch(trial: str, time: float, number: int, **metrics: float | None) -> Any:
    return {"event": "epoch", "time": time, "trial": trial, "epoch": number, "metrics": metrics}


def told(events: Iterable[Event], now: float, backlog: int = 0) -> Told:
    """{(gauge, values of its labels but the study): value}"""
    found: Told = {}
    for gauge, labels, value in samples("s", state_of(events), now, backlog):
        assert tuple(labels) == GAUGES[gauge].labels
        assert labels["study"] == "s"
        key = (gauge, *(text for name, text in labels.items() if name != "study"))
        assert key not in found
        found[key] = value
    return found


RUNNING = [
    started("a", "b", "c", "d", caps={"price_per_hour": 3.6}),
    begins("a", 10.0),
    begins("b", 10.0),
    epoch("a", 20.0, 1, images_per_second=100.0, train_seconds=6.0, data_wait_seconds=2.0, startup_seconds=1.0,
          agc_clipped_fraction=0.5, train_loss=2.0, validation_top1=0.25, lost_seconds=4.0),
    epoch("a", 30.0, 2, images_per_second=110.0, train_seconds=9.0, data_wait_seconds=3.0, startup_seconds=1.0,
          agc_clipped_fraction=0.4, train_loss=1.5, validation_top1=0.5, lost_seconds=4.0),
    epoch("b", 30.0, 1, images_per_second=50.0, train_seconds=8.0, data_wait_seconds=0.0, startup_seconds=1.0,
          agc_clipped_fraction=None, train_loss=2.5, validation_top1=0.1, lost_seconds=1.0),
]  # fmt: skip


def test_each_number_is_the_journals() -> None:
    found = told(RUNNING, 40.0, backlog=7)
    assert {state: found["nfnet_trials", state] for state in STATES} == dict.fromkeys(STATES, 0.0) | {
        "running": 2.0,
        "waiting": 2.0,
    }
    assert found["nfnet_places",] == 2
    assert found["nfnet_images_per_second",] == 160
    assert found["nfnet_lost_seconds",] == 5
    assert found["nfnet_mlflow_backlog_events",] == 7
    # Two GPUs for each of two trials, since second 10; at 3.6 an hour.
    assert found["nfnet_paid_accelerator_seconds",] == pytest.approx(120)
    assert found["nfnet_cost",] == pytest.approx(0.12)
    assert found["nfnet_available_accelerator_seconds",] == pytest.approx(160)
    # Until second 10 both places, and then a second of start-up on each.
    assert found["nfnet_idle_accelerator_seconds", "start"] == pytest.approx(2 * (20 + 2))
    assert found["nfnet_idle_accelerator_seconds", "decision"] == 0
    assert found["nfnet_idle_accelerator_seconds", "nothing"] == 0
    assert found["nfnet_trial_epoch", "a"] == 2
    assert found["nfnet_trial_images_per_second", "a"] == 110
    assert found["nfnet_trial_data_wait_share", "a"] == pytest.approx(
        0.25
    )  # 1 s of 4 s; 3 of 12 over all epochs
    assert found["nfnet_trial_data_wait_share", "b"] == 0
    assert found["nfnet_trial_clipped_share", "a"] == 0.4
    assert ("nfnet_trial_clipped_share", "b") not in found  # trained without AGC, it has none
    assert found["nfnet_trial_train_loss", "b"] == 2.5
    assert found["nfnet_trial_validation_top1", "a"] == 0.5
    assert {gauge for gauge, *_ in found} == set(GAUGES)
    # As docs/monitoring.md says.
    assert len([gauge for gauge, *_ in found if not gauge.startswith("nfnet_trial_")]) == 19
    assert len([gauge for gauge, *labels in found if labels == ["a"]]) == 6


def test_a_driver_says_when_it_was_there_last_and_whether_it_has_ended_its_study() -> None:
    """A killed one leaves "running"; one that was refused before it began has said nothing that could be missed."""

    def heartbeat(events: Iterable[Event], now: float) -> dict[str, float]:
        return {
            labels[0]: value
            for (gauge, *labels), value in told(events, now).items()
            if gauge == "nfnet_driver_heartbeat_timestamp_seconds"
        }

    assert heartbeat([], 5.0) == {}
    assert heartbeat(RUNNING, 40.0) == {"running": 40.0}
    ended: Any = {
        "event": "study_ended",
        "time": 50.0,
        "state": "interrupted",
        "wall_seconds": 50.0,
        "reason": None,
    }
    assert heartbeat([*RUNNING, ended], 51.0) == {"ended": 51.0}
    resumed: Any = {"event": "study_resumed", "time": 60.0, "changed": {}, "caps": {}}
    assert heartbeat([*RUNNING, ended, resumed], 61.0) == {"running": 61.0}


def test_the_waiting_of_the_last_epoch_counts_and_not_that_of_the_epochs_before() -> None:
    events = [*RUNNING, epoch("b", 40.0, 2, train_seconds=9.0, data_wait_seconds=3.0)]
    assert told(events, 41.0)["nfnet_trial_data_wait_share", "b"] == pytest.approx(0.75)


def test_numbers_that_are_none_are_left_out() -> None:
    events = [
        started("a"),
        begins("a", 1.0),
        epoch("a", 2.0, 1, train_loss=float("nan"), validation_top1=float("inf")),
    ]
    found = told(events, 3.0)
    assert [gauge for gauge, *labels in found if labels == ["a"]] == ["nfnet_trial_epoch"]
    assert ("nfnet_cost",) not in found
    nothing_yet = {gauge for gauge, *_ in told([], 0.0)}
    assert nothing_yet >= {"nfnet_trials", "nfnet_lost_seconds"}


@pytest.mark.parametrize("end", [ends("a", 40.0), ends("a", 40.0, "diverged"), pauses("a", 40.0)])
def test_a_trial_that_trains_no_more_has_numbers_for_a_minute(end: Any) -> None:
    def trials(now: float) -> set[str]:
        return {
            labels[0] for gauge, *labels in told([*RUNNING, end], now) if gauge.startswith("nfnet_trial_")
        }

    assert trials(40.0 + SECONDS_AFTER_THE_END) == {"a", "b"}
    assert trials(40.1 + SECONDS_AFTER_THE_END) == {"b"}
    assert told([*RUNNING, end], 41.0)["nfnet_images_per_second",] == 50


def test_a_thousand_trials_are_as_many_numbers_as_those_that_run() -> None:
    names = [f"t{number}" for number in range(1000)]
    events = [started(*names)]
    for number, name in enumerate(names[:-2]):
        events += [
            begins(name, number),
            epoch(name, number + 0.5, 1, train_loss=1.0),
            ends(name, number + 0.9),
        ]
    events += [
        event
        for name in names[-2:]
        for event in (begins(name, 1000.0), epoch(name, 1001.0, 1, train_loss=1.0))
    ]
    shown = {labels[0] for gauge, *labels in told(events, 2000.0) if gauge == "nfnet_trial_train_loss"}
    assert shown == set(names[-2:])
    assert len(told(events, 2000.0)) < 30


class Gauge:
    """In the place of Ray's."""

    every: dict[str, Gauge] = {}  # noqa: RUF012

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        assert name not in self.every
        self.tag_keys, self.values = tag_keys, list[float]()
        self.every[name] = self

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.tag_keys
        self.values.append(value)


def test_gauges_are_set_until_the_end_and_then_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, another thread changes the state meanwhile."""
    monkeypatch.setattr(metrics, "Gauge", Gauge)
    monkeypatch.setattr("nfnet_ray.cluster.gauge_export.metrics_interval_seconds", lambda: 0.01)
    monkeypatch.setattr(Gauge, "every", {})
    calls, often = 0, threading.Event()
    threads = []

    def now() -> Iterator[Sample]:
        nonlocal calls
        calls += 1
        threads.append(threading.current_thread().name)
        yield Sample("nfnet_lost_seconds", {"study": "s"}, float(calls))
        if calls == 2:
            raise RuntimeError("dictionary changed size during iteration")
        yield Sample("nfnet_trials", {"study": "s", "state": "running"}, float(calls))
        if calls == 5:
            often.set()

    with gauges_are_exported(now):
        assert often.wait(HANG_SECONDS)
    last = calls
    assert Gauge.every["nfnet_lost_seconds"].values == list(range(1, last + 1))
    assert Gauge.every["nfnet_trials"].values == [1, *range(3, last + 1)]
    assert threads == ["gauges"] * (last - 1) + [threading.current_thread().name]
    assert "gauges" not in {thread.name for thread in threading.enumerate()}
