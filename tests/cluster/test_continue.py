"""One command line that works for the first attempt of a study and for every later one.

What Ray gives a submitted job is put into the environment as its job supervisor does; the study's journal is
real, and the run that would start is compared instead of being run. Takes about a second.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.study.differences import differing_fields
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from nfnet_ray.tracking.state import StudyState
from studies.agc_sweep import agc_sweep
from studies.running.execution.recording import study_started_event
from studies.running.execution.study_run import StudyRun
from studies.running.flags import main
from studies.running.runner import Places, WorkerDemand
from studies.train import main as train

STUDY_FILE = Path("studies") / "agc_sweep.py"
WORKER = WorkerResources(1, 2, 0.0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[StudyRun, WorkerDemand]]:
    """The studies that were run: each has its first event in its journal, and one trial that has ended."""
    runs: list[tuple[StudyRun, WorkerDemand]] = []

    def execute(run: StudyRun, _address: str | None, demand: WorkerDemand, _console: Any) -> int:
        if run.progress.started is None:
            with Journal(run.directory / JOURNAL_FILE) as journal:
                places = Places(Resources(1, 2, 0, 8, "two cores"), WORKER, 1)
                journal.append(study_started_event(run, run.study, places))
                name = run.study.trials()[0].name
                journal.append({"event": "trial_started", "time": 0, "trial": name, "attempt": 1})
                journal.append(
                    {
                        "event": "trial_ended",
                        "time": 1,
                        "trial": name,
                        "state": "finished",
                        "reason": None,
                        "epochs": 2,
                    }
                )
        runs.append((run, demand))
        return 0

    monkeypatch.setattr("studies.running.run.execute", execute)  # a training's too
    monkeypatch.chdir(tmp_path)
    for name in ("NFNET_RAY_HOME", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return runs


def submitted(monkeypatch: pytest.MonkeyPatch, identity: str, working_dir: str | None = None) -> None:
    environment = {"working_dir": working_dir} if working_dir else {}
    config = {"runtime_env": environment, "metadata": {"job_submission_id": identity}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))


def study(*flags: str, data: Path) -> int:
    return main(agc_sweep, STUDY_FILE, ["--epochs", "2", "--data", str(data), *flags])


def remaining(run: StudyRun) -> int:
    return len(run.progress.unfinished)


def test_continue_starts_a_study_and_resumes_it(started: Any, few_digits: Path) -> None:
    for _ in range(2):
        assert study("--name", "x", "--continue", data=few_digits) == 0
    (first, _), (again, demand) = started
    assert (remaining(first), remaining(again)) == (7, 6)
    assert (differing_fields(again.study, first.study), again.study.trials()) == ([], first.study.trials())
    assert demand == WorkerDemand(1, 2, 0.0)  # what the cluster gave the first attempt


def test_without_continue_a_name_is_used_once(
    started: Any, few_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("--name", "x", data=few_digits) == 0
    assert study("--name", "x", data=few_digits) == 2
    assert "--resume x or --continue" in capsys.readouterr().err
    assert len(started) == 1


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--epochs", "3"], "schedule.epochs is 3, was 2"),
        (["--trials", "2"], "trials is 2, was 7"),
        (["--seeds", "2,all"], "seeds is 0, 1, was 0"),
        (["--set", "optimizer.momentum=0.8"], "optimizer.momentum is 0.8, was 0.9"),
        (
            ["--set", "optimizer.agc.clip_factor=0.01"],
            "sweep of optimizer.agc.clip_factor is 0.01, was 0.005,0.01,0",
        ),
        (["--sweep", "optimizer.sam.rho=none,0.1"], "sweep of optimizer.sam.rho is none,0.1, was not swept"),
        (
            ["--early-stopping", "median"],
            "early stopping is median:first_rung=1,eta=3,finalists=3, was synchronous:first_rung=1",
        ),
        (["--cpus-per-worker", "1"], "cpus per worker is 1, was 2"),
        (["--workers-per-trial", "2"], "workers per trial is 2, was 1"),
    ],
)
def test_changed_settings_are_refused_by_name(
    started: Any, few_digits: Path, capsys: pytest.CaptureFixture[str], flags: list[str], difference: str
) -> None:
    assert study("--name", "x", "--continue", data=few_digits) == 0
    before = (Path("runs") / "x" / JOURNAL_FILE).read_bytes()
    assert study("--name", "x", "--continue", *flags, data=few_digits) == 2
    said = capsys.readouterr().err
    assert re.search(difference, said)
    assert said.count("\n") == 1
    assert len(started) == 1
    assert (Path("runs") / "x" / JOURNAL_FILE).read_bytes() == before


def test_other_data_is_refused(
    started: Any, few_digits: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert study("--name", "x", "--continue", data=few_digits) == 0
    journal = tmp_path / "runs" / "x" / JOURNAL_FILE
    fingerprint = StudyState.read(journal.parent)[1]["study"]["data"]["fingerprint"]
    journal.write_text(journal.read_text().replace(fingerprint, "0123456789ab"))
    assert study("--name", "x", "--continue", data=few_digits) == 2
    assert f"its data has the fingerprint {fingerprint}, that one's 0123456789ab" in capsys.readouterr().err
    assert len(started) == 1


def test_a_driver_that_was_killed_at_its_first_word_has_begun_nothing(started: Any, few_digits: Path) -> None:
    journal = Path("runs") / "x" / JOURNAL_FILE
    journal.parent.mkdir(parents=True)
    journal.write_text('{"event":"study_sta')
    assert study("--name", "x", "--continue", data=few_digits) == 0
    assert StudyState.read(journal.parent)[1]["study"]["name"] == "x"
    assert remaining(started[0][0]) == 7


def test_a_training_resumes_in_the_same_way(
    started: Any, few_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(few_digits), "--model", "nfnet_pico", "--set", "batch_size=48", "--name", "t"]
    for _ in range(2):
        assert train([*command, "--continue"]) == 0
    assert [remaining(run) for run, _ in started] == [1, 0]
    assert train(command) == 2
    assert "--resume t or --continue" in capsys.readouterr().err
    assert train([*command, "--continue", "--epochs", "3"]) == 2
    assert "schedule.epochs is 3, was 60" in capsys.readouterr().err
    assert len(started) == 2


@pytest.mark.usefixtures("started")
def test_resume_and_continue_exclude_each_other(few_digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study("--name", "x", data=few_digits) == 0
    assert main(agc_sweep, STUDY_FILE, ["--resume", "x", "--continue"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_trials_that_no_node_has_room_for_yet_can_be_asked_for(
    started: Any, few_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("--name", "x", "--trials-at-once", "4", data=few_digits) == 2
    assert "--trials-at-once needs --cpus-per-worker and --gpus-per-worker" in capsys.readouterr().err
    shape = ["--cpus-per-worker", "2", "--gpus-per-worker", "0", "--trials-at-once"]
    assert study("--name", "x", "--continue", *shape, "4", data=few_digits) == 0
    assert study("--name", "x", "--continue", *shape, "5", data=few_digits) == 0  # no part of the question
    assert main(agc_sweep, STUDY_FILE, ["--resume", "x", "--trials-at-once", "6"]) == 0
    assert [demand.trials_at_once for _, demand in started] == [4, 5, 6]
    assert "--trials-at-once 6" in started[-1][0].command


def test_a_job_that_is_submitted_again_resumes_without_a_flag(
    started: Any, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(monkeypatch, "mine")
    for _ in range(2):
        assert study("--address", "local", data=few_digits) == 0
    submitted(monkeypatch, "another")
    assert study("--address", "local", data=few_digits) == 0
    assert [(run.study.name, remaining(run)) for run, _ in started] == [
        ("agc_sweep-mine", 7),
        ("agc_sweep-mine", 6),
        ("agc_sweep-another", 7),
    ]


def test_results_of_an_uploaded_working_directory_do_not_stay_in_rays_copy_of_it(
    started: Any, few_digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    submitted(monkeypatch, "mine", working_dir="gcs://_ray_pkg_0123456789abcdef.zip")
    assert study("--address", "local", data=few_digits) == 0
    monkeypatch.setenv("NFNET_RAY_HOME", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "digits").symlink_to(few_digits)
    assert study("--address", "local", data=Path("digits")) == 0
    assert study("--address", "local", "--storage", str(tmp_path / "elsewhere"), data=few_digits) == 0
    assert [run.directory.parent for run, _ in started] == [
        tmp_path / "home" / "runs",
        tmp_path / "shared" / "runs",
        tmp_path / "elsewhere",
    ]
    assert started[1][0].data.path == few_digits
    assert not (tmp_path / "runs").exists()
