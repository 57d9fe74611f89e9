"""Whatever a user gets wrong: one clear line, exit code 2, no stack trace, nothing started, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nfnet_ray.tracking.running_lock import alone_with
from tests.e2e.workplace import Workplace
from tests.ports import unused_port


@pytest.fixture
def data(workplace: Workplace, few_digits: Path) -> Path:
    """A copy of a good data set, to be spoilt."""
    return Path(shutil.copytree(few_digits, workplace.folder / "set"))


def refused(workplace: Workplace, *arguments: str | Path, in_new_process: bool = False) -> str:
    """The one line with which a study refuses."""
    before = sorted(workplace.folder.rglob("*"))
    result = workplace.run(*arguments) if in_new_process else workplace.run_here(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("agc_sweep.py: ")
    assert result.stderr.count("\n") == 1
    assert sorted(workplace.folder.rglob("*")) == before
    return result.stderr


def without_manifest(data: Path) -> None:
    (data / "train.parquet").unlink()


def truncated(data: Path) -> None:
    beton = data / "train.beton"
    beton.write_bytes(beton.read_bytes()[:-5000])


def emptied(data: Path) -> None:
    (data / "validation.beton").write_bytes(b"")


def another_manifest(data: Path) -> None:
    shutil.copy(data / "validation.parquet", data / "train.parquet")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without_manifest, "train.parquet"),
        (truncated, "train.beton"),
        (emptied, "validation.beton"),
        (another_manifest, "train.parquet"),
    ],
)
def test_a_spoilt_data_set(
    workplace: Workplace, data: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    spoil(data)
    assert complaint in refused(workplace, "--data", data)


def test_no_such_data(workplace: Workplace) -> None:
    assert "no such data set" in refused(workplace, "--data", "nowhere", in_new_process=True)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("optimizer.agc.clip_factor=-0.1", "it takes a number above 0, or none"),
        ("optimizer.agc.clipfactor=0.1", "did you mean optimizer.agc.clip_factor"),
        ("model.name=nfnet_f9", "nfnet_f9"),
        ("model.overrides.width=[64]", "width"),
        ("batch_size=100000", "larger than the 240 training images"),
        ("data.path=elsewhere", "--set data.path=elsewhere contradict each other"),
        ("schedule.epochs=0", "schedule.epochs = 0 is not allowed"),
        ("optimizer.agc.clip_factor=0.1,0.2", "give a study --sweep optimizer.agc.clip_factor=0.1,0.2"),
    ],
)
def test_a_wrong_setting(workplace: Workplace, few_digits: Path, setting: str, complaint: str) -> None:
    assert complaint in refused(workplace, "--data", few_digits, "--set", setting)


def test_a_sweep_that_no_trial_could_run_with(workplace: Workplace, few_digits: Path) -> None:
    sweep = ("--sweep", "batch_size=64..100000", "--search", "tpe")
    assert "larger than the 240 training images" in refused(workplace, "--data", few_digits, *sweep)


@pytest.mark.parametrize(
    "flags", [["--trials", "0"], ["--epochs", "many"], ["--name", "../up"], ["--nonsense"]]
)
def test_a_wrong_flag(workplace: Workplace, flags: list[str]) -> None:
    assert flags[0] in refused(workplace, *flags, in_new_process=flags == ["--nonsense"])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--epochs", "3", "--set", "schedule.epochs=5"],
            "--epochs 3 and --set schedule.epochs=5 contradict",
        ),
        (["--continue"], "--continue needs --name NAME"),
        (["--name", "mlartifacts"], "MLflow's files are called so"),
        (["--gpus-per-worker", "1.5"], "give 1 or a part of one"),
        (["--early-stopping", "none:eta=3"], "it has no options; leave out 'eta=3'"),
        (["--trials", "10001"], "10001 is not a whole number from 1 to 10000"),
        (["--trials", 20 * "9"], "99999999999999999999 is too large a number"),
        (["--resume", "a", "--extend", "b", "--seeds", "2"], "--resume and --extend exclude each other"),
        (["--resume", "a", "--continue"], "leave one of them out"),
        (["--plan", "--tracking-uri", "foo://bar"], "foo: is not supported"),
        (["--plan", "--storage", __file__], "is not a folder"),
        (["--set", "model.name=NFNET_F0"], "did you mean nfnet_f0"),
    ],
)
def test_flags_that_mean_nothing_here(
    workplace: Workplace, few_digits: Path, flags: list[str], complaint: str
) -> None:
    assert complaint in refused(workplace, "--data", few_digits, *flags)


def test_no_ray_at_the_address(workplace: Workplace, few_digits: Path) -> None:
    address = f"127.0.0.1:{unused_port()}"
    assert "no Ray answers there" in refused(workplace, "--data", few_digits, "--address", address)
    assert "ray job submit" in refused(workplace, "--data", few_digits, "--address", "ray://somewhere:10001")
    assert "HOST:PORT" in refused(workplace, "--data", few_digits, "--address", "somewhere")


def test_a_tracking_server_that_does_not_answer(workplace: Workplace, few_digits: Path) -> None:
    uri = f"http://127.0.0.1:{unused_port()}"
    assert uri in refused(workplace, "--data", few_digits, "--tracking-uri", uri, in_new_process=True)


def test_a_batch_that_the_workers_cannot_share(workplace: Workplace, few_digits: Path) -> None:
    line = refused(workplace, "--data", few_digits, "--set", "batch_size=49", "--workers-per-trial", "2")
    assert "multiple of 2" in line


def test_more_cores_than_this_machine_has(workplace: Workplace, few_digits: Path) -> None:
    shape = ["--cpus-per-worker", "3000", "--gpus-per-worker", "0", "--trials-at-once", "1"]
    assert "1 x (3000 CPU) do not fit: this machine has" in refused(workplace, "--data", few_digits, *shape)


def test_a_storage_below_a_file(workplace: Workplace, few_digits: Path) -> None:
    """With a tracking server elsewhere, as on a cluster: nothing else would look at the storage."""
    (workplace.folder / "file").touch()
    elsewhere = ["--tracking-uri", f"sqlite:///{workplace.folder}/mlflow.db"]
    line = refused(workplace, "--data", few_digits, "--storage", "file/runs", *elsewhere)
    assert "--storage: " in line
    assert "file is not a folder" in line


def test_resuming_what_is_not_there_or_is_fixed(workplace: Workplace) -> None:
    assert "no study is here; --resume and --extend take the name" in refused(
        workplace, "--resume", "nothing"
    )
    assert "--epochs cannot be changed" in refused(workplace, "--resume", "nothing", "--epochs", "3")
    assert "--trials cannot be changed" in refused(workplace, "--resume", "nothing", "--trials", "1")


def test_a_study_that_another_process_runs(workplace: Workplace, few_digits: Path) -> None:
    """Before Ray is started for it."""
    with alone_with(workplace.folder / "runs" / "busy"):
        assert "another process is running busy" in refused(workplace, "--data", few_digits, "--name", "busy")
