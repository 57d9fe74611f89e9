"""Whatever follows a flag: one line names the flag and says what is allowed, exit code 2.

Takes about two seconds, most of it imports.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

import nfnet_ray
from nfnet_ray.errors import UserError
from studies import train
from studies.agc_sweep import agc_sweep
from studies.running.flags import main as run_study
from studies.running.flags import settings_of
from studies.transfer import PROGRAM

NO_NUMBERS = ["x", "", "-1", "1.5.2", "nan", "inf", "1e400", "9" * 5000, "²", "\x1b[31m1\n2"]


def study(arguments: list[str]) -> int:
    return run_study(agc_sweep, Path("studies/agc_sweep.py"), arguments)


def transfer(arguments: list[str]) -> int:
    return run_study(PROGRAM, Path("studies/transfer.py"), arguments)


def module(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module(name).main
    return main


COMMANDS: list[tuple[Callable[[list[str]], int], list[str], list[str]]] = [
    (study, [], ["--trials", "--epochs", "--seeds", "--workers-per-trial", "--cpus-per-worker"]),
    (study, [], ["--gpus-per-worker", "--trials-at-once"]),
    (train.main, [], ["--workers", "--min-workers", "--cpus-per-worker", "--gpus-per-worker", "--epochs"]),
    (train.main, [], ["--checkpoint-minutes", "--hang-seconds"]),
    (module("nfnet_ray.models.__main__"), ["nfnet_f0"], ["--size", "--classes"]),
    (module("dashboards.compare"), ["study"], ["--port"]),
    (module("dashboards.signal_propagation"), ["nfnet_f0", "page.html"], ["--size"]),
    (module("data_prep.__main__"), ["convert", "a", "b"], ["--holdout", "--max-side", "--jpeg-quality"]),
    (module("data_prep.__main__"), ["convert", "a", "b"], ["--workers", "--max-unreadable"]),
    (module("data_prep.__main__"), ["doctor", "a"], ["--gpus", "--gpu-images-per-second", "--workers"]),
    (module("data_prep.__main__"), ["verify", "a"], ["--limit", "--workers"]),
]


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: ascii(text[:9]))
def test_a_flag_that_takes_a_number_refuses_all_else_in_one_line(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for main, before, flags in COMMANDS:
        for flag in flags:
            with pytest.raises(SystemExit) as exit_:
                main([*before, f"{flag}={text}"])
            said = capsys.readouterr().err
            assert exit_.value.code == 2
            assert said.count("\n") == 1, said
            assert f"argument {flag}: " in said
            assert "number" in said
            assert "_" not in said.partition(flag)[2]  # no name of a function
            assert said.strip().isprintable()
            assert len(said) < 300


@pytest.mark.parametrize("place", ["s3://bucket/x", "gs://b", "file:///x"])
def test_an_address_is_no_path(
    place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would be a folder called ``s3:``, and a study would run in it."""
    data_prep = module("data_prep.__main__")
    for main, arguments in (
        (study, ["--storage", place]),
        (study, ["--data", place]),
        (data_prep, ["convert", "source", place]),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        said = capsys.readouterr().err
        assert exit_.value.code == 2
        assert said.count("\n") == 1
        assert "is an address" in said
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--storage: .* is an address, and not a folder"):
        nfnet_ray.run(agc_sweep, storage=place)
    with pytest.raises(UserError, match=r"--data: .* is an address, and not a folder"):
        nfnet_ray.run(agc_sweep, data=place)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_has_one_gpu_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    assert study(["--plan", "--gpus-per-worker", "2"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "--gpus-per-worker 2: a worker computes on one GPU" in said.err
    assert said.out == ""  # nothing has begun


@pytest.mark.parametrize(
    "name",
    [
        "nfnet_ray.models.__main__",
        "nfnet_ray.data.__main__",
        "dashboards.report",
        "dashboards.compare",
        "dashboards.signal_propagation",
    ],
)
def test_an_unknown_flag_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        module(name)(["--no-such-flag"])
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert said.count("\n") == 1
    assert said.startswith(f"python -m {name.removesuffix('.__main__')}: ")
    assert "see --help" in said


def test_a_similar_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    managing, data_prep = module("studies.managing.commands"), module("data_prep.__main__")
    for main, arguments, hint in (
        (study, ["--plann"], "did you mean --plan?"),
        (study, ["--tags=a=b"], "did you mean --tag?"),
        (study, ["--batch_size", "64"], "batch_size is a field of the Recipe: give --set batch_size=VALUE"),
        (study, ["--optimizer.agc.clip-factor=1"], "give --set optimizer.agc.clip_factor=VALUE"),
        (managing, ["list", "--jsom"], "did you mean --json?"),
        (data_prep, ["verify", "a", "--decoded"], "did you mean --decode?"),
        (study, ["extra"], "see --help"),
        (study, ["--nothing-like-it"], "see --help"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        said = capsys.readouterr().err
        assert exit_.value.code == 2
        assert said.count("\n") == 1
        assert said.endswith(f"{hint}\n")


def test_an_empty_variable_is_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    """``--search "$UNSET"`` would mean no flag, and ``--tracking-uri "$UNSET"`` a folder."""
    managing, tracking = module("studies.managing.commands"), module("nfnet_ray.tracking.__main__")
    data_prep = module("data_prep.__main__")
    flags = ["--address", "--tracking-uri", "--search", "--from", "--early-stopping", "--notify"]
    for main, before, flag in (
        *((study, [], flag) for flag in flags),
        (transfer, [], "--weights"),
        (train.main, [], "--checkpoints"),
        (train.main, [], "--model"),
        (managing, ["delete", "a"], "--tracking-uri"),
        (tracking, ["replay", "a"], "--tracking-uri"),
        (data_prep, ["convert", "a", "b"], "--label-column"),
        (data_prep, ["convert", "a", "b"], "--address"),
        (data_prep, ["fetch", "cifar10", "a"], "--url"),
        (data_prep, ["doctor", "a"], "--model"),
    ):
        for nothing in ("", " "):
            with pytest.raises(SystemExit) as exit_:
                main([*before, flag, nothing])
            said = capsys.readouterr().err
            assert exit_.value.code == 2
            assert said.count("\n") == 1
            assert f"argument {flag}: a value is needed, and this is empty" in said


def test_an_empty_variable_is_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    """``--data $UNSET`` would mean the current folder to Python, and ``convert "$UNSET" out`` would convert it."""
    data_prep, sheet = module("data_prep.__main__"), module("nfnet_ray.data.__main__")
    for main, arguments in (
        (study, ["--data", ""]),
        (study, ["--storage", ""]),
        (data_prep, ["convert", "", "out"]),
        (data_prep, ["convert", "source", ""]),
        (data_prep, ["info", ""]),
        (data_prep, ["fetch", "cifar10", ""]),
        (sheet, ["sheet", ""]),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        said = capsys.readouterr().err
        assert exit_.value.code == 2
        assert said.count("\n") == 1
        assert "a path is needed, and this is empty" in said


def test_one_name_with_two_values_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The last one won, and nothing said so."""
    clip = "optimizer.agc.clip_factor"
    for main, before in ((study, []), (train.main, []), (module("nfnet_ray.models.__main__"), ["nfnet_f0"])):
        name = clip if before == [] else "width"
        assert main([*before, "--set", f"{name}=0.1", "--set", f"{name}=0.2"]) == 2
        said = capsys.readouterr().err
        assert f"--set {name} is given twice, as 0.1 and as 0.2: leave one of them out" in said
        assert said.count("\n") == 1
    assert settings_of([f"{clip}=0.1", f"{clip}=0.10"]) == {clip: 0.1}
