"""``python -m nfnet_ray.tracking replay``: a study is delivered that MLflow does not have, or only in part."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from nfnet_ray.tracking.__main__ import main
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool, TrackedStudy
from nfnet_ray.tracking.running_lock import alone_with
from tests.tracking.example_study import agc_sweep, write_journal

EVENTS = agc_sweep(clip_factors=(0.01, None), batch_sizes=(256,), epochs=4)


def accuracies(tracking_uri: str) -> dict[str, list[tuple[int, int]]]:
    """{trial: [(step, how many points are there)]} of all trials."""
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name("nfnet_ray")
    assert experiment is not None
    found = {}
    for run in client.search_runs([experiment.experiment_id], "tags.kind = 'trial'"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train_seconds")]
        assert run.data.tags["trial"] not in found
        found[run.data.tags["trial"]] = [(step, steps.count(step)) for step in sorted(set(steps))]
    return found


EXPECTED = {
    "agc_sweep-00": [(epoch, 1) for epoch in range(1, 5)],
    "agc_sweep-01": [(epoch, 1) for epoch in range(1, 4)],
}


def test_a_study_of_an_offline_cluster_comes_home(
    tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = write_journal(tmp_path / "study", EVENTS)
    # There, MLflow could never be reached; here it has another address.
    spool = Spool(journal, tmp_path / "study" / SPOOL_FILE)
    spool.acknowledge(0, TrackedStudy("http://127.0.0.1:9"))
    command = ["replay", str(tmp_path / "study"), "--tracking-uri", tracking_uri]
    assert main(command) == 0
    assert "has everything of study" in capsys.readouterr().out
    assert accuracies(tracking_uri) == EXPECTED
    assert main(command) == 0
    assert main([*command, "--from-start"]) == 0
    assert accuracies(tracking_uri) == EXPECTED
    assert Spool(journal, tmp_path / "study" / SPOOL_FILE).tracked.tracking_uri == tracking_uri


def test_a_second_place_that_had_the_beginning_gets_the_rest(tmp_path: Path, tracking_uri: str) -> None:
    there = f"sqlite:///{tmp_path}/there.db"
    (tmp_path / "there.db").write_bytes((tmp_path / "mlflow.db").read_bytes())
    study = tmp_path / "study"
    write_journal(study, EVENTS[:4])
    assert main(["replay", str(study), "--tracking-uri", tracking_uri]) == 0
    write_journal(study, EVENTS[4:6])
    assert main(["replay", str(study), "--tracking-uri", there]) == 0
    write_journal(study, EVENTS[6:])
    assert main(["replay", str(study), "--tracking-uri", tracking_uri]) == 0
    assert accuracies(tracking_uri) == EXPECTED


def test_what_cannot_be_replayed_is_said_in_one_line(
    tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert "no study" in capsys.readouterr().err
    write_journal(tmp_path / "study", EVENTS)
    with alone_with(tmp_path / "study"):
        assert main(["replay", str(tmp_path / "study"), "--tracking-uri", tracking_uri]) == 2
    assert "another process is running study" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "tag"), [("trial", "trial"), ("study", "kind")])
def test_a_run_whose_tag_somebody_has_deleted_does_not_stop_the_delivery(
    tmp_path: Path, tracking_uri: str, kind: str, tag: str
) -> None:
    study = tmp_path / "study"
    write_journal(study, EVENTS[:6])
    assert main(["replay", str(study), "--tracking-uri", tracking_uri]) == 0
    client = MlflowClient(tracking_uri)
    [experiment] = [found for found in client.search_experiments() if found.name == "nfnet_ray"]
    runs = client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
    client.delete_tag(runs[0].info.run_id, tag)
    write_journal(study, EVENTS[6:])
    assert main(["replay", str(study), "--tracking-uri", tracking_uri]) == 0
    epochs = {
        run.data.tags["trial"]: len(client.get_metric_history(run.info.run_id, "validation_top1"))
        for run in client.search_runs([experiment.experiment_id])
        if "trial" in run.data.tags
    }
    assert epochs == {trial: len(steps) for trial, steps in EXPECTED.items()}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "does not say what the study is"),
        (b'{"event":"study_started","ti', "does not say what the study is"),
        (b"\xff\n", "is damaged at byte"),
    ],
)
def test_a_damaged_journal_is_one_line_before_mlflow_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, complaint: str
) -> None:
    journal = tmp_path / "study" / "journal.jsonl"
    journal.parent.mkdir()
    if complaint.startswith("is damaged"):
        write_journal(journal.parent, EVENTS[:2])
    with journal.open("ab") as file:
        file.write(content)
    assert main(["replay", str(journal.parent)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not list(tmp_path.glob("mlflow.db*"))
