"""A report is served on this machine and follows the journal. A few seconds."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dashboards import report
from dashboards.watch import WatchedPage, page_server
from nfnet_ray.errors import UserError
from tests.tracking.example_study import agc_sweep, write_journal


@contextmanager
def served(page: WatchedPage) -> Generator[str]:
    with page_server(page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def read(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        text: str = answer.read().decode()
        return text


def test_the_page_follows_the_journal_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = agc_sweep()
    write_journal(tmp_path, events[:30])
    monkeypatch.setattr("dashboards.watch._LARGEST_SHARE", float("inf"))  # no waiting between two pages
    with served(report.watched_page(tmp_path)) as url:
        assert "3 of 12 trials have ended" in read(url)
        write_journal(tmp_path, events[30:])
        assert "Best setting: clip_factor 0.02" in read(url)
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_a_page_is_made_once_for_each_state_of_the_journal_and_not_too_often(tmp_path: Path) -> None:
    journal = write_journal(tmp_path, agc_sweep()[:5])
    made: list[int] = []

    def make() -> str:
        made.append(journal.stat().st_size)
        return str(len(made))

    page = WatchedPage(make, [tmp_path])
    assert {page.latest() for _ in range(5)} == {b"1"}
    page._not_before = 0.0
    assert page.latest() == b"1"
    write_journal(tmp_path, agc_sweep()[5:9])
    page._not_before = float("inf")
    assert page.latest() == b"1"
    page._not_before = 0.0
    assert page.latest() == b"2"


def test_a_storage_that_is_away_for_a_moment_is_said_once_and_costs_no_page(tmp_path: Path) -> None:
    journal = write_journal(tmp_path, agc_sweep()[:5])
    said: list[str] = []
    page = WatchedPage(lambda: str(journal.stat().st_size), [tmp_path], said.append)
    before = page.latest()
    journal.rename(tmp_path / "away")
    for _ in range(3):
        page._not_before = 0.0
        assert page.latest() == before
    assert len(said) == 1
    assert "cannot be read (No such file or directory)" in said[0]
    write_journal(tmp_path, agc_sweep()[:9])
    for _ in range(3):
        page._not_before = 0.0
        assert page.latest() != before
    assert said[1:] == ["the study can be read again, and the page follows it"]


def test_a_study_that_cannot_be_read_is_said_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises((UserError, OSError)):
        WatchedPage(lambda: "", [tmp_path]).latest()


def test_it_answers_under_the_names_of_this_machine_only(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep()[:5])
    with served(WatchedPage(lambda: "page", [tmp_path])) as url:
        assert read(url) == "page"
        for wrong, headers, code in (
            (url, {"Host": "evil.example:5050"}, 403),
            (f"{url}etc/passwd", {}, 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as caught:
                read(wrong, **headers)
            assert caught.value.code == code
            caught.value.close()


def test_the_next_port_is_taken_if_one_is_not_free(tmp_path: Path) -> None:
    page = WatchedPage(lambda: "", [tmp_path])
    with page_server(page) as one, page_server(page) as other:
        assert other.server_port > one.server_port
