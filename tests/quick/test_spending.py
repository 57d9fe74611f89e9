"""Paid time is added up from a journal alone, wherever it was cut, and caps bite by it. Takes less than a second."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dashboards.report import write_report
from nfnet_ray.errors import UserError
from nfnet_ray.study.cost.spending import Caps, CapWatch, PaidTime, merged
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from nfnet_ray.tracking.runs.study_metrics import study_metrics
from nfnet_ray.tracking.state import StudyState
from studies.agc_sweep import agc_sweep
from studies.running.flags import main
from studies.running.program import StudyProgram
from studies.running.resuming import resume_command
from studies.running.trials import StudyRequest
from tests.tracking.example_study import START, state_of, study_started, trial_events, write_journal

FIRST, SECOND = "agc_sweep-00", "agc_sweep-01"


def started(gpus: float = 0.0, workers: int = 1, **caps: float) -> Event:
    event: Any = study_started({"batch_size": (64, 256)}, epochs=3)
    event["study"]["worker"] = {"workers": workers, "cpus": 1, "gpus": gpus}
    if caps:
        event["study"]["caps"] = caps
    return event


def resumed(at: float, **caps: float | None) -> Any:
    return {"event": "study_resumed", "time": at, "caps": caps}


def two_drivers() -> list[Any]:
    """The first one is killed within the second trial, after a sign of life; the second one comes an hour later."""
    first = trial_events(FIRST, START + 10, (0.1, 0.2, 0.3))
    second = trial_events(SECOND, START + 150, (0.1, 0.2, 0.3))
    alive = {"event": "at_work", "time": second[1]["time"] + 30}
    later = alive["time"] + 3600
    again = [event | {"time": event["time"] - second[0]["time"] + later + 1} for event in second]
    again[0]["attempt"] = 2
    ended = {"event": "study_ended", "time": again[-1]["time"] + 2, "state": "finished"}
    ended["wall_seconds"] = alive["time"] - START + ended["time"] - later
    return [started(), *first, *second[:2], alive, resumed(later), *again, ended]


def test_paid_time_is_that_of_all_attempts_without_downtime() -> None:
    state = state_of(two_drivers())
    # Each attempt has 5 s before its first epoch, 40 s for each epoch, and 1 s after the last one.
    whole, cut = 5 + 3 * 40 + 1, 5 + 40 + 30
    assert state.accelerator_seconds == pytest.approx(whole + cut + whole)
    assert state.wall_seconds == pytest.approx((150 + cut) + (1 + whole + 2))


def test_paid_time_grows_with_the_journal_and_never_by_downtime() -> None:
    events = two_drivers()
    before = PaidTime(0.0, 0.0)
    for end in range(1, len(events) + 1):
        state = state_of(events[:end])
        paid = PaidTime.of(state)
        step = events[end - 1]["time"] - events[max(0, end - 2)]["time"]
        downtime = events[end - 1]["event"] == "study_resumed"
        assert paid.hours - before.hours == pytest.approx(0.0 if downtime else step / 3600, abs=1e-9)
        assert before.accelerator_hours <= paid.accelerator_hours <= paid.hours + 1e-12
        # A driver at work pays on, also within an epoch; without one nothing is paid for.
        now = PaidTime.of(state, events[end - 1]["time"] + 36)
        at_work = events[end - 1]["event"] != "study_ended"
        # What a killed driver left in the state "running" holds nothing until it is started again.
        running = not downtime and sum(trial.state == "running" for trial in state.trials.values())
        assert now.hours - paid.hours == pytest.approx(0.01 * at_work)
        assert now.accelerator_hours - paid.accelerator_hours == pytest.approx(0.01 * at_work * running)
        before = paid


@pytest.mark.parametrize(("gpus", "workers", "held"), [(0, 1, 1), (0, 4, 4), (0.25, 1, 0.25), (1, 8, 8)])
def test_accelerators_are_the_gpus_of_a_trial_or_else_its_workers(
    gpus: float, workers: int, held: float
) -> None:
    state = state_of([started(gpus, workers), *trial_events(FIRST, START + 10, (0.1, 0.2, 0.3))])
    assert state.accelerator_seconds == pytest.approx(held * 126)


def test_an_attempt_with_fewer_workers_pays_for_fewer() -> None:
    events: list[Any] = [started(1, 8), *trial_events(FIRST, START, (0.1, 0.2, 0.3))]
    shrunk = {"event": "trial_started", "time": START + 26, "trial": FIRST, "attempt": 2, "workers": 4}
    events.insert(2, shrunk)
    assert state_of(events).accelerator_seconds == pytest.approx(8 * 26 + 4 * 100)


@pytest.mark.parametrize(
    ("caps", "flag", "says"),
    [
        ({"max_hours": 0.05}, "--max-hours", "0.05 hours"),
        ({"max_gpu_hours": 0.035}, "--max-gpu-hours", "0.035 worker-hours"),
        ({"max_cost": 0.1, "price_per_hour": 3.0}, "--max-cost", "0.10 at 3 per worker-hour"),
    ],
)
def test_a_cap_is_reached_once_its_paid_time_is_used_up(caps: dict[str, float], flag: str, says: str) -> None:
    events = [started(**caps), *trial_events(FIRST, START + 60, (0.1, 0.2, 0.3))]
    reached = [
        Caps.of(state_of(events[:end]).caps).reached(PaidTime.of(state_of(events[:end])), "worker")
        for end in range(1, 7)
    ]
    assert reached[:4] == [None] * 4
    assert reached[5] is not None
    assert flag == reached[5].flag
    assert says in reached[5].reason
    assert (
        Caps.of({**caps, reached[5].name: reached[5].higher}).reached(PaidTime.of(state_of(events)), "worker")
        is None
    )


def test_a_study_says_where_it_ends_at_the_latest() -> None:
    assert Caps(price_per_hour=2.0).sentence("GPU") == ""
    caps = Caps(max_hours=5.0, max_gpu_hours=40.0, max_cost=30.0, price_per_hour=2.5)
    ends = "after 5 hours or 40 GPU-hours of paid time or at a cost of 30.00 (2.5 per GPU-hour)"
    assert caps.sentence("GPU") == f"It ends at the latest {ends}."


def test_caps_are_those_that_were_given_last_and_infinity_takes_one_away() -> None:
    events = [started(max_hours=5.0, price_per_hour=2.0), resumed(START + 1, max_cost=30.0)]
    assert state_of(events).caps == {"max_hours": 5.0, "price_per_hour": 2.0, "max_cost": 30.0}
    given = merged(state_of(events).caps, {"max_hours": math.inf, "max_cost": 40.0})
    assert Caps.of(given) == Caps(max_cost=40.0, price_per_hour=2.0)
    later = state_of([*events, resumed(START + 2, **merged({}, {"max_hours": math.inf}))])
    assert later.caps["max_hours"] is None


def test_report_and_mlflow_say_what_was_paid_and_why_a_study_ended_early(tmp_path: Path) -> None:
    ended = {"event": "study_ended", "time": START + 200, "state": "interrupted", "wall_seconds": 200.0}
    events = [
        started(price_per_hour=100.0),
        *trial_events(FIRST, START + 10, (0.1, 0.2, 0.3)),
        ended | {"reason": "its cap of 0.05 hours was reached"},
    ]
    metrics = study_metrics(state_of(events), "validation_top1")
    assert metrics["accelerator_hours"] == pytest.approx(126 / 3600)
    assert metrics["cost"] == pytest.approx(3.5)
    write_journal(tmp_path, events)
    report = write_report(tmp_path).read_text()
    assert "as its cap of 0.05 hours was reached" in report
    assert "paid for 0.035 worker-hours, 3.50 at 100 per worker-hour" in report


def test_a_cap_in_money_needs_a_price() -> None:
    with pytest.raises(UserError, match="--price-per-hour"):
        Caps.of({"max_cost": 3.0})


def test_the_watch_stops_a_study_within_an_epoch_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nfnet_ray.study.cost.spending.SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr("nfnet_ray.study.cost.spending.SECONDS_BETWEEN_SIGNS", 0.1)
    state, stop, said = StudyState(), threading.Event(), []
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        recorder = Recorder(journal, state, lambda: None, lambda _text: None)
        recorder.record(started() | {"time": time.time()})  # type: ignore[arg-type]
        recorder.record({"event": "trial_started", "time": time.time(), "trial": FIRST, "attempt": 1})
        with CapWatch(recorder, Caps(max_gpu_hours=0.4 / 3600), "worker", stop, said.append) as watch:
            assert not stop.is_set()
            assert stop.wait(10)
        recorder.end_trial(FIRST, "interrupted", None)
    assert watch.reached is not None
    assert said == [watch.reached]
    assert state.trials[FIRST].reason == watch.reached.reason
    # The journal alone knows what was paid for, as of the last sign of life.
    again, _ = StudyState.read(tmp_path)
    assert again.accelerator_seconds == pytest.approx(0.4, abs=0.3)
    signs = (tmp_path / JOURNAL_FILE).read_text().count('"at_work"')
    assert 1 <= signs <= 6


def test_the_watch_leaves_a_study_alone_that_is_being_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nfnet_ray.study.cost.spending.SECONDS_BETWEEN_LOOKS", 0.01)
    stop = threading.Event()
    stop.set()
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        recorder = Recorder(journal, StudyState(), lambda: None, lambda _text: None)
        recorder.record(started())
        with CapWatch(recorder, Caps(max_hours=1e-9), "worker", stop, lambda _cap: None) as watch:
            time.sleep(0.1)
    assert watch.reached is None
    assert recorder.why_interrupted is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-cost", "5"], "--max-cost needs the price of an accelerator-hour"),
        (["--max-hours", "0"], "0 is not a number above 0, nor none"),
        (["--max-gpu-hours", "many"], "many is not a number above 0, nor none"),
        (["--price-per-hour", "-1"], "-1 is not a number above 0"),
    ],
)
def test_a_wrong_cap_is_one_line(
    flags: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(agc_sweep, tmp_path / "agc_sweep.py", ["--plan", *flags])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    told = capsys.readouterr()
    assert (code, told.err.count("\n")) == (2, 1)
    assert says in told.err


def test_the_command_that_raises_a_cap_has_its_flag() -> None:
    request = StudyRequest(program=StudyProgram(agc_sweep), max_gpu_hours=0.02, max_cost=1e6)
    command = resume_command(Path("studies/agc_sweep.py"), request, "mine")
    assert command.endswith("--resume mine --max-gpu-hours 0.02 --max-cost 1000000")
