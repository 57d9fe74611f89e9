"""What a user sees of a running study: on a terminal of any size, on one that cannot redraw, and of the time left.

Where a table is taken away again, the terminal is a real one (a pty) with a process: two seconds, mostly imports.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from data_prep.digits import describe_digits
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.plan import epoch_arithmetic
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.live.display import StudyDisplay
from nfnet_ray.study.live.time_left import TimeLeft
from nfnet_ray.study.study import Study
from studies.agc_sweep import agc_sweep
from tests.cluster.screen import Screen, run_on_terminal
from tests.cluster.show_table import MARK, many_trials, progress_of

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDED = REPOSITORY / "tests" / "fixtures" / "digits_study_events.jsonl"


def shown(
    rows: int, columns: int, trials: int, ended: int, running: int, **environment: str
) -> tuple[str, str]:
    """The output to a terminal of that size before and after the table is removed."""
    program = [sys.executable, "-m", "tests.cluster.show_table", *map(str, (trials, ended, running))]
    during, _, after = run_on_terminal(program, rows, columns, REPOSITORY, **environment).partition(MARK)
    return during, after


@pytest.mark.parametrize(
    ("rows", "columns", "trials", "ended", "running", "hidden", "told"),
    [
        (24, 80, 100, 30, 4, 0, "66 waiting"),
        (24, 80, 12, 3, 2, 0, None),
        (16, 46, 1000, 600, 8, 6, "6 running, 392 waiting"),
    ],
)
def test_what_matters_is_on_a_terminal_of_any_size(
    rows: int, columns: int, trials: int, ended: int, running: int, hidden: int, told: str | None
) -> None:
    screen = Screen(rows, columns)
    during, after = shown(rows, columns, trials, ended, running)
    screen.feed(during)
    text = screen.text
    words = " ".join(text.split())
    for part in (
        f"{ended} of {trials:,} trials done, {running} running, {trials - ended - running} waiting",
        "left.",
        "Ctrl-C stops and keeps what is done.",
        "Best so far: 90.0% after epoch 1 of 8",
        "MLflow: 3 events waiting",
        "A worker was lost",
    ):
        assert part in words
    table = [line for line in text.splitlines() if re.search(r"\d/8 ", line)]
    assert sum("running" in line for line in table) == running - hidden
    assert any("90.0%" in line for line in table)
    lines = text.splitlines()
    if told:
        assert sum(line.startswith(f"… {told}") for line in lines) == 1
    else:
        assert len(table) == trials

    screen.feed(after)
    assert screen.text.split() in (["before", "after"], ["after"])
    assert "".join(screen.scrollback).split() in ([], ["before"])


def frame(display: StudyDisplay, console: Console) -> list[str]:
    return "".join(segment.text for segment in console.render(display.frame, console.options)).splitlines()


@pytest.mark.parametrize("trials", [8, 1000])
@pytest.mark.parametrize(("rows", "columns"), [(4, 80), (6, 60), (10, 40), (24, 80), (50, 200)])
def test_the_time_and_how_to_stop_are_on_the_lowest_terminal(
    tmp_path: Path, trials: int, rows: int, columns: int
) -> None:
    study = many_trials(trials)
    console = Console(file=StringIO(), width=columns, height=rows, force_terminal=True)
    state = progress_of(study, ended=trials // 2, running=2)
    lines = frame(StudyDisplay(study, state, tmp_path, lambda: "MLflow: up to date", console), console)
    assert len(lines) < rows
    words = " ".join(" ".join(lines).split())
    assert f"{trials // 2} of {trials:,} trials done, 2 running" in words
    assert "Ctrl-C stops and keeps what is done." in words


@pytest.mark.parametrize("columns", [80, 40, 30])
def test_many_long_settings_leave_room_for_the_accuracies(tmp_path: Path, columns: int) -> None:
    space = {
        "model.overrides.width": tuple((number, 1024, 2048, 3072) for number in range(512, 522)),
        "optimizer.agc.exclude": (("classifier.weight",), ("classifier.weight", "stem.*")),
        "optimizer.agc.clip_factor": (0.0123456, None),
    }
    study = Study("s", "?", Recipe().with_values({"schedule.epochs": 8}), space)
    console = Console(file=StringIO(), width=columns, height=24, force_terminal=True)
    state = progress_of(study, ended=20, running=2)
    lines = frame(StudyDisplay(study, state, tmp_path, lambda: "MLflow: up to date", console), console)
    assert max(map(len, lines)) <= columns
    assert any("90.0%     1/8" in line for line in lines)


def test_a_frame_of_a_thousand_trials_builds_no_trial_and_only_the_rows_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = many_trials(1000)
    console = Console(file=StringIO(), width=80, height=24, force_terminal=True)
    state = progress_of(study, ended=600, running=4)
    display = StudyDisplay(study, state, tmp_path, lambda: "MLflow: up to date", console)
    monkeypatch.setattr(Recipe, "with_values", None)
    rows = []
    add_row = Table.add_row
    monkeypatch.setattr(Table, "add_row", lambda *args, **how: (rows.append(args), add_row(*args, **how)))
    lines = frame(display, console)
    assert sum("running" in line for line in lines if "/8 " in line) == 4
    assert any(line.startswith("…") for line in lines)
    # Two tables are made where the first, of more rows, would not have fitted.
    assert len(rows) <= 2 * 24


def test_a_terminal_that_cannot_redraw_gets_lines() -> None:
    during, _ = shown(24, 80, 100, 3, 2, TERM="dumb")
    assert "\x1b[" not in during
    assert "clip_factor=0.003,batch_size=64: finished, top-1 90.0%, 1.0 s of training; " in during
    assert "A worker was lost" in during


def test_the_time_left_is_near_the_truth() -> None:
    """On the events of a study of digits, recorded on two cores that were busy with other work as well."""
    data = describe_digits(Path("digits"))
    # As agc_sweep was when it was recorded.
    space = {"optimizer.agc.clip_factor": (0.01, 0.02, 0.04, 0.08, 0.16, None), "batch_size": (64, 256)}
    study = replace(agc_sweep(data), space=space, halving=Halving())
    progress = study.waiting_state()
    left = TimeLeft(study, progress, epoch_arithmetic(study.trials(), data))
    events: list[Any] = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    end = events[-1]["time"]
    looked_at = 0
    for event in events:
        progress.apply(event)
        left.observe(event["time"])
        seconds = left.seconds(lambda trial: trial.epoch)
        assert (seconds is None) == (not any(trial.epochs for trial in progress.trials.values()))
        if seconds is None:
            continue
        least, most = seconds
        truth = end - event["time"]
        assert least <= most
        assert least <= 3 * truth + 30
        if (
            0.2 * end <= event["time"] <= 0.85 * end
        ):  # at the very end the last trial may diverge at any moment
            assert truth / 3 <= most <= 3 * truth
            looked_at += 1
    assert looked_at > 30
    assert most == 0


def test_the_start_of_new_workers_is_not_expected_again() -> None:
    """The second trial's workers were replaced: its start-up is not expected of the last one."""
    study = Study("s", "?", Recipe().with_values({"schedule.epochs": 1}), {"batch_size": (1, 2, 3, 4)})
    progress = study.waiting_state()
    left = TimeLeft(study, progress, dict.fromkeys(progress.trials, 1.0))
    for now, (name, reused, startup) in enumerate(
        zip(list(progress.trials)[:3], (False, False, True), (100.0, 60.0, 2.0), strict=True)
    ):
        metrics = {METRIC: 0.5, "train_seconds": 1.0, "startup_seconds": startup}
        events: list[Any] = [
            {"event": "trial_started", "trial": name, "attempt": 1, "reused": reused},
            {"event": "epoch", "trial": name, "epoch": 1, "metrics": metrics},
            {"event": "trial_ended", "trial": name, "state": "finished", "reason": None},
        ]
        for event in events:
            progress.apply(event)
            left.observe(now)
    assert left.seconds(lambda trial: trial.epoch) == (3.0, 3.0)


def test_the_time_left_begins_as_the_plan_has_it_and_follows_what_halving_may_stop() -> None:
    """Four trials of 8 epochs of a second, two side by side, halved after 2 and 4 epochs."""
    recipe = Recipe().with_values({"schedule.epochs": 8})
    study = Study(
        "s", "?", recipe, {"batch_size": (1, 2, 3, 4)}, halving=Halving(2, 2.0, "asynchronous", finalists=1)
    )
    progress = study.waiting_state()
    left = TimeLeft(study, progress, dict.fromkeys(progress.trials, 1.0))
    names = list(progress.trials)

    def happens(now: float, name: str, epoch: int = 0, top1: float = 0.0, state: str = "") -> None:
        event: Any = {"event": "trial_started", "trial": name, "attempt": 1}
        if epoch:
            # Start-up took a hundred seconds, which are not to come again.
            metrics = {METRIC: top1, "train_seconds": float(epoch), "startup_seconds": 100.0}
            event = {"event": "epoch", "trial": name, "epoch": epoch, "metrics": metrics}
        if state:
            event = {"event": "trial_ended", "trial": name, "state": state, "reason": None}
        progress.apply(event)
        left.observe(now)

    def seconds() -> tuple[float, float] | None:
        return left.seconds(lambda trial: trial.epoch)

    happens(0, names[0])
    happens(0, names[1])
    assert seconds() is None
    assert left.sentence(lambda trial: trial.epoch) == ""
    happens(101, names[0], 1, 0.5)
    happens(101, names[1], 1, 0.4)
    # Least: 2 + 2 + 4 + 8 epochs, two of which are done. Most: the second is behind, so that it ends after 4.
    assert seconds() == (pytest.approx((2 + 2 + 4 + 8 - 2) / 2), pytest.approx((7 + 3 + 8 + 8) / 2))
    happens(102, names[1], 2, 0.4)
    happens(102, names[1], state="stopped")
    happens(102, names[2])
    happens(102, names[0], 2, 0.6)
    assert seconds() == (pytest.approx(6), pytest.approx((6 + 8 + 8) / 2))  # the first alone has 6 to go
    happens(104, names[2], 1, 0.1)
    assert left.sentence(lambda trial: trial.epoch).endswith(" left")
    for name, state in zip(names, ("finished", "stopped", "stopped", "failed"), strict=True):
        happens(110, name, state=state)
    assert seconds() == (0, 0)
