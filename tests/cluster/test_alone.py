"""A study is run by one process at a time, and anybody can see whether one does."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.study.study import Study
from nfnet_ray.tracking import running_lock
from nfnet_ray.tracking.events import study_ended
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from nfnet_ray.tracking.running_lock import LOCK_FILE, alone_with, is_running, wait_until_free
from nfnet_ray.tracking.state import StudyState
from studies.running.execution.last_checks import check_journal_is_as_it_was
from studies.running.execution.study_run import StudyRun
from tests.cluster.test_study import RECIPE, SPACE, started_event
from tests.deadlines import HANG_SECONDS, wait_until


def test_a_second_process_is_refused_until_the_first_has_left(tmp_path: Path) -> None:
    study = tmp_path / "twice"
    assert not is_running(study)
    assert not study.exists()
    with alone_with(study):
        assert is_running(study)
        assert is_running(study)
        with pytest.raises(UserError, match="another process is running twice"), alone_with(study):
            pass
        assert is_running(study)
    assert not is_running(study)
    assert (study / LOCK_FILE).exists()
    with alone_with(study):
        pass


def test_who_continues_a_study_waits_for_the_one_who_runs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study, said, leaves = tmp_path / "twice", list[str](), threading.Event()
    monkeypatch.setattr(running_lock, "LOOK_SECONDS", 0.01)
    wait_until_free(study, HANG_SECONDS, said.append)
    assert said == []

    def run() -> None:
        with alone_with(study):
            leaves.wait(HANG_SECONDS)

    other = threading.Thread(target=run)
    other.start()
    wait_until(lambda: is_running(study), "the other process")
    wait_until_free(study, 0.0, said.append)
    assert is_running(study)
    assert "waiting up to 0 s" in said[0]
    wait_until_free(study, HANG_SECONDS, lambda _: leaves.set())
    assert not is_running(study)
    other.join()


def test_a_journal_that_has_grown_since_it_was_read_is_not_continued(tmp_path: Path) -> None:
    study = Study("s", "?", RECIPE, SPACE)
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        journal.append(started_event(study))
        progress, _ = StudyState.read(tmp_path)
        data: Any = None  # nothing of it is asked for
        run = StudyRun(study, data, tmp_path, "", "", progress)
        check_journal_is_as_it_was(run)
        journal.append(study_ended("interrupted", 1.0))
    with pytest.raises(UserError, match="another process has continued s meanwhile"):
        check_journal_is_as_it_was(run)


def test_a_file_system_without_locks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def flock(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"No locks available.*with locks"), alone_with(tmp_path):
        pass
