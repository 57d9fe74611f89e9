"""Everything in the journal reaches MLflow, once, in the same runs, whatever happens in between.

Against real SQLite databases; takes about 20 s on two cores, most of it mlflow's import and its migrations.
"""

from __future__ import annotations

import base64
import copy
import errno
import json
import math
import os
import resource
import shutil
import sqlite3
import zlib
from collections import Counter
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from sqlalchemy import Engine

from nfnet_ray.recipe import Recipe
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.delivery.writer import StudyWriter
from nfnet_ray.tracking.descriptions import TrialPlan
from nfnet_ray.tracking.destination.choice import tracking_uri_for
from nfnet_ray.tracking.destination.database import has_run, make_if_missing
from nfnet_ray.tracking.destination.uri import default_tracking_uri
from nfnet_ray.tracking.destination.uri_check import check_tracking_uri
from nfnet_ray.tracking.events import (
    Event,
    confirmation_planned,
    contenders_chosen,
    study_annotated,
    study_resumed,
)
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.runs.texts import run_name
from nfnet_ray.tracking.runs.view import TAG_PREFIX, comparison_view
from nfnet_ray.tracking.state import StudyState
from tests.deadlines import wait_until
from tests.tracking.example_study import (
    CLIP_FACTOR,
    START,
    agc_sweep,
    proposed_later,
    study_started,
    trial_events,
    write_journal,
)

SECONDS = 60.0  # far more than any delivery here takes
SMALL: list[Event] = agc_sweep(clip_factors=(0.01, 0.005, None), batch_sizes=(256,), epochs=4)
"""Three trials: one finishes, one is stopped, one diverges."""


def spool_of(directory: Path) -> Spool:
    return Spool(directory / JOURNAL_FILE, directory / SPOOL_FILE)


def deliver(directory: Path, tracking_uri: str, experiment: str | None = None) -> str:
    """Deliver what is pending; return the sink's last status."""
    sink = MLflowSink(tracking_uri, spool_of(directory), experiment)
    sink.start()
    assert sink.close(SECONDS) == 0, sink.status
    return sink.status


def runs_of(tracking_uri: str, experiment: str = "nfnet_ray") -> dict[str, Run]:
    """{"study" or the trial's name: its run}; fails where two runs stand for the same."""
    client = MlflowClient(tracking_uri=tracking_uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    names = Counter(run.data.tags.get("trial", "study") for run in runs)
    assert set(names.values()) == {1}, f"runs that are there more than once: {names}"
    return {run.data.tags.get("trial", "study"): run for run in runs}


def points(tracking_uri: str, run: Run, metric: str) -> list[tuple[int, float]]:
    """[(step, value)] of a metric, in order."""
    history = MlflowClient(tracking_uri=tracking_uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def test_a_study_is_one_run_and_each_trial_is_another(tmp_path: Path, tracking_uri: str) -> None:
    write_journal(tmp_path, SMALL)
    assert deliver(tmp_path, tracking_uri) == "MLflow: up to date"
    runs = runs_of(tracking_uri)
    assert set(runs) == {"study", "agc_sweep-00", "agc_sweep-01", "agc_sweep-02"}

    study, trial = runs["study"], runs["agc_sweep-00"]
    assert study.info.status == "FINISHED"
    assert study.data.tags["kind"] == "study"
    assert study.data.metrics["trials_finished"] == 1
    assert trial.data.tags["kind"] == "trial"
    assert trial.data.tags["study"] == study.data.tags["study"] == "agc_sweep"
    assert trial.data.tags["study_id"] == study.data.tags["study_id"]
    assert trial.data.params[CLIP_FACTOR] == "0.01"
    assert trial.data.params["schedule.epochs"] == "4"
    assert trial.data.params["data.fingerprint"] == "9f86d081884c"
    assert runs["agc_sweep-02"].data.params[CLIP_FACTOR] == "none"
    assert trial.info.run_name == "clip 0.01, batch 256"

    ends = {name: (run.info.status, run.data.tags["state"]) for name, run in runs.items()}
    assert ends["agc_sweep-00"] == ("FINISHED", "finished")
    assert ends["agc_sweep-01"] == ("FINISHED", "stopped")  # as planned
    assert ends["agc_sweep-02"] == ("FAILED", "diverged")
    assert runs["agc_sweep-02"].data.tags["reason"] == "train_loss was NaN in epoch 3"


def test_a_trial_that_was_proposed_later_has_the_run_of_a_planned_one(
    tmp_path: Path, tracking_uri: str
) -> None:
    write_journal(tmp_path, proposed_later(SMALL))
    assert deliver(tmp_path, tracking_uri) == "MLflow: up to date"
    runs = runs_of(tracking_uri)
    assert set(runs) == {"study", "agc_sweep-00", "agc_sweep-01", "agc_sweep-02"}
    assert runs["agc_sweep-02"].data.params[CLIP_FACTOR] == "none"
    assert runs["agc_sweep-02"].data.tags["state"] == "diverged"
    assert runs["study"].data.metrics["trials_ended"] == 3


def test_a_trial_that_pauses_is_one_run_that_says_why_it_continues(tmp_path: Path, tracking_uri: str) -> None:
    name = "agc_sweep-00"
    at = next(number for number, event in enumerate(SMALL) if event["event"] == "epoch") + 1
    time = SMALL[at]["time"]
    paused: list[Event] = [
        {"event": "trial_paused", "time": time, "trial": name, "epoch": 1},
        {"event": "trial_promoted", "time": time, "trial": name, "epoch": 1, "reason": "50.0%, 2nd of 3"},
    ]
    write_journal(tmp_path, [*SMALL[:at], *paused])
    deliver(tmp_path, tracking_uri)
    run = runs_of(tracking_uri)[name]
    assert run.info.status == "RUNNING"
    assert run.data.tags["state"] == "paused"
    assert run.data.tags["reason"] == "promoted at epoch 1: 50.0%, 2nd of 3"
    again: Event = {"event": "trial_started", "time": time, "trial": name, "attempt": 1}
    write_journal(tmp_path, [*SMALL[:at], *paused, again, *SMALL[at:]])
    deliver(tmp_path, tracking_uri)
    run = runs_of(tracking_uri)[name]
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "finished")


def test_accuracy_and_training_time_stand_at_the_same_step_the_epoch(
    tmp_path: Path, tracking_uri: str
) -> None:
    write_journal(tmp_path, SMALL)
    deliver(tmp_path, tracking_uri)
    for name, run in runs_of(tracking_uri).items():
        expected = [event for event in SMALL if event["event"] == "epoch" and event["trial"] == name]
        for metric in ("validation_top1", "train_seconds"):
            logged = points(tracking_uri, run, metric)
            assert [step for step, _ in logged] == [event["epoch"] for event in expected]
            for (_, value), event in zip(logged, expected, strict=True):
                written = event["metrics"][metric]
                assert written is not None
                assert value == pytest.approx(written, rel=1e-12, nan_ok=True)


def test_system_metrics_are_there_for_each_node_of_a_trial(tmp_path: Path, tracking_uri: str) -> None:
    use = {"cpu_utilization_percentage": 40.0}
    told = iter([{"a": use}, {"a": use}, {}, {"a": use, "b c": {"cpu_utilization_percentage": 60.0}}])
    events: list[Event] = [
        {**event, "system": nodes} if event["event"] == "epoch" and (nodes := next(told, {})) else event
        for event in SMALL
    ]
    write_journal(tmp_path, events)
    deliver(tmp_path, tracking_uri)
    first, second = (runs_of(tracking_uri)[f"agc_sweep-0{number}"] for number in (0, 1))
    name = "cpu_utilization_percentage"
    assert points(tracking_uri, first, f"system/{name}") == [(1, 40.0), (2, 40.0)]
    assert points(tracking_uri, first, f"system/a/{name}") == [(4, 40.0)]
    assert points(tracking_uri, first, f"system/b_c/{name}") == [(4, 60.0)]
    assert first.data.tags["nodes"] == "a, b c"
    assert "nodes" not in second.data.tags
    assert StudyState.read(tmp_path, last_epochs_only=True)[0].trials["agc_sweep-00"].epoch == 4


def test_an_infinite_loss_does_not_become_a_huge_one(tmp_path: Path, tracking_uri: str) -> None:
    events = [study_started({}), *trial_events("agc_sweep-00", 1.0, [0.5])]
    assert events[2]["event"] == "epoch"
    events[2]["metrics"] |= {"train_loss": math.inf, "validation_loss": None}
    write_journal(tmp_path, events)
    deliver(tmp_path, tracking_uri)
    run = runs_of(tracking_uri)["agc_sweep-00"]
    [(_, loss)] = points(tracking_uri, run, "train_loss")
    assert math.isnan(loss)
    assert points(tracking_uri, run, "validation_loss") == []


def test_a_resumed_study_continues_in_the_same_runs(tmp_path: Path, tracking_uri: str) -> None:
    middle = 4  # in the middle of the first trial
    write_journal(tmp_path, SMALL[:middle])
    deliver(tmp_path, tracking_uri)
    before = runs_of(tracking_uri)
    assert before["agc_sweep-00"].info.status == "RUNNING"

    interrupted: Event = {
        "event": "study_ended",
        "time": SMALL[middle - 1]["time"],
        "state": "interrupted",
        "wall_seconds": 1.0,
    }
    write_journal(tmp_path, [interrupted])
    deliver(tmp_path, tracking_uri)
    assert runs_of(tracking_uri)["study"].info.status == "KILLED"

    write_journal(tmp_path, [{"event": "study_resumed", "time": SMALL[middle]["time"]}, *SMALL[middle:]])
    deliver(tmp_path, tracking_uri)
    after = runs_of(tracking_uri)
    assert {name: after[name].info.run_id for name in before} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert after["study"].info.status == "FINISHED"
    assert [step for step, _ in points(tracking_uri, after["agc_sweep-00"], "train_loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("state", ["lost", "torn"])
def test_a_driver_that_died_before_it_noted_anything_makes_no_second_runs(
    tmp_path: Path, tracking_uri: str, state: str
) -> None:
    write_journal(tmp_path, SMALL)
    deliver(tmp_path, tracking_uri)
    before = runs_of(tracking_uri)
    counts = {name: len(points(tracking_uri, run, "train_seconds")) for name, run in before.items()}
    if state == "lost":
        (tmp_path / SPOOL_FILE).unlink()
    else:
        text = (tmp_path / SPOOL_FILE).read_text()
        (tmp_path / SPOOL_FILE).write_text(text[: len(text) // 2])
    assert spool_of(tmp_path).pending_count() == len(SMALL)

    deliver(tmp_path, tracking_uri)
    after = runs_of(tracking_uri)
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert {name: len(points(tracking_uri, run, "train_seconds")) for name, run in after.items()} == counts
    assert spool_of(tmp_path).tracked.trial_run_ids["agc_sweep-01"] == before["agc_sweep-01"].info.run_id


def test_another_study_of_the_same_name_gets_runs_of_its_own(tmp_path: Path, tracking_uri: str) -> None:
    later = study_started({CLIP_FACTOR: [0.01]})
    later["time"] += 1
    trial = trial_events("agc_sweep-00", 1.0, [0.5])
    write_journal(tmp_path / "a", [study_started({CLIP_FACTOR: [0.01]}), *trial])
    write_journal(tmp_path / "b", [later, *trial])
    deliver(tmp_path / "a", tracking_uri)
    deliver(tmp_path / "b", tracking_uri)
    a, b = spool_of(tmp_path / "a").tracked, spool_of(tmp_path / "b").tracked
    assert a.experiment_id == b.experiment_id
    assert len({a.study_run_id, b.study_run_id, *a.trial_run_ids.values(), *b.trial_run_ids.values()}) == 4
    assert a.view_key != b.view_key


def test_a_database_that_is_being_made_is_waited_for(tmp_path: Path) -> None:
    write_journal(tmp_path, SMALL)
    tracking_uri = f"sqlite:///{tmp_path}/new.db"
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    wait_until((tmp_path / "new.db").exists, "the database")
    sink.close(0)
    with closing(sqlite3.connect(tmp_path / "new.db")) as database:
        [(version,)] = database.execute("select version_num from alembic_version").fetchall()
    assert version
    assert deliver(tmp_path, tracking_uri) == "MLflow: up to date"


def test_a_database_for_which_the_disk_has_no_room_is_made_when_there_is_some(tmp_path: Path) -> None:
    """One with half of its tables would never open again: each attempt failed with "table … already exists"."""
    write_journal(tmp_path, SMALL)
    tracking_uri = default_tracking_uri(tmp_path)
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))  # as on a full disk; a whole one has 1.0 MB
    try:
        sink.start()
        wait_until(lambda: "waiting," in sink.status, "a failed attempt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in tmp_path.glob("mlflow.db*")} == {"mlflow.db.lock"}
    assert sink.close(SECONDS) == 0, sink.status
    assert len(runs_of(tracking_uri)) == 4


def test_what_a_kill_left_of_a_database_is_removed(tmp_path: Path) -> None:
    write_journal(tmp_path, SMALL)
    for name in ("mlflow.db.partial", "mlflow.db.partial-journal"):
        (tmp_path / name).write_bytes(b"half")
    deliver(tmp_path, default_tracking_uri(tmp_path))
    assert not list(tmp_path.glob("mlflow.db.partial*"))


def test_a_new_database_gets_the_whole_journal(tmp_path: Path, tracking_uri: str) -> None:
    write_journal(tmp_path, SMALL[:-1])
    deliver(tmp_path, tracking_uri)
    (tmp_path / "mlflow.db").unlink()
    write_journal(tmp_path, SMALL[-1:])
    another = tracking_uri.replace("mlflow.db", "folder/another.db")  # which the sink has to create
    deliver(tmp_path, another)
    runs = runs_of(another)
    assert len(runs) == 4
    assert len(points(another, runs["agc_sweep-00"], "train_seconds")) == 4
    assert spool_of(tmp_path).tracked.tracking_uri == another


@pytest.mark.parametrize("left", [slice(0, -2), slice(3, None)], ids=["an older backup", "lines deleted"])
@pytest.mark.parametrize("is_noted", [True, False], ids=["", "of an earlier version"])
def test_a_journal_that_a_person_has_mended_is_delivered_whole(
    tmp_path: Path, tracking_uri: str, left: slice, is_noted: bool
) -> None:
    """The cursor stayed where it was: events before it were never delivered, and one that it halved was 'damaged'."""
    first, *epochs, last = [study_started({}), *trial_events("agc_sweep-00", 1.0, [0.1, 0.2, 0.3, 0.4])]
    write_journal(tmp_path, [first, *epochs])
    deliver(tmp_path, tracking_uri)
    if not is_noted:
        noted = json.loads((tmp_path / SPOOL_FILE).read_text())
        del noted["journal_tail"]
        (tmp_path / SPOOL_FILE).write_text(json.dumps(noted))
    lines = (tmp_path / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL_FILE).write_bytes(b"".join([lines[0], *lines[1:][left]]))
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    write_journal(tmp_path, [study_annotated(["mended"], {}), last])
    sink.wake()
    assert sink.close(SECONDS) == 0
    runs = runs_of(tracking_uri)
    assert runs["agc_sweep-00"].info.status == "FINISHED"
    assert runs["study"].data.tags["mlflow.note.content"].endswith("mended")


def test_what_mlflow_refuses_does_not_hold_up_the_rest_and_is_named(
    tmp_path: Path, tracking_uri: str
) -> None:
    events = [study_started({}), *trial_events("agc_sweep-00", 1.0, [0.1, 0.2, 0.3])]
    assert events[3]["event"] == "epoch"
    events[3]["metrics"]["a name\nthat MLflow refuses"] = 1.0
    write_journal(tmp_path, events)
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    assert sink.close(SECONDS) == 1
    assert sink.status == "MLflow: up to date, 1 event refused"
    [(refusal, _), (missing, command)] = sink.last_words("RESUME")
    assert "MLflow refused 1 event" in refusal
    assert "1 event could not be delivered" in missing
    assert command == "RESUME"
    run = runs_of(tracking_uri)["agc_sweep-00"]
    assert [step for step, _ in points(tracking_uri, run, "validation_top1")] == [1, 3]
    assert run.info.status == "FINISHED"


def test_without_a_server_nothing_is_raised_and_nothing_is_lost(tmp_path: Path, tracking_uri: str) -> None:
    write_journal(tmp_path, SMALL)
    sink = MLflowSink("http://127.0.0.1:9", spool_of(tmp_path))  # the discard port: nobody listens
    sink.start()
    sink.attach(tmp_path / JOURNAL_FILE)
    assert sink.close(SECONDS, unanswered_seconds=3.0) == len(SMALL) + 1  # and the file
    assert sink.status.startswith(f"MLflow: {len(SMALL)} events waiting")
    deliver(tmp_path, tracking_uri)
    assert len(runs_of(tracking_uri)) == 4


def test_the_report_is_attached_to_the_run_of_the_study(tmp_path: Path, tracking_uri: str) -> None:
    write_journal(tmp_path, SMALL)
    (tmp_path / "report.html").write_text("a report")
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    sink.attach(tmp_path / "report.html")
    assert sink.close(SECONDS) == 0
    client, run_id = MlflowClient(tracking_uri=tracking_uri), spool_of(tmp_path).tracked.study_run_id
    assert [file.path for file in client.list_artifacts(run_id)] == ["report.html"]


def test_the_experiment_is_the_environments_if_it_names_one(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the team")
    write_journal(tmp_path, SMALL[:2])
    deliver(tmp_path, tracking_uri)
    assert set(runs_of(tracking_uri, "of the team")) == {"study", "agc_sweep-00"}
    tracked = spool_of(tmp_path).tracked
    experiment = MlflowClient(tracking_uri=tracking_uri).get_experiment(tracked.experiment_id)
    assert f"{TAG_PREFIX}{tracked.view_key}" in experiment.tags


def test_the_runs_say_which_source_they_come_from(tmp_path: Path, tracking_uri: str) -> None:
    started = study_started({})
    started["study"]["versions"]["dirty"] = True
    started["study"]["source"] = {
        "file": "studies/agc_sweep.py",
        "user": "ada",
        "branch": "main",
        "repository": "https://github.com/team/nfnet_ray.git",
    }
    write_journal(tmp_path, [started, *trial_events("agc_sweep-00", 1.0, [0.5])])
    deliver(tmp_path, tracking_uri)
    for run in runs_of(tracking_uri, "nfnet_ray.agc_sweep").values():
        said = {name: value for name, value in run.data.tags.items() if "source" in name or "user" in name}
        assert said == {
            "mlflow.source.name": "studies/agc_sweep.py",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": "4f2d1c0",
            "mlflow.source.git.branch": "main",
            "mlflow.source.git.dirty": "true",
            "mlflow.source.git.repoURL": "https://github.com/team/nfnet_ray.git",
            "mlflow.user": "ada",
        }


def test_each_study_file_has_an_experiment_that_says_what_it_asks(tmp_path: Path, tracking_uri: str) -> None:
    for file in ("studies/agc_sweep.py", "/home/ada/my study.py"):
        started = study_started({})
        started["study"]["source"] = {"file": file, "user": "", "branch": "", "repository": ""}
        write_journal(tmp_path / file.rpartition("/")[2], [started])
        deliver(tmp_path / file.rpartition("/")[2], tracking_uri)
    client = MlflowClient(tracking_uri=tracking_uri)
    for name in ("nfnet_ray.agc_sweep", "nfnet_ray.my study"):
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
        assert "How strongly should AGC clip" in experiment.tags["mlflow.note.content"]
        assert len(client.search_runs([experiment.experiment_id])) == 1


def test_a_study_that_an_earlier_version_began_stays_in_its_experiment(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_journal(tmp_path, SMALL[:4])
    deliver(tmp_path, tracking_uri)
    (tmp_path / SPOOL_FILE).unlink()
    write_journal(tmp_path, SMALL[4:])
    deliver(tmp_path, tracking_uri, "nfnet_ray.agc_sweep")
    assert len(runs_of(tracking_uri)) == 4
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    write_journal(tmp_path, [{"event": "study_annotated", "time": 2.0, "notes": ["seen"], "tags": {}}])
    deliver(tmp_path, tracking_uri)
    assert runs_of(tracking_uri)["study"].data.tags["mlflow.note.content"].endswith("seen")
    assert MlflowClient(tracking_uri=tracking_uri).get_experiment_by_name("another") is None


def test_a_trial_says_what_it_is_and_how_it_went(tmp_path: Path, tracking_uri: str) -> None:
    write_journal(tmp_path, SMALL)
    deliver(tmp_path, tracking_uri)
    runs = runs_of(tracking_uri)
    texts = {name: run.data.tags["mlflow.note.content"] for name, run in runs.items()}
    link = f"#/experiments/{runs['study'].info.experiment_id}/runs/{runs['study'].info.run_id}"
    assert (
        f"**clip_factor 0.01, batch_size 256**: `agc_sweep-00` of the study [agc_sweep]({link})"
        in texts["agc_sweep-00"]
    )
    assert "Finished after 4 epochs. Top-1 " in texts["agc_sweep-00"]
    assert "Given up, as planned, after 3 epochs: ASHA" in texts["agc_sweep-01"]
    assert "Diverged after 3 epochs: train_loss was NaN in epoch 3." in texts["agc_sweep-02"]


def test_a_trial_that_is_not_comparable_is_marked(tmp_path: Path, tracking_uri: str) -> None:
    """The second trial of two is resumed on other hardware, by another version of torch."""
    events = copy.deepcopy(agc_sweep(clip_factors=(0.01, 0.02), batch_sizes=(64,), epochs=2))
    [started, *rest] = events
    assert started["event"] == "study_started"
    second = next(n for n, event in enumerate(rest) if event.get("trial") == "agc_sweep-01") + 2
    resumed: Event = {
        **study_resumed(
            {},
            hardware={**started["study"]["hardware"], "description": "1 × H200"},
            versions={**started["study"]["versions"], "torch": "2.16.0"},
        ),
        "time": rest[second]["time"],
    }
    write_journal(tmp_path, [started, *rest[:second], resumed, *rest[second:]])
    deliver(tmp_path, tracking_uri)
    first, other = (runs_of(tracking_uri)[f"agc_sweep-0{number}"] for number in (0, 1))
    assert (first.info.run_name, first.data.tags["differs_in"]) == ("clip 0.01, batch 64", "")
    assert (other.info.run_name, other.data.tags["differs_in"]) == (
        "≠ clip 0.02, batch 64",
        "hardware, torch",
    )
    here = "2 × CPU (x86-64), no GPU"
    assert other.data.tags["mlflow.note.content"].endswith(
        f"≠ Not comparable without a reservation: hardware: {here}, then 1 × H200 ({here} in agc_sweep-00); "
        "torch: 2.15.0, then 2.16.0 (2.15.0 in agc_sweep-00)."
    )
    view = comparison_view(started["study"], "id", 0.0)
    state = json.loads(zlib.decompress(base64.b64decode(json.loads(view)["state"].partition(";")[2])))
    assert "tags.`differs_in`" in state["selectedColumns"]


def test_names_of_runs_say_what_their_numbers_are() -> None:
    rates = {"schedule.base_learning_rate": 0.1, "model.dropout": None, "model.name": "nfnet_f0", "seed": 1}
    assert run_name(rates, list(rates)) == "rate 0.1, dropout none, nfnet_f0, seed 1"
    twins = {"a.batch": 1, "batch_size": 2}
    assert run_name(twins, list(twins)) == "batch 1, batch_size 2"
    assert run_name({}, []) == ""


def test_the_runs_name_the_data_by_its_fingerprint(tmp_path: Path, tracking_uri: str) -> None:
    write_journal(tmp_path, SMALL)
    for _ in range(2):  # the second time from the start: nothing is doubled
        deliver(tmp_path, tracking_uri)
        (tmp_path / SPOOL_FILE).unlink()
    for run in runs_of(tracking_uri).values():
        inputs = run.inputs.dataset_inputs
        assert sorted(
            (each.dataset.name, each.dataset.digest, [tag.value for tag in each.tags]) for each in inputs
        ) == [
            ("imagenet_samples_training", "9f86d081884c", ["training"]),
            ("imagenet_samples_validation", "9f86d081884c", ["validation"]),
        ]
        assert json.loads(inputs[0].dataset.profile) == {"images": 1440, "classes": 10}


def test_the_seeds_of_a_setting_have_a_run_with_mean_lowest_and_highest(
    tmp_path: Path, tracking_uri: str
) -> None:
    events = agc_sweep(clip_factors=(0.01, None), batch_sizes=(256,), seeds=(0, 1), epochs=4)
    for number, event in enumerate(events):
        if event["event"] == "trial_ended" and event["trial"] == "agc_sweep-01":
            first_setting = number + 1
    write_journal(tmp_path, events[: first_setting - 1])
    deliver(tmp_path, tracking_uri)
    assert settings_of(tracking_uri) == {}  # one of its trials has yet to end
    write_journal(tmp_path, events[first_setting - 1 :])
    for _ in range(2):
        deliver(tmp_path, tracking_uri)
        (tmp_path / SPOOL_FILE).unlink()  # the second time from the start: nothing is doubled

    settings = settings_of(tracking_uri)
    assert set(settings) == {"clip 0.01, batch 256 (2 seeds)", "clip none, batch 256 (2 seeds)"}
    run = settings["clip 0.01, batch 256 (2 seeds)"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["trials"] == "agc_sweep-00, agc_sweep-01"
    assert run.data.tags["seeds"] == "0, 1"
    assert run.data.params[CLIP_FACTOR] == "0.01"
    assert "seed" not in run.data.params
    assert settings["clip none, batch 256 (2 seeds)"].info.status == "FAILED"  # both have diverged
    for epoch in range(1, 5):
        both = [
            event["metrics"]
            for event in events
            if event["event"] == "epoch"
            and event["trial"] in ("agc_sweep-00", "agc_sweep-01")
            and event["epoch"] == epoch
        ]
        tops = [float(metrics["validation_top1"] or 0) for metrics in both]
        seconds = [float(metrics["train_seconds"] or 0) for metrics in both]
        for metric, value in (
            ("validation_top1", sum(tops) / 2),
            ("validation_top1_low", min(tops)),
            ("validation_top1_high", max(tops)),
            ("train_seconds", sum(seconds) / 2),
        ):
            [found] = [value for step, value in points(tracking_uri, run, metric) if step == epoch]
            assert found == pytest.approx(value)


def test_the_run_of_a_study_has_the_seeds_that_were_added_later(tmp_path: Path, tracking_uri: str) -> None:
    """Those of contenders and of reruns. MLflow lets no param change, so they are in a tag."""
    [started, *events, ended] = agc_sweep(clip_factors=(0.01,), batch_sizes=(256,), epochs=2)
    assert started["event"] == "study_started"
    [plan] = started["trials"]
    plans: list[TrialPlan] = [
        {**plan, "name": f"{plan['name']},seed={seed}", "recipe": {**plan["recipe"], "seed": seed}}
        for seed in (1, 1000)
    ]
    events += [contenders_chosen(plans[:1], {}), *trial_events(plans[0]["name"], START + 900, [0.2, 0.5])]
    events += [confirmation_planned(plans[1:]), *trial_events(plans[1]["name"], START + 1900, [0.2, 0.5])]
    write_journal(tmp_path, [started, *events, ended])
    for _ in range(2):
        deliver(tmp_path, tracking_uri)
        study = runs_of(tracking_uri)["study"]
        assert study.data.tags["seeds"] == "0, 1, 1000"
        assert study.data.params["seeds"] == "[0]"
        (tmp_path / SPOOL_FILE).unlink()  # the second time from the start


def settings_of(tracking_uri: str) -> dict[str, Run]:
    """{name: run of a setting}."""
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name("nfnet_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'setting'")
    found = {str(run.info.run_name): run for run in runs}
    assert len(found) == len(runs)
    return found


def test_the_accuracy_has_a_second_name_for_each_condition(tmp_path: Path, tracking_uri: str) -> None:
    write_journal(tmp_path, agc_sweep(clip_factors=(0.01,), epochs=2))
    deliver(tmp_path, tracking_uri)
    runs = runs_of(tracking_uri)
    for trial, batch_size in (("agc_sweep-00", 64), ("agc_sweep-01", 256)):
        names = [name for name in runs[trial].data.metrics if name.startswith("validation_top1")]
        assert sorted(names) == ["validation_top1", f"validation_top1 at batch_size {batch_size}"]
        [second] = [name for name in names if " at " in name]
        assert points(tracking_uri, runs[trial], second) == points(
            tracking_uri, runs[trial], "validation_top1"
        )
        assert "evaluated at" in runs[trial].data.tags["condition"]


def test_each_trial_has_its_recipe_and_the_study_its_files(tmp_path: Path, tracking_uri: str) -> None:
    events = copy.deepcopy(SMALL)
    assert events[0]["event"] == "study_started"
    events[0]["study"]["source"] = {
        "file": "studies/agc_sweep.py",
        "user": "",
        "branch": "",
        "repository": "",
    }
    write_journal(tmp_path, events)
    names = ["agc_sweep.py", "report.html", "requirements.txt", "trials.csv"]
    for name in [*names, "something else"]:
        (tmp_path / name).write_text(name)
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    sink.attach_study()
    assert sink.close(SECONDS) == 0
    client = MlflowClient(tracking_uri=tracking_uri)
    for trial, run in runs_of(tracking_uri, "nfnet_ray.agc_sweep").items():
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
        if trial == "study":
            assert sorted(files) == sorted([*names, JOURNAL_FILE])
        else:
            assert files == ["recipe.json"]
            [place] = (tmp_path / "mlartifacts").rglob(f"{run.info.run_id}/artifacts/recipe.json")
            recipe = Recipe.from_values(json.loads(place.read_text()))
            assert str(recipe.optimizer.agc.clip_factor).lower() == run.data.params[CLIP_FACTOR]
            assert recipe.batch_size == 256


def undelivered(directory: Path, tracking_uri: str) -> list[tuple[str, str]]:
    """Deliver what can be; what is said of the rest."""
    sink = MLflowSink(tracking_uri, spool_of(directory))
    sink.start()
    assert sink.close(SECONDS) > 0
    return sink.last_words("RESUME")


def everything(tracking_uri: str) -> dict[str, tuple[str, list[tuple[int, float]]]]:
    """{run: (status, points)}, with each NaN as a number that is equal to itself."""
    return {
        name: (
            run.info.status,
            [
                (step, -1.0 if math.isnan(value) else value)
                for step, value in points(tracking_uri, run, "validation_top1")
            ],
        )
        for name, run in runs_of(tracking_uri).items()
    }


@pytest.mark.parametrize("what", ["a trial", "the study", "the experiment"])
def test_what_was_deleted_meanwhile_waits_until_it_is_restored(
    tmp_path: Path, tracking_uri: str, what: str
) -> None:
    whole = f"sqlite:///{tmp_path / 'whole.db'}"
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "whole.db")
    write_journal(tmp_path / "whole", SMALL)
    deliver(tmp_path / "whole", whole)

    middle = 4  # in the middle of the first trial
    write_journal(tmp_path, SMALL[:middle])
    deliver(tmp_path, tracking_uri)
    client, tracked = MlflowClient(tracking_uri=tracking_uri), spool_of(tmp_path).tracked
    run_id = tracked.trial_run_ids["agc_sweep-00"] if what == "a trial" else tracked.study_run_id
    if what == "the experiment":
        client.delete_experiment(tracked.experiment_id)
    else:
        client.delete_run(run_id)

    write_journal(tmp_path, SMALL[middle:])
    for _ in range(2):  # the second time as `--resume` does, before anything is restored
        [(deleted, restore), (missing, resume)] = undelivered(tmp_path, tracking_uri)
        assert "deleted" in deleted
        kind = "experiments" if what == "the experiment" else "runs"
        assert f"MLFLOW_TRACKING_URI={tracking_uri} " in restore
        assert f"-m mlflow {kind} restore" in restore
        assert restore.endswith(tracked.experiment_id if what == "the experiment" else run_id)
        assert "could not be delivered" in missing
        assert resume == "RESUME"
    if what != "the experiment":  # nobody else has waited
        others = {name: everything(whole)[name] for name in ("agc_sweep-01", "agc_sweep-02")}
        assert {name: everything(tracking_uri)[name] for name in others} == others

    if what == "the experiment":
        client.restore_experiment(tracked.experiment_id)
    else:
        client.restore_run(run_id)
    deliver(tmp_path, tracking_uri)
    assert everything(tracking_uri) == everything(whole)


def test_a_run_that_is_gone_for_good_is_written_again(tmp_path: Path, tracking_uri: str) -> None:
    write_journal(tmp_path, SMALL[:-1])
    deliver(tmp_path, tracking_uri)
    before = everything(tracking_uri)
    gone = spool_of(tmp_path).tracked.trial_run_ids["agc_sweep-00"]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:  # what `mlflow gc` does
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (gone,))
        database.commit()
    write_journal(tmp_path, SMALL[-1:])
    deliver(tmp_path, tracking_uri)
    after = everything(tracking_uri)
    assert {name: after[name] for name in after if name != "study"} == {
        name: before[name] for name in before if name != "study"
    }


def test_the_group_may_write_a_database_where_the_umask_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def initialize(engine: Engine) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE runs (run_uuid)")

    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", initialize)
    before = os.umask(0o002)
    try:
        make_if_missing(tmp_path / "mlflow.db")
    finally:
        os.umask(before)
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("events", [4, len(SMALL) - 1], ids=["epochs", "only the end"])
def test_what_a_database_lacks_that_was_restored_from_a_backup_is_written_again(
    tmp_path: Path, tracking_uri: str, events: int
) -> None:
    write_journal(tmp_path, SMALL[:events])
    deliver(tmp_path, tracking_uri)
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "backup.db")
    write_journal(tmp_path, SMALL[events:])
    deliver(tmp_path, tracking_uri)
    whole = everything(tracking_uri)
    shutil.copy(tmp_path / "backup.db", tmp_path / "mlflow.db")
    assert everything(tracking_uri) != whole
    (tmp_path / "report.html").write_text("a report")
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.attach_study()  # as a study that is resumed does, and a replay
    sink.start()
    assert sink.close(SECONDS) == 0, sink.status
    assert everything(tracking_uri) == whole
    spool = spool_of(tmp_path)
    from_now_on = StudyWriter(MlflowClient(tracking_uri=tracking_uri), tracking_uri, spool.journal_path)
    assert not from_now_on.has_lost(spool.acknowledged_bytes, spool.undelivered.held)


def test_a_report_that_cannot_be_stored_is_said_and_holds_nothing_up(
    tmp_path: Path, tracking_uri: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    client = MlflowClient(tracking_uri=tracking_uri)
    client.create_experiment("nfnet_ray", artifact_location=(tmp_path / "file" / "artifacts").as_uri())
    write_journal(tmp_path, SMALL)
    (tmp_path / "report.html").write_text("a report")
    sink = MLflowSink(tracking_uri, spool_of(tmp_path))
    sink.start()
    sink.attach(tmp_path / "report.html")
    sink.attach(tmp_path / "report.html")
    assert sink.close(SECONDS) == 4  # and the Recipes of three trials
    [(words, command)] = sink.last_words("RESUME")
    assert "report.html" in words or "1 more" in words
    assert "could not be stored in MLflow: Not a directory" in words
    assert command == ""
    assert runs_of(tracking_uri)["study"].info.status == "FINISHED"


def test_a_file_that_was_never_tried_counts_as_not_stored(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_journal(tmp_path, SMALL)
    deliver(tmp_path, tracking_uri)
    spool = spool_of(tmp_path)
    monkeypatch.setattr(
        spool, "acknowledge", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    )
    sink = MLflowSink(tracking_uri, spool)
    sink.attach(tmp_path / JOURNAL_FILE)
    sink.start()
    assert sink.close(SECONDS, unanswered_seconds=1.0) == 1
    [(words, _)] = sink.last_words("RESUME")
    assert words.endswith("could not be stored in MLflow: No space left on device")


@pytest.mark.usefixtures("tracking_uri")
@pytest.mark.parametrize("name", ["d?x=1", "a%20b #y", "ein [alter] Übungslauf"])
def test_the_name_of_a_folder_is_only_a_name(tmp_path: Path, name: str) -> None:
    storage = tmp_path / name
    storage.mkdir()
    (tmp_path / "mlflow.db").rename(storage / "mlflow.db")
    uri = default_tracking_uri(storage)
    check_tracking_uri(uri)
    write_journal(storage / "study", SMALL[:2])
    sink = MLflowSink(uri, spool_of(storage / "study"))
    sink.start()
    sink.attach(storage / "study" / JOURNAL_FILE)
    assert sink.close(SECONDS) == 0, sink.status
    tracked = spool_of(storage / "study").tracked
    assert has_run(storage / "mlflow.db", tracked.study_run_id)
    assert [path.relative_to(storage).parts[:2] for path in storage.rglob(f"*/artifacts/{JOURNAL_FILE}")] == [
        ("mlartifacts", "nfnet_ray")
    ]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("tracking_uri")
@pytest.mark.parametrize("how", ["moved", "copied"])
@pytest.mark.parametrize("noted", ["now", "by an earlier version"])
def test_a_storage_folder_that_was_moved_or_copied_has_its_own_database(
    tmp_path: Path, how: str, noted: str
) -> None:
    old, new = tmp_path / "runs", tmp_path / "elsewhere" / "runs"
    old.mkdir()
    (tmp_path / "mlflow.db").rename(old / "mlflow.db")
    write_journal(old / "study", SMALL[:4])
    deliver(old / "study", default_tracking_uri(old))
    state = json.loads((old / "study" / SPOOL_FILE).read_text())
    assert str(tmp_path) not in json.dumps(state)
    if noted == "by an earlier version":
        del state["database"], state["held"], state["refused"]
        state["tracking_uri"] = default_tracking_uri(old)
        (old / "study" / SPOOL_FILE).write_text(json.dumps(state))

    new.parent.mkdir()
    if how == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    before = everything(default_tracking_uri(old)) if how == "copied" else {}

    uri = tracking_uri_for(None, new, tmp_path, "study")
    assert uri == default_tracking_uri(new) == spool_of(new / "study").tracked.tracking_uri
    write_journal(new / "study", SMALL[4:])
    (new / "study" / "report.html").write_text("a report")
    sink = MLflowSink(uri, spool_of(new / "study"))
    sink.start()
    sink.attach(new / "study" / "report.html")
    assert sink.close(SECONDS) == 0, sink.status
    assert {name: status for name, (status, _) in everything(uri).items()} == {
        "study": "FINISHED",
        "agc_sweep-00": "FINISHED",
        "agc_sweep-01": "FINISHED",
        "agc_sweep-02": "FAILED",
    }
    assert len(list(new.rglob("artifacts/report.html"))) == 1
    if how == "moved":
        assert not old.exists()
    else:
        assert list(old.rglob("artifacts/report.html")) == []
        assert everything(default_tracking_uri(old)) == before
