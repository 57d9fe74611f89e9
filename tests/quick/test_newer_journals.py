"""Journals of a newer version of nfnet_ray: looked at where they are understood, never continued; else one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashboards.report import write_report
from data_prep.digits import ALL_DIGITS, describe_digits
from nfnet_ray.errors import UserError
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.version import __version__
from studies.agc_sweep import agc_sweep
from studies.managing.commands import main as manage
from studies.running.flags import main
from tests.tracking.example_study import START, trial_events, write_journal
from tests.tracking.example_study import study_started as example_started

FILE = Path(__file__).resolve().parents[2] / "studies" / "agc_sweep.py"
NEWER = f"was written by nfnet_ray 999.0, and this is {__version__}: use that version"

# What a newer version may write that this one does not know.
CHANGES: list[Callable[[Any], object]] = [
    lambda study: study["recipe"].update({"optimizer.lookahead": 5}),
    lambda study: study["recipe"].update({"optimizer.sam.method": "newest"}),
    lambda study: study["halving"].pop("grace_epochs"),
    lambda study: study["halving"].update(rule="newest"),
    lambda study: study["space"].update({"optimizer.momentum": {"normal": [0.8, 0.1]}}),
    lambda study: study["worker"].update(tpus=4),
    lambda study: study.update(search={"name": "newest", "settings": 2, "first_points": []}),
    lambda study: study.update(something=True),
]


def write(directory: Path, version: str, change: Callable[[Any], object], *more: Any) -> Any:
    """Writes the journal of a study that this version could resume, but for what was changed."""
    data = describe_digits(Path("digits"), ALL_DIGITS)
    study = replace(agc_sweep(data, 2), name=directory.name, trial_limit=2, halving=Halving(first_rung=1))
    told: Any = {**example_started({})["study"], **study.description(), "name": study.name}
    told["versions"] |= {"nfnet_ray": version}
    change(told)
    started = {
        "event": "study_started",
        "time": START,
        "study": told,
        "trials": [*map(study.plan, study.trials())],
    }
    epochs = trial_events(study.trials()[0].name, START + 1, [0.3, 0.4])
    write_journal(directory, [started, *epochs, *more])  # type: ignore[list-item]
    return StudyState.read(directory)[1]


@pytest.fixture
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The line with which a command is refused."""
    monkeypatch.chdir(tmp_path)

    def refused(program: Callable[..., int], *arguments: Any) -> str:
        assert program(*arguments) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    return refused


@pytest.mark.parametrize("change", CHANGES)
def test_a_journal_of_a_newer_version_is_not_continued(
    tmp_path: Path, said: Callable[..., str], change: Callable[[Any], object]
) -> None:
    write(tmp_path / "runs" / "new", "999.0", change)
    for command in (["--resume", "new"], ["--extend", "new", "--seeds", "2"]):
        assert NEWER in said(main, agc_sweep, FILE, command)


@pytest.mark.parametrize("number", [2, 4, 6])
def test_what_cannot_be_looked_at_is_said_in_one_line(
    tmp_path: Path, said: Callable[..., str], number: int
) -> None:
    write(tmp_path / "runs" / "new", "999.0", CHANGES[number])
    assert NEWER in said(manage, ["show", "new"])
    if number == 2:
        with pytest.raises(UserError, match=NEWER):
            write_report(tmp_path / "runs" / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            CHANGES[0],
            "optimizer.lookahead: unknown in this Recipe of a newer version of nfnet_ray; use that version",
        ),
        (CHANGES[2], "use the newer version that wrote it, or restore it from a backup"),
        (CHANGES[4], "use the newer version that wrote it, or restore it from a backup"),
    ],
)
def test_a_journal_of_another_commit_of_the_same_version_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    started = write(tmp_path / "new", __version__, change)
    with pytest.raises(UserError, match=message) as error:
        Study.from_event(started)
    assert "\n" not in str(error.value)


def test_who_has_resumed_a_study_counts_as_well(tmp_path: Path, said: Callable[..., str]) -> None:
    resumed = {"event": "study_resumed", "time": START + 500.0, "versions": {"nfnet_ray": "999.0"}}
    write(tmp_path / "runs" / "new", __version__, lambda _: None, resumed)
    assert NEWER in said(main, agc_sweep, FILE, ["--resume", "new"])
    unknown = {"event": "trial_merged", "trial": "?"}  # without a time
    with pytest.raises(UserError, match=NEWER):
        write(tmp_path / "runs" / "odd", "999.0", lambda _: None, unknown)
