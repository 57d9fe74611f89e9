"""The comparability guard: each condition that differs is named, with its values and where; equal ones are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nfnet_ray.analysis import load_study
from nfnet_ray.analysis.comparability import comparability, condition_differences
from nfnet_ray.analysis.record import study_record
from nfnet_ray.tracking.conditions.of_trial import condition_text
from nfnet_ray.tracking.events import study_resumed
from nfnet_ray.tracking.state import StudyState
from studies.managing.export_command import export_study
from tests.tracking.example_study import agc_sweep, write_journal

OTHER_MACHINE: Any = {"description": "8 × H200", "cpus": 64, "gpus": 8, "memory_gib": 500.0}
SAME_MACHINE: Any = {"description": "2 × CPU (x86-64), no GPU", "cpus": 2, "gpus": 0, "memory_gib": 1.0}
VERSIONS: Any = {
    "nfnet_ray": "0.1.0",
    "torch": "2.15.0",
    "ray": "2.60.0",
    "python": "3.11.7",
    "commit": "4f2d1c0",
}


def resumed_in_the_middle(folder: Path, event: Any) -> Path:
    """A study of two trials whose second one is resumed by ``event`` after three of its epochs."""
    events = agc_sweep(clip_factors=(0.01,))
    second = [one["trial"] for one in events if one["event"] == "trial_started"][1]
    middle = next(n for n, one in enumerate(events) if one["event"] == "epoch" and one["trial"] == second) + 3
    write_journal(folder, [*events[:middle], {**event, "time": events[middle]["time"]}, *events[middle:]])  # type: ignore[typeddict-item]
    return folder


def test_a_study_under_one_condition_is_clean(tmp_path: Path) -> None:
    write_journal(tmp_path, agc_sweep())
    found = comparability(load_study(tmp_path))
    assert not found.weighty
    assert not found.differences
    assert not found.marks
    assert [group.title for group in found.axes] == [""]


def test_the_same_machine_and_versions_after_a_resume_are_no_difference(tmp_path: Path) -> None:
    event = study_resumed({}, places=None, hardware=SAME_MACHINE, versions=VERSIONS)
    record = load_study(resumed_in_the_middle(tmp_path, event))
    assert condition_differences(record) == []


def test_trials_that_moved_to_other_hardware_get_axes_of_their_own(tmp_path: Path) -> None:
    event = study_resumed({}, hardware=OTHER_MACHINE, versions=VERSIONS)
    record = load_study(resumed_in_the_middle(tmp_path, event))
    found = comparability(record)
    [difference] = found.weighty
    assert (difference.field.name, difference.weight, difference.field.touches) == (
        "hardware",
        "apart",
        ("time",),
    )
    first, second = record.trials["trial"]
    assert [(group.fact.text, group.trials) for group in difference.groups] == [
        ("2 × CPU (x86-64), no GPU", (first,)),
        ("2 × CPU (x86-64), no GPU, then 8 × H200", (second,)),
    ]
    assert [group.trials for group in found.axes] == [{first}, {second}]
    assert f"8 × H200 ({second})" in found.sentences()[0]


def test_another_commit_after_a_resume_is_marked(tmp_path: Path) -> None:
    event = study_resumed(
        {}, hardware=SAME_MACHINE, versions={**VERSIONS, "commit": "feedbeef", "torch": "2.16.0"}
    )
    record = load_study(resumed_in_the_middle(tmp_path, event))
    found = comparability(record)
    assert [one.field.name for one in found.weighty] == ["torch", "commit"]
    assert len(found.axes) == 1
    first, second = record.trials["trial"]
    assert found.marks == {
        first: "torch 2.15.0, commit 4f2d1c0",
        second: "torch 2.15.0, then 2.16.0, commit 4f2d1c0, then feedbeef",
    }


def test_uncommitted_changes_are_another_commit(tmp_path: Path) -> None:
    event = study_resumed({}, hardware=SAME_MACHINE, versions={**VERSIONS, "dirty": True})
    found = comparability(load_study(resumed_in_the_middle(tmp_path, event)))
    assert [one.field.name for one in found.weighty] == ["commit"]
    assert "with uncommitted changes" in found.sentences()[0]


def test_what_a_resume_of_an_earlier_version_does_not_record_is_said(tmp_path: Path) -> None:
    found = comparability(load_study(resumed_in_the_middle(tmp_path, study_resumed({}))))
    assert not found.weighty
    [remark] = found.remark_sentences()
    assert remark.startswith("Not recorded for agc_sweep-01")
    assert "hardware" in remark
    assert "commit" in remark


def test_a_worker_that_tells_its_device_is_believed(tmp_path: Path) -> None:
    """On a cluster of several kinds of GPUs, the study's hardware is the same for all trials."""
    events = agc_sweep(clip_factors=(0.01,))
    devices = iter(("NVIDIA A100-SXM4-80GB", "NVIDIA H200"))
    for event in events:
        if event["event"] == "epoch" and event["epoch"] == 1:
            event["conditions"] = json.dumps(
                {"device": next(devices), "eval_size": 64, "workers": 1, "threads": 1}
            )
    write_journal(tmp_path, events)
    record = load_study(tmp_path)
    found = comparability(record)
    assert [one.field.name for one in found.weighty] == ["device"]
    assert [group.title for group in found.axes] == ["device NVIDIA A100-SXM4-80GB", "device NVIDIA H200"]
    texts = [condition_text(conditions) for conditions in record.measured_under.values()]
    assert "evaluated at 64 pixels (squash)" in texts[0]
    assert "on NVIDIA A100-SXM4-80GB" in texts[0]
    assert texts[0] != texts[1]


def test_a_trial_that_has_just_started_is_not_said_to_differ(tmp_path: Path) -> None:
    """Its worker tells what it runs on with the first epoch."""
    events = agc_sweep(clip_factors=(0.01,))
    for event in events:
        if event["event"] == "study_started":
            # Only the worker knows what was chosen.
            event["study"]["recipe"] |= {"memory_format": "auto", "grouped_convolutions": "auto"}
        if event["event"] == "epoch" and event["epoch"] == 1:
            event["conditions"] = json.dumps(
                {"device": "CPU", "memory_format": "contiguous", "grouped_convolutions": "whole"}
            )
    second = [at for at, event in enumerate(events) if event["event"] == "trial_started"][1]
    write_journal(tmp_path, events[: second + 1])
    found = comparability(load_study(tmp_path))
    assert (found.differences, found.marks, len(found.axes)) == ((), {}, 1)


def test_damaged_conditions_are_as_good_as_none(tmp_path: Path) -> None:
    events = agc_sweep(clip_factors=(0.01,))
    for event in events:
        if event["event"] == "epoch":
            event["conditions"] = "[1" if event["epoch"] % 2 else "3"
    write_journal(tmp_path, events)
    assert not comparability(load_study(tmp_path)).weighty


def test_an_exported_study_keeps_its_conditions(tmp_path: Path) -> None:
    event = study_resumed({}, hardware=OTHER_MACHINE, versions=VERSIONS)
    folder = resumed_in_the_middle(tmp_path / "study", event)
    state, started = StudyState.read(folder)
    export_study(study_record(state, started), state, started, tmp_path / "exported")
    own, read = (load_study(path) for path in (folder, tmp_path / "exported"))
    assert read.measured_under == own.measured_under
    assert comparability(read).sentences() == comparability(own).sentences() != []
