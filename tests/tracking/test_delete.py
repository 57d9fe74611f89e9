"""`python -m studies delete` removes a study's folder and its runs in MLflow, or nothing; it can be repeated.

Against real SQLite databases; about 15 seconds on two cores.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool, TrackedStudy
from nfnet_ray.tracking.events import study_id
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.running_lock import LOCK_FILE, alone_with, is_running
from nfnet_ray.tracking.runs import deletion
from nfnet_ray.tracking.runs.deletion import find_runs
from studies.managing import delete_command
from studies.managing.commands import main
from tests.ports import unused_port
from tests.tracking.example_study import START, agc_sweep, write_journal

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def storage(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two studies of two trials each, in folders and in MLflow."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "NFNET_RAY_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for number, name in enumerate(("first", "second")):
        events = agc_sweep((0.01, 0.02), (64,), epochs=1)
        assert events[0]["event"] == "study_started"
        events[0]["time"] = START + number
        events[0]["study"]["name"] = name
        write_journal(tmp_path / name, events)
        (tmp_path / name / "trials" / "a" / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "trials" / "a" / "checkpoints" / "x.pt").write_bytes(bytes(1000))
        sink = MLflowSink(tracking_uri, Spool(tmp_path / name / JOURNAL_FILE, tmp_path / name / SPOOL_FILE))
        sink.start()
        assert sink.close(60) == 0
    return tmp_path


@pytest.fixture
def say(storage: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs delete on the storage: (exit code, standard output, standard error)."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["delete", *words, "--storage", str(storage)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def runs_left(tracking_uri: str) -> list[str]:
    """The studies of all runs that are not deleted."""
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name("nfnet_ray")
    assert experiment is not None
    return sorted(run.data.tags["study"] for run in client.search_runs([experiment.experiment_id]))


def test_a_study_goes_with_its_runs_and_no_other_one(storage: Path, tracking_uri: str, say: Say) -> None:
    code, out, err = say("first", "--yes")
    assert (code, err) == (0, "")
    assert "first: finished, 2 trials, " in out
    assert "3 runs in MLflow, which keeps deleted runs until you call mlflow gc." in out
    assert not (storage / "first").exists()
    assert runs_left(tracking_uri) == ["second"] * 3
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name("nfnet_ray")
    assert experiment is not None
    assert sum(key.startswith(deletion.TAG_PREFIX) for key in experiment.tags) == 1
    code, _, err = say("first", "--yes")
    assert code == 2
    assert "no study 'first'" in err


def test_it_asks_first_and_without_an_answer_nothing_happens(
    storage: Path, tracking_uri: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = say("first", "second")
    assert code == 2
    assert "nobody can answer here: give --yes" in err
    assert out.count("2 trials") == 2
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer in ("", "n", "what"):
        monkeypatch.setattr("builtins.input", lambda *_, said=answer: said)
        assert "Nothing was deleted." in say("first")[1]
    assert runs_left(tracking_uri) == ["first"] * 3 + ["second"] * 3
    monkeypatch.setattr("builtins.input", lambda *_: "Y")
    assert say("first", "second")[0] == 0
    assert runs_left(tracking_uri) == []
    assert sorted(path.name for path in storage.iterdir() if path.is_dir()) == ["mlartifacts"]


def test_a_running_study_is_refused_and_so_are_all_with_it(
    storage: Path, tracking_uri: str, say: Say
) -> None:
    with alone_with(storage / "second"):
        code, out, err = say("first", "second", "--yes")
    assert (code, out) == (2, "")
    assert "another process is running second" in err
    assert (storage / "first" / JOURNAL_FILE).exists()
    assert len(runs_left(tracking_uri)) == 6


def test_without_mlflow_nothing_is_deleted_unless_its_runs_are_to_stay(
    storage: Path, tracking_uri: str, say: Say
) -> None:
    port = unused_port()
    spool = Spool(storage / "first" / JOURNAL_FILE, storage / "first" / SPOOL_FILE)
    spool.acknowledge(spool.acknowledged_bytes, TrackedStudy(f"http://127.0.0.1:{port}", "1", "k", "run"))
    code, out, err = say("first", "second", "--yes")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "nothing was deleted: MLflow server" in err
    assert "--keep-mlflow" in err
    assert (storage / "second" / JOURNAL_FILE).exists()
    code, out, _ = say("first", "--yes", "--keep-mlflow")
    assert code == 0
    assert "runs" not in out.replace(str(storage), "")
    assert not (storage / "first").exists()
    assert len(runs_left(tracking_uri)) == 6


def test_a_deletion_that_was_interrupted_is_repeated(
    storage: Path, tracking_uri: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in MLflow after the first run, once in the folder."""
    deleted: list[str] = []
    delete_run = MlflowClient.delete_run

    def delete_one(client: MlflowClient, run_id: str) -> None:
        if deleted:
            raise KeyboardInterrupt
        deleted.append(run_id)
        delete_run(client, run_id)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "delete_run", delete_one)
        assert say("first", "--yes")[0] == 130
    assert len(runs_left(tracking_uri)) == 5
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda _: (_ for _ in ()).throw(PermissionError(13, "no", "trials")))
        code, _, err = say("first", "--yes")
    assert code == 2
    assert "trials cannot be removed (no); fix that and repeat the command" in err
    assert (storage / "first" / JOURNAL_FILE).exists()
    assert runs_left(tracking_uri) == ["second"] * 3
    code, out, _ = say("first", "--yes")
    assert code == 0
    assert "0 runs in MLflow" in out
    assert not (storage / "first").exists()


def test_checkpoints_in_another_place_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = agc_sweep((0.01,), (64,))
    assert events[0]["event"] == "study_started"
    events[0]["study"]["checkpoints"] = "s3://key:secret@bucket/runs?region=x"
    write_journal(tmp_path / "alone", events)
    assert main(["delete", "alone", "--yes", "--storage", str(tmp_path)]) == 0
    assert "The checkpoints of alone in s3://bucket/runs are still there." in capsys.readouterr().out


def test_what_was_never_recorded_needs_no_mlflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_journal(tmp_path / "alone", agc_sweep((0.01,), (64,)))
    assert main(["delete", "alone", "--yes", "--storage", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []  # not even a database was made
    capsys.readouterr()


def test_a_folder_on_nfs_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS renames a file that is removed while it is open: .nfs and digits, in the same folder."""
    write_journal(tmp_path / "first", agc_sweep((0.01,), (64,), epochs=1))

    def unlink(path: Path, missing_ok: bool = False, real: Callable[..., None] = Path.unlink) -> None:
        if path.name == LOCK_FILE and is_running(path.parent):
            path.rename(path.with_name(".nfs0001"))
        else:
            real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert main(["delete", "first", "--yes", "--keep-mlflow", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_damaged_journals_are_deleted_by_what_is_left_of_them(
    storage: Path, tracking_uri: str, say: Say
) -> None:
    with (storage / "first" / JOURNAL_FILE).open("a") as journal:
        journal.write("garbage\n")
    code, out, _ = say("first", "--yes")
    assert code == 0
    assert "first: damaged, " in out
    assert runs_left(tracking_uri) == ["second"] * 3
    (storage / "second" / JOURNAL_FILE).write_text("garbage\n")
    code, _, err = say("second", "--yes")
    assert code == 2
    assert "delete its folder alone with --keep-mlflow" in err
    assert say("second", "--yes", "--keep-mlflow")[0] == 0
    assert not (storage / "second").exists()


def test_a_link_is_removed_and_not_followed(storage: Path, say: Say, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (storage / "first" / "link").symlink_to(outside)
    (storage / "first" / "trials" / "link").symlink_to(outside)
    assert say("first", "--yes", "--keep-mlflow")[0] == 0
    assert (outside / "precious").exists()


def test_runs_in_other_experiments_and_ids_with_quotes_are_found(storage: Path, tracking_uri: str) -> None:
    first = json.loads((storage / "first" / JOURNAL_FILE).read_text().partition("\n")[0])
    client = MlflowClient(tracking_uri=tracking_uri)
    other = client.create_experiment("other")
    client.create_run(other, tags={"study_id": study_id(first)})
    assert len(find_runs(tracking_uri, study_id(first)).run_ids) == 4
    assert find_runs(tracking_uri, "it's \\ odd").run_ids == ()
    assert find_runs(f"sqlite:///{storage}/none.db", study_id(first)).run_ids == ()
    assert not (storage / "none.db").exists()


def test_a_database_that_is_none_is_one_line(storage: Path) -> None:
    (storage / "text.db").write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(UserError) as refusal:
        find_runs(f"sqlite:///{storage}/text.db", "x")
    assert "\n" not in str(refusal.value)


def test_a_folder_that_cannot_be_written_is_told_before_anything_goes(
    tracking_uri: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    monkeypatch.setattr(
        delete_command.os, "access", lambda path, mode: real(path, mode) and Path(path).name != "first"
    )
    code, _, err = say("first", "--yes")
    assert code == 2
    assert "cannot be removed: it, or the folder around it, cannot be written" in err
    assert len(runs_left(tracking_uri)) == 6
