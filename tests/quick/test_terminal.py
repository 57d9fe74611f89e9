"""Output for users: literal, wrapped between words, and redrawn only where the terminal can. A second."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from data_prep.digits import describe_digits
from nfnet_ray.command_line.program import _forgiving
from nfnet_ray.command_line.terminal import can_redraw, new_console, say, say_whole, waiting
from nfnet_ray.metric import METRIC
from nfnet_ray.study.live.display import reported_epochs, trial_table
from studies.agc_sweep import agc_sweep
from studies.running.execution.console_output import say_greeting
from studies.running.execution.study_run import StudyRun

ODD_NAME = "st [old] [/bold] [red]x :smile: \x1b[31m\n"
SHOWN = r"st [old] [/bold] [red]x :smile: \x1b[31m\n"
COMMAND = "python studies/agc_sweep.py --resume " + "a-long-name-" * 8


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console_on(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, columns: int = 40, **environment: str
) -> Console:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm", "COLUMNS": str(columns)} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream)
    return new_console()


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_names_are_printed_as_they_are(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    out = stream()
    console = console_on(out, monkeypatch, columns=100)
    table = Table(box=None)
    table.add_column("[bold]name")
    table.add_row("[old] :smile:")
    console.print(table)
    say(console, ODD_NAME)
    say_whole(console, ODD_NAME)
    console.print()
    printed = out.getvalue()
    assert printed.count(SHOWN) == 2
    assert "[bold]name" in printed
    assert "[old] :smile:" in printed
    assert "\x1b[31m" not in printed


def test_prose_is_wrapped_between_words_and_commands_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    console = console_on(out, monkeypatch)
    prose = "12 trials of at most 8 epochs on 1,437 training images (10 classes), validated on 360."
    say(console, prose)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(lines) == prose
    out.truncate(0)
    out.seek(0)
    say_whole(console, COMMAND)
    say(console, f"Resume with: {COMMAND.split()[-1]}")
    assert out.getvalue().splitlines() == [COMMAND, "Resume with:", COMMAND.split()[-1]]


def test_a_log_has_whole_lines_and_no_codes_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    console = console_on(out, monkeypatch, FORCE_COLOR="1", COLUMNS="20")
    prose = "word " * 60 + "end"
    say(console, prose)
    assert out.getvalue() == f"{prose}\n"
    assert not can_redraw(console)


@pytest.mark.parametrize(("term", "redraws"), [("xterm-256color", True), ("dumb", False), ("unknown", False)])
def test_a_dumb_terminal_gets_lines(term: str, redraws: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    console = console_on(out, monkeypatch, TERM=term)
    assert can_redraw(console) == redraws
    with waiting(console, "Starting Ray [local] …"):
        pass
    assert "Starting Ray [local] …" in out.getvalue()
    assert ("\x1b[" in out.getvalue()) == redraws
    if not redraws:
        assert out.getvalue() == "Starting Ray [local] …\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"Ray \u2026 \u22123 \xb5"), ("latin-1", r"Ray \u2026 \u22123 µ"), ("utf-8", "Ray … −3 µ")],
)
def test_what_an_output_cannot_show_is_written_as_an_escape(
    encoding: str, shown: str, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w", encoding=encoding) as stream:
        print("Ray … −3 µ", file=_forgiving(stream), flush=True)
    assert (tmp_path / "log").read_text(encoding) == f"{shown}\n"


@pytest.mark.parametrize(("columns", "titles"), [(80, "images/s  state"), (40, "epochs  state")])
def test_a_narrow_terminal_keeps_the_settings_and_the_accuracies(
    columns: int, titles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Terminal()
    console = console_on(out, monkeypatch, columns=columns)
    study = agc_sweep(describe_digits(Path("data/digits")))
    progress = study.waiting_state()
    first, second = {"train_seconds": 2.0, "images_per_second": 704.0}, {"images_per_second": 352.0}
    trial = study.trials()[0].name
    events: list[Any] = [
        {"event": "trial_started", "time": 0.0, "trial": trial, "attempt": 1},
        {"event": "epoch", "time": 1.0, "trial": trial, "epoch": 1, "metrics": {METRIC: 0.3} | first},
        {
            **{"event": "epoch", "time": 2.0, "trial": trial, "epoch": 2},
            "metrics": {METRIC: 0.5, "train_seconds": 6.0} | second,
        },
    ]
    for event in events:
        progress.apply(event)
    console.print(trial_table(study, progress, reported_epochs, console))
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in out.getvalue().splitlines()]
    rows = [line for line in lines if line.endswith(("waiting", "running"))]
    assert [row.split()[:2] for row in rows][:2] == [["0.005", "64"], ["0.01", "64"]]
    assert len(rows) == 14
    assert "50.0%" in rows[0]
    assert (" 469 " in rows[0]) == (columns == 80)  # 2 epochs of 1,408 images in 6 s
    assert any(line.endswith(titles) for line in lines)


def test_a_study_says_where_to_look_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the path as it is, quoted where it is part of a command."""
    monkeypatch.chdir(tmp_path)
    out = Terminal()
    console = console_on(out, monkeypatch, columns=80)
    data = describe_digits(Path("digits"))
    study = agc_sweep(data, 1)
    progress = study.waiting_state()
    run = StudyRun(study, data, Path("st [old]") / "mine", "sqlite:///a.db", "", progress)
    say_greeting(run, 1, console)
    lines = out.getvalue().splitlines()
    assert "Report:  st [old]/mine/report.html" in lines
    assert any(line.endswith("-m dashboards.compare 'st [old]/mine'") for line in lines)
    assert "1 trial of at most 1 epoch on 1,437 training images (10 classes), validated on" in lines
