"""A storage that fills up, or can no longer be written: everything stops, and what was saved is intact.

No Ray is started. About 10 s, most of it for importing it.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nfnet_ray.cluster.driver import _JournalCallback
from nfnet_ray.cluster.forms import FormBook
from nfnet_ray.cluster.messages.notes import FinalReport
from nfnet_ray.places import lost_place
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.epochs_done import note_progress, noted_progress
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal, read_events

TRIAL = "seed=0"
STUDY = Study("x", "?", Recipe(), {})


@contextmanager
def no_file_larger_than(size: int) -> Generator[None]:
    """The nearest to a full disk for which nothing has to be mounted: the same error, at the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def started(attempt: int) -> Event:
    return {"event": "trial_started", "time": 1.0, "trial": TRIAL, "attempt": attempt}


def attempts(path: Path) -> list[int]:
    return [cast(Any, event)["attempt"] for event, _ in read_events(path)]


def test_nothing_of_a_line_that_finds_no_room_stays_in_the_journal(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_FILE
    with Journal(path) as journal:
        journal.append(started(1))
        size = path.stat().st_size
        with no_file_larger_than(size + 20), pytest.raises(OSError, match="File too large"):
            journal.append(started(2))
        assert path.stat().st_size == size
        journal.append(started(3))
    assert attempts(path) == [1, 3]


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        yield Recorder(journal, STUDY.waiting_state(), lambda: None, print, threading.Event().set)


def test_after_an_event_that_is_missing_nothing_is_recorded(tmp_path: Path, recorder: Recorder) -> None:
    recorder.record(started(1))
    with no_file_larger_than(10):
        recorder.record(started(2))
    assert recorder.lost is not None
    assert "the journal cannot be written (File too large); make room" in recorder.lost
    recorder.record(started(3))  # there is room again, and the second is missing
    assert attempts(tmp_path / JOURNAL_FILE) == [1]
    assert recorder.state.trials[TRIAL].attempts == 1


@pytest.mark.parametrize("how", ["its final report", "an error of its worker"])
def test_a_trial_that_cannot_keep_its_checkpoints_is_interrupted_and_stops_the_study(
    tmp_path: Path, recorder: Recorder, how: str
) -> None:
    legs = Legs(STUDY, validation_images=100, recorder=recorder)
    callback = _JournalCallback(recorder, FormBook(recorder), legs, threading.Event())
    assert legs.next() is not None
    legs.start(TRIAL)
    error_file = tmp_path / "error.txt"
    error_file.write_text("Traceback ...\nOSError: [Errno 28] No space left on device: 'x'\n")
    trial = cast(Any, SimpleNamespace(config={"trial": {"name": TRIAL}}, error_file=str(error_file)))
    if how == "its final report":
        report = FinalReport("failed", "x: no room; make room", stops_study=True)
        callback.on_trial_result(1, [trial], trial, report.to_result())
        callback.on_trial_complete(1, [trial], trial)
    else:
        callback.on_trial_error(1, [trial], trial)
    assert recorder.state.trials[TRIAL].state == "interrupted"  # so that it is resumed
    assert recorder.lost is not None
    assert recorder.lost.endswith("make room")


def test_the_errors_that_say_so_are_known_through_whatever_wraps_them() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE):
        error = OSError(number, os.strerror(number))
        wrapped = ValueError("of another library")
        wrapped.__cause__ = error
        assert lost_place(wrapped) is error
        told = lost_place(RuntimeError(f"ray::run() OSError: [Errno {number}] {os.strerror(number)}"))
        assert told is not None
        assert told.errno == number
    assert lost_place(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert lost_place(ValueError("x")) is None


def test_what_is_only_shown_does_not_end_a_training(tmp_path: Path) -> None:
    note_progress(tmp_path, 0.5)
    with no_file_larger_than(0):
        note_progress(tmp_path, 0.75)
    assert noted_progress(tmp_path) == 0.5
