"""Notes and tags are checked when they are typed, kept in the journal, and counted as nobody's work. Eight seconds,
most of them mlflow's import."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from nfnet_ray.errors import UserError
from nfnet_ray.study.annotations import Annotations, note_text, tag_pair
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.events import study_annotated
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.state import StudyState
from tests.tracking.example_study import agc_sweep, state_of, write_journal


def test_a_pair_is_taken_apart() -> None:
    assert tag_pair("team=vision = 2") == ("team", "vision = 2")
    assert note_text("  the first try\n") == "the first try"


@pytest.mark.parametrize(
    "text",
    ["team", "team=", "=vision", "a b=c", "../up=c", "state=x", "mlflow.user=x", "hardware.gpus=8", "a=NaN",
     "a=\x1b[2J", f"a={'x' * 251}", f"{'k' * 101}=x"],
)  # fmt: skip
def test_anything_but_a_tag_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as refusal:
        tag_pair(text)
    assert "\n" not in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "  \n", "NaN", "x" * 2001])
def test_anything_but_a_note_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        note_text(text)


def test_the_journal_keeps_them_and_nobody_worked_meanwhile(tmp_path: Path) -> None:
    events = agc_sweep((0.01,), (64,))
    events[0]["study"]["notes"] = ["first"]  # type: ignore[typeddict-item]
    events[0]["study"]["tags"] = {"team": "vision"}  # type: ignore[typeddict-item]
    killed = events[:-2]  # its driver did not say that it left
    before = state_of(killed)
    later = study_annotated(["second"], {"team": "audio", "paper": "yes"})
    write_journal(tmp_path, [*killed, later | {"time": before.last_event_time + 1e6}])  # type: ignore[list-item]
    state, _ = StudyState.read(tmp_path)
    assert (state.notes, state.tags) == (["first", "second"], {"team": "audio", "paper": "yes"})
    assert state.wall_seconds == before.wall_seconds
    assert state.last_event_time == before.last_event_time


def test_a_command_can_be_repeated() -> None:
    state = StudyState()
    asked = Annotations(["first"], {"team": "vision"})
    assert asked.beyond(state) == asked
    state.apply(study_annotated(["first"], {"team": "vision"}))
    assert not asked.beyond(state)
    assert Annotations(["second"], {"team": "audio"}).beyond(state) == Annotations(
        ["second"], {"team": "audio"}
    )


def test_mlflow_shows_them_as_the_description_and_the_tags_of_the_study(
    tmp_path: Path, tracking_uri: str
) -> None:
    events = agc_sweep((0.01,), (64,))
    events[0]["study"]["notes"] = ["first"]  # type: ignore[typeddict-item]
    events[0]["study"]["tags"] = {"team": "vision"}  # type: ignore[typeddict-item]

    def delivered() -> tuple[str, str]:
        sink = MLflowSink(tracking_uri, Spool(tmp_path / JOURNAL_FILE, tmp_path / SPOOL_FILE))
        sink.start()
        assert sink.close(60) == 0, sink.status
        client = MlflowClient(tracking_uri=tracking_uri)
        experiment = client.get_experiment_by_name("nfnet_ray")
        assert experiment is not None
        [run] = client.search_runs([experiment.experiment_id], "tags.kind = 'study'")
        assert run.info.status == "FINISHED"
        return run.data.tags["mlflow.note.content"], run.data.tags["team"]

    write_journal(tmp_path, events)
    content, team = delivered()
    assert content.endswith("imagenet_samples.beton`\n\nfirst")
    assert team == "vision"
    write_journal(tmp_path, [study_annotated(["second"], {"team": "audio"})])
    content, team = delivered()
    assert content.endswith("imagenet_samples.beton`\n\nfirst\n\nsecond")
    assert team == "audio"
