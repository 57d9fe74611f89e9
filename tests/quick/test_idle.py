"""How long accelerators were idle, and why, follows from the journal. Less than a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.idle import IdleTime
from nfnet_ray.tracking.runs.study_metrics import study_metrics
from nfnet_ray.tracking.state import StudyState
from tests.tracking.example_study import state_of


def started(
    names: Sequence[str], places: int | None = 2, gpus: float = 0.0, search: dict[str, Any] | None = None
) -> Any:
    study: dict[str, Any] = {
        "name": "s",
        "seeds": [0],
        "worker": {"workers": 1, "cpus": 1, "gpus": gpus},
        **({"places": places} if places else {}),
        **({"search": search} if search else {}),
    }
    plans = [{"name": name, "point": {}, "recipe": {}} for name in names]
    return {"event": "study_started", "time": 0.0, "study": study, "trials": plans}


def begins(trial: str, time: float) -> Any:
    return {"event": "trial_started", "time": time, "trial": trial, "attempt": 1}


def epoch(trial: str, time: float, number: int = 1, startup: float = 0.0) -> Any:
    metrics = {"validation_top1": 0.5, "startup_seconds": startup, "warmup_seconds": 0.0}
    return {"event": "epoch", "time": time, "trial": trial, "epoch": number, "metrics": metrics}


def ends(trial: str, time: float, state: str = "finished") -> Any:
    return {"event": "trial_ended", "time": time, "trial": trial, "state": state, "reason": None, "epochs": 1}


def pauses(trial: str, time: float, number: int = 1) -> Any:
    return {"event": "trial_paused", "time": time, "trial": trial, "epoch": number}


def promoted(trial: str, time: float, number: int = 1) -> Any:
    return {"event": "trial_promoted", "time": time, "trial": trial, "epoch": number, "reason": "best"}


def is_over(time: float) -> Any:
    return {"event": "study_ended", "time": time, "state": "finished", "wall_seconds": time}


def idle(events: Sequence[Event], now: float | None = None) -> IdleTime:
    state = state_of(events)
    found = state.idle_time(now)
    assert found is not None
    assert found.seconds <= found.available + 1e-9
    return found


def test_each_second_of_a_free_place_has_its_reason() -> None:
    found = idle(
        [
            started(["a", "b", "c"]),
            begins("a", 5.0),  # both places wait 5 s for Ray, and one for another second
            begins("b", 6.0),
            epoch("a", 10.0, startup=1.0),
            ends("a", 20.0),
            begins("c", 21.0),  # 1 s between two trials
            epoch("b", 25.0, startup=1.5),
            ends("b", 30.0),
            epoch("c", 35.0, startup=0.5),
            ends("c", 40.0),  # one place had nothing to do for 10 s
            is_over(42.0),  # and then both for 2 s
        ]
    )
    assert found.starting == pytest.approx(5 * 2 + 1 + 1 + 3.0)
    assert found.without_trial == pytest.approx(10 + 2 * 2)
    assert found.deciding == 0
    assert found.available == pytest.approx(84)
    assert found.share == pytest.approx(29 / 84)
    assert found.sentence("worker") == (
        "35% of the worker time was idle: 0:15 starting trials, 0:14 with no trial left"
    )


def test_a_place_waits_for_a_decision_while_others_are_on_the_way_to_the_rung() -> None:
    events = [
        started(["a", "b"], gpus=0.5),
        begins("a", 0.0),
        begins("b", 0.0),
        epoch("a", 4.0),
        pauses("a", 4.0),
        epoch("b", 10.0),
        pauses("b", 10.0),
        promoted("a", 10.0),
        ends("b", 10.0, "stopped"),
        begins("a", 11.0),
        ends("a", 20.0),
        is_over(20.0),
    ]
    found = idle(events)
    assert found.deciding == pytest.approx(0.5 * 6)  # of half a GPU
    assert found.starting == pytest.approx(0.5 * 1)
    assert found.without_trial == pytest.approx(0.5 * 10)
    assert found.available == pytest.approx(20)
    assert idle(events[:5], now=9.0).deciding == pytest.approx(0.5 * 5)


def test_proposals_that_wait_for_results_are_decisions() -> None:
    search = {"name": "tpe", "settings": 2, "first_points": [], "lag": 1}
    proposal: Any = {
        "event": "trial_proposed",
        "time": 8.0,
        "trial": "b",
        "point": {},
        "recipe": {},
        "number": 1,
        "after": ["a"],
    }
    found = idle(
        [
            started(["a"], search=search),
            begins("a", 0.0),
            ends("a", 8.0),
            proposal,
            begins("b", 8.0),
            is_over(9.0),
        ]
    )
    assert found.deciding == pytest.approx(8)
    assert found.without_trial == pytest.approx(1)


def test_the_time_between_two_drivers_is_not_idle_time() -> None:
    resumed: Any = {"event": "study_resumed", "time": 100.0, "places": 1}
    sign: Any = {"event": "at_work", "time": 7.0}
    found = idle(
        [started(["a", "b"]), begins("a", 0.0), sign, resumed, begins("a", 102.0), ends("a", 103.0)],
        now=105.0,
    )
    assert found.available == pytest.approx(2 * 7 + 5)
    assert found.starting == pytest.approx(7 + 2 + 2)  # b did not start, then a, then b again


def test_a_journal_of_an_earlier_version_says_nothing() -> None:
    state = StudyState()
    state.apply(started(["a"], places=None))
    state.apply(begins("a", 3.0))
    assert state.idle_time() is None
    assert "idle_share" not in study_metrics(state, "validation_top1")


def test_mlflow_has_it_as_metrics_of_the_study() -> None:
    state = state_of((started(["a"], places=1), begins("a", 3.0), ends("a", 12.0)))
    metrics = study_metrics(state, "validation_top1")
    assert (metrics["idle_accelerator_seconds"], metrics["idle_share"]) == (3.0, 0.25)


def test_every_prefix_of_a_long_journal_adds_up() -> None:
    state, names = StudyState(), [f"t{number}" for number in range(20)]
    events = [started(names, places=3)]
    for number, name in enumerate(names):
        events += [
            begins(name, 3.0 * number),
            epoch(name, 3.0 * number + 2, startup=0.5),
            ends(name, 3.0 * number + 8),
        ]
    events.sort(key=lambda event: event["time"])
    before = 0.0
    for event in events:
        state.apply(event)
        found = state.idle_time()
        assert found is not None
        assert before <= found.seconds + 1e-9
        assert found.seconds <= found.available + 1e-9
        before = found.seconds
