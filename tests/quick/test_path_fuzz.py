"""Whatever the path or the name, a study starts or one line says why it does not. About 12 s, no Ray."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import studies.agc_sweep
import studies.train
from nfnet_ray.cluster.connection.session import check_temporary_folder
from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable
from studies.agc_sweep import agc_sweep
from studies.running.flags import main

STUDY_FILE = Path(studies.agc_sweep.__file__)


def fuzz(examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(derandomize=True, deadline=None, max_examples=examples, suppress_health_check=checks)


# What file systems, shells, URIs and terminals give a meaning of its own, and what they cannot have.
NAMES = st.sampled_from(
    ["", ".", "..", "~", " ", "a", "a b", "ä", "名前", "e\u0301", "🙂", "a\nb", "\r", "\t", "\x1b[31m", "\x7f", "\0",
     "\udcff", "\ud800", "\u202e", "x" * 255, "x" * 256, "ä" * 128, "?", "a?b=c", "#", "%", "%2F", "[red]", "[/]",
     ":", "*", "'", '"', "`", "$HOME", "\\", "-", "--", "-x", "=", "a=b", ",", "&", ";", "|", "..x", "x.beton", "none",
     "file", "folder", "dangling", "loop", "inside", "pipe", "pipe.beton", "C:"]
)  # fmt: skip
STARTS = st.sampled_from(
    ["", "", "here/", "/", "//", "///", "/proc/", "/dev/null/", "/dev/full/", "/sys/", "~/", "../", "file:", "file://",
     "file:///", "s3://", "gs:", "http://[", "sqlite:", "sqlite://", "sqlite:///", "sqlite:////", "foo://", "://"]
)  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> str:
    start = draw(STARTS)
    names = draw(st.lists(st.one_of(NAMES, st.text(max_size=6)), max_size=5))
    return start + "/".join(names * draw(st.sampled_from([1, 1, 1, 1, 30])))


@pytest.fixture
def place(tmp_path: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with things in it that are no folder for results, and a study that would be run."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.beton")
    (tmp_path / "inside").symlink_to(tmp_path / "file" / "below")
    (tmp_path / "data").symlink_to(few_digits)
    monkeypatch.chdir(tmp_path)
    for name in ("NFNET_RAY_HOME", "RAY_JOB_CONFIG_JSON_ENV_VAR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("studies.running.run.execute", lambda *_: 0)
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left behind


def check_one_line(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It would start, or it is refused by exit code 2 and one line that can be printed."""
    capsys.readouterr()
    try:
        code = run()
    except SystemExit as left:  # of argparse
        code = left.code
    told = capsys.readouterr().err
    assert code in (0, 2)
    assert (told == "") if code == 0 else (told[-1] == "\n" and printable(told[:-1]) == told[:-1]), told


@fuzz(100)
@given(flag=st.sampled_from(["storage", "name", "data", "resume", "tracking-uri"]), text=texts())
def test_paths_and_names_of_a_study(
    place: Path, capsys: pytest.CaptureFixture[str], flag: str, text: str
) -> None:
    del place
    rest = [] if flag in ("data", "resume") else ["--data", "data"]
    command = ["--trials", "1", "--set", "batch_size=48", *rest, f"--{flag}={text}"]
    check_one_line(lambda: main(agc_sweep, STUDY_FILE, command), capsys)


@fuzz(30)
@given(text=texts())
def test_places_of_checkpoints(place: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    del place
    command = ["--data", "data", "--model", "nfnet_pico", "--set", "batch_size=48", f"--checkpoints={text}"]
    check_one_line(lambda: studies.train.main(command), capsys)


@fuzz(60)
@given(name=st.sampled_from(["RAY_TMPDIR", "TMPDIR", "NFNET_RAY_HOME"]), text=texts())
def test_places_from_the_environment(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    if "\0" in text or not _can_be_in_the_environment(text):
        return
    with monkeypatch.context() as patch:
        patch.delenv("RAY_TMPDIR", raising=False)
        patch.setenv(name, text)
        command = ["--trials", "1", "--set", "batch_size=48", "--data", str(place / "data")]
        check_one_line(lambda: main(agc_sweep, STUDY_FILE, command), capsys)
        with contextlib.suppress(UserError):
            check_temporary_folder()


def _can_be_in_the_environment(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
