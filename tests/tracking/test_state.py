"""A journal is added up in one way: as it happens, read again, and read up to any line. Takes less than a second."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.events import Event, at_work
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events, read_last_epochs
from nfnet_ray.tracking.journal_reader import JournalReader
from nfnet_ray.tracking.runs.study_metrics import study_metrics
from nfnet_ray.tracking.state import StudyState
from tests.tracking.example_study import (
    agc_sweep,
    proposed_later,
    state_of,
    study_started,
    trial_events,
    write_journal,
)

FIRST, SECOND = "agc_sweep-00", "agc_sweep-01"


def facts(state: StudyState) -> dict[str, Any]:
    """Everything that a state says; NaN equals itself in text."""
    trials = {name: asdict(trial) for name, trial in state.trials.items()}
    return {
        "trials": repr(trials),
        "times": (state.wall_seconds, state.last_event_time),
        "ended": state.ended,
        "changed": dict(state.changed),
        "reported": repr([state.reported_at(epoch) for epoch in range(20)]),
        "plans": dict(state.plans),
        "proposals": dict(state.proposals),
    }


def interrupted_study() -> list[Event]:
    """A driver is killed within the second trial; the next one runs the first one again too, which had failed."""
    whole = agc_sweep(clip_factors=(0.01, 0.005), batch_sizes=(256,), epochs=3)
    [started, *events] = whole
    first, second = events[:5], events[5:-1]
    failed: Any = first[-1] | {"state": "failed", "reason": "its worker died"}
    resumed: Any = {"event": "study_resumed", "time": second[1]["time"] + 100, "changed": {"batch_size": 8}}
    again: Any = [event | {"time": event["time"] + 1000} for event in first]
    unknown: Any = {"event": "trial_admired", "time": 1.0, "trial": FIRST}
    return [started, *first[:-1], failed, *second[:2], resumed, unknown, *second[2:], *again, whole[-1]]


@pytest.mark.parametrize(
    "events",
    [agc_sweep(), interrupted_study(), proposed_later(agc_sweep())],
    ids=["whole", "interrupted", "proposed"],
)
def test_the_state_at_any_line_is_that_of_a_journal_that_ends_there(
    tmp_path: Path, events: list[Event]
) -> None:
    path = write_journal(tmp_path, events)
    ends = [end for _, end in read_events(path)]
    expected, state, whole = [], StudyState(), StudyState()
    state.forget_details()
    for event in events:
        state.apply(event)
        whole.apply(event)
        expected.append(facts(state))
    reader = JournalReader(path)
    assert [facts(reader.state_at(end)) for end in ends] == expected
    order = list(range(len(ends))) * 2
    random.Random(0).shuffle(order)
    for line in order:  # what is written again comes again
        assert facts(reader.state_at(ends[line])) == expected[line]
    assert facts(StudyState.read(tmp_path)[0]) == facts(whole)


def test_a_state_that_forgets_details_has_what_a_driver_needs() -> None:
    events: Any = agc_sweep()
    for event in events:
        if event["event"] == "epoch":
            event |= {name: f"{name} of {event['epoch']}" for name in ("correct_images", "clipping")}
    whole, early, late = StudyState(), StudyState(), StudyState()
    early.forget_details()
    for event in events:
        for state in (whole, early, late):
            state.apply(event)
        assert study_metrics(early, METRIC) == study_metrics(whole, METRIC)
    late.forget_details()
    assert facts(late) == facts(early)
    for name, trial in whole.trials.items():
        kept = early.trials[name]
        assert (kept.epoch, list(kept.epochs), kept.state) == (trial.epoch, list(trial.epochs), trial.state)
        assert repr(kept.epochs[kept.epoch]) == repr(trial.epochs[trial.epoch])
        assert kept.correct_images == {trial.epoch: f"correct_images of {trial.epoch}"}
        assert kept.clipping == {trial.epoch: f"clipping of {trial.epoch}"}
        for epoch, metrics in trial.epochs.items():
            for metric in (METRIC, "train_seconds"):
                assert repr(kept.epochs[epoch][metric]) == repr(metrics[metric])
    assert "train_loss" not in early.trials[FIRST].epochs[1]
    # A driver that extends the study may train it further.
    early.apply({**events[1], "event": "epoch", "trial": FIRST, "epoch": 9, "metrics": {METRIC: 0.5}})
    assert early.trials[FIRST].epoch == 9
    assert early.trials[FIRST].last(METRIC) == 0.5


def test_a_trial_that_is_started_again_counts_as_it_ended_before() -> None:
    state, metric = StudyState(), "validation_top1"
    seen = []
    for event in interrupted_study():
        state.apply(event)
        if event["event"] in ("trial_started", "trial_ended"):
            summary = study_metrics(state, metric)
            seen.append((state.trials[FIRST].state, summary["trials_ended"], summary["trials_finished"]))
    assert seen == [
        ("running", 0, 0),
        ("failed", 1, 0),
        ("failed", 1, 0),
        ("failed", 2, 1 if state.trials[SECOND].outcome == "finished" else 0),
        ("running", 2, seen[3][2]),
        ("finished", 2, seen[3][2] + 1),
    ]
    assert summary[f"best_{metric}"] >= (state.trials[FIRST].last(metric) or 0.0)
    assert summary["total_train_seconds"] == pytest.approx(
        sum(trial.last("train_seconds") or 0.0 for trial in state.trials.values())
    )


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{"event": "study_resumed", "time": 1.0}], "does not say what the study is"),
        ([{"event": "trial_started", "time": 1.0, "trial": FIRST, "attempt": 1}], "does not say what the"),
        (
            [
                study_started({}),
                {"event": "trial_started", "time": 1.0, "trial": "another", "attempt": 1},
            ],
            r"is not understood by this version of nfnet_ray, .* \(KeyError\('another'\)\)",
        ),
    ],
)
def test_a_journal_that_does_not_fit_itself_is_refused_in_one_line(
    tmp_path: Path, events: list[Event], message: str
) -> None:
    write_journal(tmp_path, events)
    with pytest.raises(UserError, match=message) as refusal:
        StudyState.read(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_proposed_trial_is_as_good_as_a_planned_one() -> None:
    planned, proposed = state_of(agc_sweep()), state_of(proposed_later(agc_sweep()))
    differing = {name for name in facts(planned) if facts(planned)[name] != facts(proposed)[name]}
    assert differing == {"proposals"}
    assert list(proposed.proposals.values()) == list(range(1, 12))


def test_without_the_epochs_in_between_a_study_is_where_it_is(tmp_path: Path) -> None:
    """Also where trials run side by side, a driver was killed, and a name has a quotation mark in it."""
    draw = random.Random(1)
    for round_number in range(20):
        events: list[Any] = [agc_sweep()[0]]
        queues = [trial_events(plan["name"], 0, [0.1, 0.2, 0.3, 0.4]) for plan in events[0]["trials"][:4]]
        queues[0] = queues[0][: draw.randint(1, 5)]
        now = events[0]["time"]
        while queues := [queue for queue in queues if queue]:
            now += draw.random()
            events.append(draw.choice(queues).pop(0) | {"time": now})
            if draw.random() < 0.1:
                now += 1000
                events.append({"event": "study_resumed", "time": now})
        directory = tmp_path / f"{round_number}"
        text = write_journal(directory, events).read_text().replace("agc_sweep-01", 'a "quoted\\" one')
        (directory / "journal.jsonl").write_text(text.replace('a "quoted\\" one', 'a \\"quoted\\\\\\" one'))
        whole, brief = StudyState.read(directory)[0], StudyState.read(directory, last_epochs_only=True)[0]
        assert brief.wall_seconds == whole.wall_seconds
        assert brief.accelerator_seconds == whole.accelerator_seconds
        assert brief.last_event_time == whole.last_event_time
        for name, trial in whole.trials.items():
            other = brief.trials[name]
            assert (other.state, other.reason, other.epoch) == (trial.state, trial.reason, trial.epoch)
            assert other.last("validation_top1") == trial.last("validation_top1")


def test_long_journals_are_read_quickly_where_the_last_epochs_are_enough(tmp_path: Path) -> None:
    started = study_started({}, epochs=1000)
    path = write_journal(tmp_path, [started])
    with path.open("a") as journal:
        for event in trial_events("agc_sweep-00", 0, [0.5] * 1000):
            journal.write(json.dumps(event, separators=(",", ":")) + "\n")
    assert len(list(read_last_epochs(path))) == 4  # the study, the trial's start, its last epoch, its end
    path.write_text(path.read_text().replace('"epoch":500,"metrics":{', '"epoch":500,"metric'))
    with pytest.raises(UserError, match="damaged at byte"):
        list(read_last_epochs(path))


def test_a_sign_of_life_hides_no_event_from_the_display() -> None:
    """It is recorded by another thread, perhaps before the display has been told of the event before it."""
    state = state_of(agc_sweep()[:3])
    assert state.latest is state.trials[FIRST]
    state.apply(at_work())
    assert state.latest is state.trials[FIRST]


def test_a_study_that_is_not_there_is_answered_with_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="first_tr: no study is here; --resume and --extend take the name of one"
    ):
        StudyState.read(tmp_path / "first_tr")
    (tmp_path / "first_try").mkdir()
    (tmp_path / "first_try" / JOURNAL_FILE).touch()
    with pytest.raises(UserError, match=r"first_tr: no study is here; did you mean first_try\?$"):
        StudyState.read(tmp_path / "first_tr")
