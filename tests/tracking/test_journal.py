"""What was appended to a journal can be read, whatever happened to the process that wrote it.

Takes less than a second.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.tracking import events
from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal, read_events
from nfnet_ray.tracking.labels import point_label, short_names, value_label
from tests.tracking.example_study import agc_sweep, study_started, trial_events, write_journal


def events_of(path: Path, offset: int = 0) -> list[Event]:
    return [event for event, _ in read_events(path, offset)]


def test_a_study_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = agc_sweep()
    path = write_journal(tmp_path, written)
    read = events_of(path)
    assert repr(read) == repr(written)  # as text, because a NaN is not equal to itself
    assert any(
        math.isnan(value)
        for event in read
        if event["event"] == "epoch"
        for value in event["metrics"].values()
    )


def test_infinities_survive_as_json(tmp_path: Path) -> None:
    path = write_journal(tmp_path, trial_events("trial", 0.0, [0.5])[:2])
    assert "Infinity" not in path.read_text()
    event = events_of(path)[1]
    assert event["event"] == "epoch"
    event["metrics"] |= {"train_loss": math.inf, "validation_loss": -math.inf}
    write_journal(tmp_path, [event])
    again = events_of(path)[2]
    assert again["event"] == "epoch"
    assert again["metrics"]["train_loss"] == math.inf
    assert again["metrics"]["validation_loss"] == -math.inf


def test_reading_continues_from_an_offset(tmp_path: Path) -> None:
    written = agc_sweep()
    path = write_journal(tmp_path, written)
    offsets = [end for _, end in read_events(path)]
    assert repr(events_of(path, offsets[9])) == repr(written[10:])
    assert events_of(path, offsets[-1]) == []


@pytest.mark.parametrize("kept_bytes", [1, 20, -1])
def test_a_torn_last_line_is_left_out_and_then_replaced(tmp_path: Path, kept_bytes: int) -> None:
    path = write_journal(tmp_path, [study_started({})])
    whole = path.stat().st_size
    write_journal(tmp_path, trial_events("agc_sweep-00", 0.0, [0.5]))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:kept_bytes])

    assert [end for _, end in read_events(path)] == [whole]
    write_journal(tmp_path, [{"event": "study_resumed", "time": 1.0}])
    assert [event["event"] for event in events_of(path)] == ["study_started", "study_resumed"]


@pytest.mark.parametrize("damage", [b"{]\n", b"\n", b"[1]\n", b'{"time": 1}\n', b"\xff\xfe\n"])
def test_a_damaged_line_is_named_with_its_place(tmp_path: Path, damage: bytes) -> None:
    path = write_journal(tmp_path, [{"event": "study_resumed", "time": 1.0}])
    first = path.read_bytes()
    path.write_bytes(first + damage + first)
    with pytest.raises(UserError, match=f"{JOURNAL_FILE} is damaged at byte {len(first)}"):
        events_of(path)


def test_a_journal_that_was_cut_off_behind_the_reader_is_noticed(tmp_path: Path) -> None:
    path = write_journal(tmp_path, agc_sweep())
    with pytest.raises(UserError, match="shorter than what was read"):
        events_of(path, path.stat().st_size + 1)


def test_a_second_writer_finds_everything_that_the_first_appended(tmp_path: Path) -> None:
    with Journal(tmp_path / JOURNAL_FILE) as journal:
        journal.append({"event": "study_resumed", "time": 1.0})
        assert len(events_of(tmp_path / JOURNAL_FILE)) == 1  # before the writer has closed it
    assert len(events_of(write_journal(tmp_path, [{"event": "study_resumed", "time": 2.0}]))) == 2


def test_the_group_may_write_a_journal_where_the_umask_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o002)
    try:
        Journal(tmp_path / JOURNAL_FILE).close()
    finally:
        os.umask(before)
    assert (tmp_path / JOURNAL_FILE).stat().st_mode & 0o777 == 0o664

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)  # root may write everything
    with pytest.raises(
        UserError, match=r"journal\.jsonl cannot be written \(Permission denied\): ask its owner"
    ):
        Journal(tmp_path / JOURNAL_FILE)


def test_short_names_stay_different() -> None:
    assert short_names(["optimizer.agc.clip_factor", "batch_size"]) == {
        "optimizer.agc.clip_factor": "clip_factor",
        "batch_size": "batch_size",
    }
    assert list(short_names(["a.b.eps", "c.b.eps", "eps"]).values()) == ["a.b.eps", "c.b.eps", "eps"]


def test_values_are_written_as_people_write_them() -> None:
    assert value_label("/a/F0_haiku.npz@sha256:0f1e") == "F0_haiku.npz"
    assert [value_label(value) for value in (None, True, 0.01, 1e-5, 64, (64, 128), "silu")] == [
        *("none", "true", "0.01", "1e-05", "64", "64 × 128", "silu")
    ]
    assert point_label({"a.b": None, "c": 2}, {"a.b": "b"}) == "b none, c 2"


def test_each_kind_of_event_has_the_line_that_it_always_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.5)
    description, plans = study_started({})["study"], study_started({})["trials"]
    write_journal(
        tmp_path,
        [
            events.study_started(description, plans),
            events.study_resumed({}),
            events.study_resumed({"batch_size": 8}),
            events.trial_started("a", 1),
            events.workers_started("a", 2, workers=3, step=40, after=None),
            events.epoch_ended("a", 1, {"validation_top1": 0.5, "train_loss": math.nan}),
            events.epoch_ended(
                "a", 2, {"validation_top1": 0.5}, {"clipping": "c", "system": '{"a":{"b":1.5}}'}
            ),
            events.trial_ended("a", "stopped", None, 1),
            events.study_ended("finished", 2.5),
        ],
    )
    first, *lines = (tmp_path / JOURNAL_FILE).read_text().splitlines()
    assert list(json.loads(first)) == ["event", "time", "study", "trials"]
    assert lines == [
        '{"event":"study_resumed","time":1.5}',
        '{"event":"study_resumed","time":1.5,"changed":{"batch_size":8}}',
        '{"event":"trial_started","time":1.5,"trial":"a","attempt":1}',
        '{"event":"trial_started","time":1.5,"trial":"a","attempt":2,"workers":3,"step":40,"after":null}',
        '{"event":"epoch","time":1.5,"trial":"a","epoch":1,'
        '"metrics":{"validation_top1":0.5,"train_loss":"NaN"}}',
        '{"event":"epoch","time":1.5,"trial":"a","epoch":2,'
        '"metrics":{"validation_top1":0.5},"system":{"a":{"b":1.5}},"clipping":"c"}',
        '{"event":"trial_ended","time":1.5,"trial":"a","state":"stopped","reason":null,"epochs":1}',
        '{"event":"study_ended","time":1.5,"state":"finished","wall_seconds":2.5}',
    ]
