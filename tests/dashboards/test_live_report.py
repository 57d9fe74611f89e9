"""The report of a running study is written soon, seldom and harmlessly. A few seconds."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Queue

import pytest

from dashboards import live_report
from dashboards.live_report import LiveReport
from dashboards.report import REPORT_FILE
from tests.deadlines import HANG_SECONDS, wait_until
from tests.tracking.example_study import agc_sweep, write_journal


def test_the_first_epoch_gives_a_report_and_the_next_ones_wait(tmp_path: Path) -> None:
    written: Queue[Path] = Queue()
    with LiveReport(tmp_path, written.put) as report:
        assert written.empty()
        for _ in range(100):
            report.wake()
        assert written.get(timeout=HANG_SECONDS) == tmp_path
        report.wake()
    assert written.empty()  # a minute has not passed


def test_it_is_written_again_and_a_failure_does_no_harm(tmp_path: Path) -> None:
    attempts: Queue[int] = Queue()

    def write(_: Path) -> None:
        attempts.put(1)
        if attempts.qsize() == 1:
            raise OSError("No space left on device")
        if attempts.qsize() == 2:
            raise AssertionError("something that nobody thought of")

    with LiveReport(tmp_path, write, seconds_between=0.0) as report:
        for attempt in (1, 2, 3):
            report.wake()
            while attempts.qsize() < attempt:
                threading.Event().wait(0.01)


def test_once_it_is_closed_nobody_writes_any_more(tmp_path: Path) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def write(_: Path) -> None:
        begun.set()
        may_end.wait(HANG_SECONDS)
        ended.set()

    with LiveReport(tmp_path, write) as report:
        report.wake()
        report.wake()
        assert begun.wait(HANG_SECONDS)
        may_end.set()
    assert ended.is_set()


def test_another_process_writes_the_report_of_a_long_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise AssertionError("it was written in this process")

    monkeypatch.setattr(live_report, "LONG_JOURNAL_BYTES", 1)
    monkeypatch.setattr(live_report, "write_report", refuse)
    write_journal(tmp_path, agc_sweep())
    with LiveReport(tmp_path) as report:
        report.wake()
        wait_until((tmp_path / REPORT_FILE).exists, "the report")
    assert "<html" in (tmp_path / REPORT_FILE).read_text()
