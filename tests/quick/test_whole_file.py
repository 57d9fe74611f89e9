"""A file that is written in one step: readers and killed programs never see half of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nfnet_ray.whole_file import partial_path, whole_file
from tests.deadlines import HANG_SECONDS


def test_the_name_shows_the_old_content_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with whole_file(path, "w") as file:
        file.write("näw")
        assert path.read_text() == "old"
        assert partial_path(path).name == "state.json.partial"
        assert partial_path(path).exists()
    assert path.read_bytes() == "näw".encode()
    assert [found.name for found in tmp_path.iterdir()] == ["state.json"]


def test_an_exception_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def write_half() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["model.pt"]


def test_a_partial_file_of_a_killed_program_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    partial_path(path).write_bytes(b"longer than what comes")
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("sync", "synced"), [(True, 2), (False, 0)]
)  # the content, and the folder with the name
def test_content_and_name_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool, synced: int
) -> None:
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    with whole_file(tmp_path / "file", sync=sync) as file:
        file.write(b"new")
        assert not calls
    assert len(calls) == synced


def test_several_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, both_write = tmp_path / "report.html", threading.Barrier(2, timeout=HANG_SECONDS)

    def write(text: str) -> None:
        with whole_file(path, "w", several_writers=True) as file:
            file.write(text)
            both_write.wait()

    threads = [threading.Thread(target=write, args=(letter * 1000,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("a" * 1000, "b" * 1000)
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "missing" / "page.html"):
        pass
    assert caught.value.filename == str(tmp_path / "missing" / "page.html")
