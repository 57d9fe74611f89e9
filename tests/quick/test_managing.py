"""`python -m studies` lists, shows, compares, annotates and cleans studies, and names what it cannot read.

Against journals with made-up numbers; tests/tracking/test_delete.py deletes. About eight seconds.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nfnet_ray.analysis.comparison import compare_studies
from nfnet_ray.analysis.record import load_study, study_record
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.space import Range, When, domain_to_json
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.descriptions import TrialPlan
from nfnet_ray.tracking.events import study_started, trial_proposed
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.running_lock import LOCK_FILE, alone_with
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.study_directory import find_study
from studies.managing.clean_command import CHECKPOINTS_FOLDER, TUNE_FOLDER
from studies.managing.commands import main
from studies.managing.list_command import list_studies
from studies.managing.summary import age_text, hours_text
from tests.tracking.example_study import START, agc_sweep, trial_events, write_journal
from tests.tracking.example_study import study_started as example_started

CLIP_FACTOR = "optimizer.agc.clip_factor"
CUT_OFF = "clip_factor=0.02,batch_size=64"
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("made")
    write_study(tmp_path / "first", (0.01, 0.02), {64: [0.9, 0.8]})
    write_study(tmp_path / "second", (0.01, 0.02), {64: [0.5, 0.81]}, later=100, epochs=3)
    write_study(tmp_path / "killed", (0.01, 0.02), {64: [0.7]}, later=200)
    (tmp_path / "foreign" / "photos").mkdir(parents=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / JOURNAL_FILE).write_text("no journal\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / JOURNAL_FILE).touch()
    (tmp_path / "mlartifacts" / "nfnet_ray").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def storage(_made: Path, tmp_path: Path) -> Path:
    """Three studies and three folders that are none."""
    return Path(shutil.copytree(_made, tmp_path / "store"))


@pytest.fixture
def say(storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Runs a command on the storage: (exit code, standard output, standard error)."""
    monkeypatch.delenv("NFNET_RAY_HOME", raising=False)
    monkeypatch.chdir(storage.parent)

    def run(*words: str, at: Path = storage) -> tuple[int, str, str]:
        try:
            code = main([*words, "--storage", str(at)])
        except SystemExit as end:
            code = int(str(end.code))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def write_study(
    directory: Path,
    clip_factors: Sequence[float | None],
    top1: dict[int, list[float]],
    *,
    seeds: Sequence[int] = (0,),
    later: float = 0,
    epochs: int = 2,
    states: Sequence[str] = (),
    change: dict[str, Any] | None = None,
) -> Path:
    """A study whose trials ended with these accuracies, by batch size; without one it has not ended."""
    study = Study(
        directory.name,
        "How strongly should AGC clip?",
        Recipe().with_values({"schedule.epochs": epochs, "data.path": "/data/digits"}),
        {CLIP_FACTOR: tuple(clip_factors), "batch_size": tuple(top1)},
        tuple(seeds),
        Halving(1),
    )
    described = json.loads(json.dumps(example_started({})["study"]))
    described |= {
        "name": study.name,
        "question": study.question,
        "command": f".venv/bin/python studies/agc_sweep.py --address auto --epochs {epochs}",
        "space": {name: list(values) for name, values in study.space.items()},
        "seeds": list(seeds),
        "epochs": epochs,
        "halving": {"grace_epochs": 1, "reduction_factor": 2.0},
        "recipe": json.loads(json.dumps(study.recipe.to_values())),
    }
    for name, value in (change or {}).items():
        section, _, key = name.partition("/")
        described[section] = {**described[section], key: value} if key else value
    plans: list[TrialPlan] = [
        {
            "name": trial.name,
            "point": dict(trial.point),
            "recipe": {**trial.point, "seed": trial.recipe.seed},
        }
        for trial in study.trials()
    ]
    started = study_started(described, plans) | {"time": START + later}
    events: list[Any] = [started]
    now = START + later + 1
    accuracies = iter([value for _ in seeds for values in top1.values() for value in values])
    for number, plan in enumerate(plans):
        accuracy = next(accuracies, None)
        if accuracy is None:
            break
        state = states[number] if number < len(states) else "finished"
        lines = trial_events(plan["name"], now, [accuracy / 2, accuracy], state)
        events += lines
        now = lines[-1]["time"] + 1
    else:
        events.append({"event": "study_ended", "time": now, "state": "finished", "wall_seconds": 1800.0})
    write_journal(directory, events)
    for plan in plans:
        place = directory / "trials" / plan["name"] / CHECKPOINTS_FOLDER
        place.mkdir(parents=True)
        (place / "step-00000001-00000000.pt").write_bytes(bytes(1000))
    (directory / TUNE_FOLDER / "1").mkdir(parents=True)
    (directory / TUNE_FOLDER / "1" / "trainable.pkl").write_bytes(bytes(10))
    return directory


def test_all_studies_are_listed_newest_first_and_what_is_none_says_so(storage: Path, say: Say) -> None:
    code, out, err = say("list")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()[1:] if line}
    assert "finished" in rows["first"]
    assert "2/2  90.0% (86.5 to 92.7)   0.50" in rows["first"]
    assert "unfinished     1/2  70.0%" in rows["killed"]
    assert out.index("killed") < out.index("second") < out.index("first")
    assert (
        "damaged: journal.jsonl is damaged at byte 0: restore that line from a backup, or delete it." in out
    )
    assert "foreign: it has no journal.jsonl, so it is not a study." in out
    assert "mlartifacts" not in out
    with alone_with(storage / "killed"):
        assert "killed   running" in say("list")[1]
    assert not (storage / "first" / LOCK_FILE).exists()


def test_a_narrow_terminal_shows_whole_names_and_accuracies(storage: Path) -> None:
    console = Console(file=io.StringIO(), width=46, force_terminal=True, color_system=None)
    list_studies(storage, {}, console, as_json=False)
    assert isinstance(console.file, io.StringIO)
    titles, *rows = (line.split() for line in console.file.getvalue().splitlines())
    assert titles == ["study", "state", "best", "top-1", "(95%)"]
    assert ["first", "finished", "90.0%", "(86.5", "to", "92.7)"] in rows


def test_a_long_name_leaves_the_other_columns_their_room(storage: Path) -> None:
    name = "y" * 150
    (storage / "first").rename(storage / name)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    list_studies(storage, {}, console, as_json=False)
    assert isinstance(console.file, io.StringIO)
    titles, *rows = (line.split() for line in console.file.getvalue().splitlines())
    assert titles[:3] == ["study", "state", "trials"]
    [number] = [
        number for number, row in enumerate(rows) if row[1:3] == ["finished", "2/2"] and row[0][0] == "y"
    ]
    assert "".join(row[0] for row in rows[number : number + 5]) == name


def test_no_trial_of_a_study_that_was_cut_off_is_said_to_run(storage: Path, say: Say) -> None:
    journal = storage / "killed" / JOURNAL_FILE
    with journal.open("a") as file:
        begun = {"event": "trial_started", "time": START + 900, "trial": CUT_OFF, "attempt": 1}
        file.write(json.dumps(begun) + "\n")
    table = say("show", "killed")[1].split("clip factor")[1]
    assert "unfinished" in table
    assert "running" not in table
    with alone_with(storage / "killed"):
        assert "running" in say("show", "killed")[1].split("clip factor")[1]


def test_a_comparison_tells_the_seeds_of_contenders(storage: Path, say: Say) -> None:
    write_study(storage / "repeated", (0.01, 0.02), {64: [0.9, 0.8]}, change={"more_seeds": [1, 2]})
    said = say("compare", "first", "repeated")[1]
    assert "They do not differ" not in said
    assert "more seeds  –  1, 2" in said


def test_a_list_for_machines_has_numbers_and_one_document(storage: Path, say: Say) -> None:
    code, out, _ = say("list", "--json")
    document = json.loads(out, parse_constant=pytest.fail)
    assert code == 0
    assert document["storage"] == str(storage)
    studies = {study["name"]: study for study in document["studies"]}
    first = studies["first"]
    assert first["state"] == "finished"
    assert first["paid_hours"] == 0.5
    assert first["trials"] == {"finished": 2}
    assert first["best"]["setting"] == {CLIP_FACTOR: 0.01, "batch_size": 64}
    assert first["best"]["top1"] == 0.9
    assert first["best"]["low"] < 0.9 < first["best"]["high"]
    assert first["bytes"] == sum(
        path.stat().st_size for path in (storage / "first").rglob("*") if path.is_file()
    )
    assert studies["killed"]["trials"] == {"finished": 1, "waiting": 1}
    assert studies["damaged"]["problem"].startswith("journal.jsonl is damaged")
    assert studies["damaged"]["best"] is None
    assert {study["state"] for study in document["studies"]} == {
        "finished", "unfinished", "damaged", "not begun", "no study",
    }  # fmt: skip


def test_the_storage_may_stand_before_or_behind_the_command(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--storage", str(storage), "list"], ["list", "--storage", str(storage)]):
        assert main(words) == 0
        assert "second" in capsys.readouterr().out
    assert main(["--storage", "nowhere", "list", "--storage", str(storage)]) == 0


def test_a_storage_without_studies(tmp_path: Path, say: Say) -> None:
    (tmp_path / "new").mkdir()
    assert say("list", at=tmp_path / "new")[1].startswith("No study in ")
    assert json.loads(say("list", "--json", at=tmp_path / "new")[1])["studies"] == []
    code, out, err = say("list", at=tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere: the first study makes it" in err


ODD_LINES = (
    '{"event":"study_started"}',
    '{"event":"study_started","time":1,"study":{},"trials":[]}',
    '{"event":"study_started","time":1,"study":{"question":7},"trials":[{"name":"a","point":3,"recipe":4}]}',
    '{"event":"study_started","time":"now","study":{"name":"x"},"trials":{}}',
    "[" * 3000,
    "null",
    '"NaN"',
)


@pytest.mark.parametrize(
    "command",
    [
        *("list", "list --json", "show odd", "show odd --json", "clean", "clean odd"),
        *("compare odd first", "note odd text", "tag odd a=b"),
    ],
)
def test_an_odd_journal_is_a_row_or_a_line_and_never_a_stack_trace(
    storage: Path, say: Say, command: str
) -> None:
    (storage / "odd").mkdir()
    for line in ODD_LINES:
        (storage / "odd" / JOURNAL_FILE).write_text(f"{line}\n")
        code, out, err = say(*command.split())
        assert code in (0, 2)
        assert err.count("\n") == (code == 2)
        if command.startswith("list"):
            assert code == 0
            assert "odd" in out


def test_many_studies_are_listed_in_linear_time(tmp_path: Path, say: Say) -> None:
    made = write_study(tmp_path / "many" / "study-0", (0.01, 0.02), {64: [0.9, 0.8]})
    for number in range(1, 200):
        shutil.copytree(made, tmp_path / "many" / f"study-{number}")
    began = time.process_time()
    code, out, _ = say("list", at=tmp_path / "many")
    assert code == 0
    assert "200 studies" in out
    assert time.process_time() - began < 10  # 2 s on a busy core


def test_a_study_is_shown_with_its_trials_its_answer_and_how_to_resume_it(storage: Path, say: Say) -> None:
    code, out, _ = say("show", "killed")
    assert code == 0
    assert "unfinished; 1 of 2 trials has ended" in out
    assert "clip_factor: 0.01, 0.02" in out
    assert "Best setting: clip_factor 0.01 at batch_size 64: top-1 70.0%" in out
    assert "waiting" in out
    assert "MLflow:  nothing of it is there yet" in out
    assert f"agc_sweep.py --resume killed --address auto --storage {storage}" in out
    assert "Resume:" not in say("show", "first")[1]
    assert say("show", str(storage / "first"), at=storage / "foreign")[1] == say("show", "first")[1]


def test_an_exported_study_is_shown_like_the_study_but_how_to_resume_it(storage: Path, say: Say) -> None:
    exported = storage.parent / "exported" / "first"
    assert say("export", "first", str(exported))[0] == 0
    code, out, err = say("show", str(exported))
    assert (code, err) == (0, "")
    of_study = [line for line in say("show", "first")[1].splitlines() if not line.startswith("Idle")]
    end = next(at for at, line in enumerate(of_study) if line.startswith("Report:"))
    lines = out.splitlines()
    assert [line.split() for line in lines[:end]] == [line.split() for line in of_study[:end]]
    assert [line.split(":")[0] for line in lines[end:]] == ["Report", "Export"]
    assert "which cannot be resumed" in lines[-1]
    assert json.loads(say("show", str(exported), "--json")[1])["idle"] is None


def test_exports_in_a_storage_are_listed_and_shown_by_their_names(storage: Path, say: Say) -> None:
    exports = storage.parent / "exports"
    for name in ("first", "killed"):
        assert say("export", name, str(exports / name))[0] == 0
    code, out, err = say("list", at=exports)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()[1:] if line}
    assert rows["first"].split()[1:4] == ["finished", "2/2", "90.0%"]
    assert rows["killed"].split()[1:4] == ["unfinished", "1/2", "70.0%"]
    assert "2 studies in" in out
    assert out.endswith("2 of them are exports: to read, not to resume.\n")
    listed = json.loads(say("list", "--json", at=exports)[1])["studies"]
    assert [study["is_export"] for study in listed] == [True, True]
    assert not any(study["is_export"] for study in json.loads(say("list", "--json")[1])["studies"])
    assert say("show", "first", at=exports)[1] == say("show", str(exports / "first"))[1]
    assert say("clean", "--plan", at=exports)[0] == 0


@pytest.mark.parametrize("file", ["study.json", "epochs.csv", "bits.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"[]"])
def test_an_odd_export_is_a_row_or_a_line_and_never_a_stack_trace(
    file: str, content: bytes, storage: Path, say: Say
) -> None:
    exported = storage / "exported"
    assert say("export", "first", str(exported))[0] == 0
    (exported / file).write_bytes(content)
    code, out, err = say("list")
    assert (code, err) == (0, "")
    assert "exported: it is not an exported study that can be read" in out.replace("\n", " ")
    assert "3 studies and 4 other folders" in out
    code, out, err = say("show", str(exported))
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_study_of_another_version_is_shown(storage: Path, say: Say) -> None:
    """Its Recipe lacks a field that has come since, and has one that has gone."""
    before = say("show", "first")[1]
    journal = storage / "first" / JOURNAL_FILE
    first, *others = journal.read_text().splitlines()
    event = json.loads(first)
    del event["study"]["recipe"]["capture"]
    event["study"]["recipe"]["data.gone"] = 1
    journal.write_text("\n".join([json.dumps(event), *others]) + "\n")
    code, out, err = say("show", "first")
    assert (code, err) == (0, "")
    answer = "Best setting: clip_factor 0.01"
    assert out[: out.index(answer)] == before[: before.index(answer)]


def test_a_study_for_machines(say: Say) -> None:
    document = json.loads(say("show", "killed", "--json")[1], parse_constant=pytest.fail)
    assert document["trial_list"][1] == {
        "name": "clip_factor=0.02,batch_size=64", "setting": {CLIP_FACTOR: 0.02, "batch_size": 64}, "seed": 0,
        "state": "not started", "reason": None, "epochs": 0, "top1": None, "best_top1": None,
        "train_seconds": None, "images_per_second": None, "left_out": False, "rerun": False,
    }  # fmt: skip
    assert document["answers"][0]["sentence"].startswith("Best setting: clip_factor 0.01")
    assert document["answers"][0]["rests_on"] is None  # there is no other setting
    whole = json.loads(say("show", "first", "--json")[1], parse_constant=pytest.fail)
    assert whole["answers"][0]["rests_on"] == "sweep"
    assert "--resume killed" in document["resume"]
    assert document["mlflow"] == {"tracking_uri": None, "experiment_id": None, "run_id": None}
    assert document["recipe"]["schedule.epochs"] == 2


def test_one_that_was_started_from_python_is_resumed_from_python(storage: Path, say: Say) -> None:
    write_study(
        storage / "notebook", (0.01,), {64: []}, change={"command": "python -m ipykernel_launcher -f x"}
    )
    assert f"nfnet_ray.run(resume='notebook', storage='{storage}')" in say("show", "notebook")[1]


@pytest.mark.parametrize("command", ["show {}", "delete {}", "clean {}", "note {} text", "compare first {}"])
def test_a_name_that_is_none_is_one_line(say: Say, command: str) -> None:
    for name in ("frist", "foreign", "..", "", ".", "../..", "x" * 300, "a\nb", "mlflow.db/x"):
        code, out, err = say(*(name if word == "{}" else word for word in command.split()))
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert name != "frist" or "did you mean first?" in err


def test_what_differs_and_the_settings_of_both_are_compared(storage: Path, say: Say) -> None:
    code, out, _ = say("compare", "first", "second")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Recipe schedule.epochs 2 3" in lines
    # The images alone give −45.8 to −33.8 and −4.8 to +6.8; two seeds add 1.96 times the root of two times 1.8 points.
    assert "0.01 64 90.0% 50.0% −40.0 (−47.5 to −32.0) A is better" in lines
    assert "0.02 64 80.0% 81.0% +1.0 (−6.6 to +8.6) within noise" in lines
    assert any("no spread between seeds: 1.8 points are assumed for them" in line for line in lines)
    assert "Of the 2 settings that both have finished, first is better in 1; 1 is within noise." in lines
    assert any("trials of A have 2 epochs, those of B 3" in line for line in lines)
    document = json.loads(say("compare", "first", "second", "--json")[1], parse_constant=pytest.fail)
    assert document["comparable"]
    assert [setting["within_noise"] for setting in document["settings"]] == [False, True]
    assert document["settings"][0]["difference"] == pytest.approx(-0.4)
    assert {(one["area"], one["name"]) for one in document["differences"]} == {("recipe", "schedule.epochs")}
    assert "compared with itself" in say("compare", "first", str(storage / "first"))[2]
    exported = storage.parent / "exported" / "second"
    assert say("export", "second", str(exported))[0] == 0
    assert say("compare", "first", str(exported))[1] == out


def test_what_a_recipe_leaves_to_its_network_is_the_published_value(storage: Path) -> None:
    """One study has a dropout of none, the other sweeps the number that this stands for."""
    record = study_record(*StudyState.read(storage / "first"))
    dropout = with_published_values(Recipe.from_values(record.study["recipe"])).model.dropout
    assert (record.study["recipe"]["model.dropout"], dropout is None) == (None, False)
    tables = {
        name: getattr(record, name).assign(**{"model.dropout": dropout}) for name in ("trials", "epochs")
    }
    swept = replace(record, fields=(*record.fields, "model.dropout"), **tables)
    found = compare_studies(record, swept)
    assert (len(found.shared), found.only_a, found.only_b) == (2, (), ())
    other = {**tables, "trials": tables["trials"].assign(**{"model.dropout": 0.9})}
    assert len(compare_studies(record, replace(swept, **other)).only_b) == 2


def test_other_data_and_other_spaces_are_said(storage: Path, say: Say) -> None:
    data = {"data/fingerprint": "0" * 12, "data/name": "letters", "data/validation_images": 50}
    write_study(storage / "letters", (0.01, 0.04), {64: [0.9, 0.8]}, change=data)
    _, out, _ = say("compare", "first", "letters")
    assert (
        "Accuracies cannot be compared: they were measured on different images: imagenet_samples (360" in out
    )
    assert "points" not in out
    assert "Only A (first) has 1 setting: clip_factor 0.02, batch_size 64." in out
    assert "Only B (letters) has 1 setting: clip_factor 0.04, batch_size 64." in out
    document = json.loads(say("compare", "first", "letters", "--json")[1])
    assert not document["comparable"]
    assert document["settings"][0]["difference"] is None
    write_study(storage / "none", (0.3,), {64: [0.9]})
    assert "They have no finished setting in common." in say("compare", "first", "none")[1]
    assert (
        "Not finished by both: 1 setting: clip_factor 0.02, batch_size 64."
        in say("compare", "first", "killed")[1]
    )
    write_study(storage / "third", (0.01, 0.02), {64: [0.9, 0.8]})
    assert "They do not differ" in say("compare", "first", "third")[1]


def test_a_field_that_one_sweeps_and_the_other_fixes_is_matched(tmp_path: Path) -> None:
    swept = write_study(tmp_path / "swept", (0.01, None), {64: [0.9, 0.3], 4096: [0.6, 0.5]}, seeds=(0,))
    fixed = agc_sweep((0.01,), (64,))
    assert fixed[0]["event"] == "study_started"
    fixed[0]["study"]["space"] = {CLIP_FACTOR: [0.01]}
    fixed[0]["trials"][0]["point"] = {CLIP_FACTOR: 0.01}
    fixed[0]["study"]["recipe"]["batch_size"] = 4096
    write_journal(tmp_path / "fixed", fixed)
    found = compare_studies(load_study(swept), load_study(tmp_path / "fixed"))
    assert [setting.point for setting in found.shared] == [{CLIP_FACTOR: 0.01, "batch_size": 4096}]
    assert len(found.only_a) == 3
    assert found.only_b == ()


def test_seeds_widen_the_interval_of_a_difference(tmp_path: Path) -> None:
    one = load_study(write_study(tmp_path / "a", (0.01,), {64: [0.9]}, seeds=(0, 1)))
    other = load_study(write_study(tmp_path / "b", (0.01,), {64: [0.9]}, seeds=(0, 1)))
    [setting] = compare_studies(one, other).shared
    assert setting.difference == 0
    assert setting.is_within_noise
    assert len(setting.a.seed_top1) == 2


def test_a_record_without_epochs_has_the_same_trials(tmp_path: Path) -> None:
    directory = write_journal(tmp_path, agc_sweep()).parent
    whole, quick = load_study(directory), study_record(*StudyState.read(directory), with_epochs=False)
    assert quick.trials.equals(whole.trials)
    assert quick.epochs.empty
    assert list(quick.epochs.columns) == ["trial", *whole.fields, "seed", "epoch", "validation_top1"]


def checkpoints(directory: Path) -> set[str]:
    """The trials that have checkpoints."""
    return {
        place.parent.name
        for place in (directory / "trials").glob(f"*/{CHECKPOINTS_FOLDER}")
        if list(place.glob("*.pt"))
    }


def test_checkpoints_that_nothing_needs_are_removed(storage: Path, say: Say) -> None:
    states = ("finished", "finished", "stopped", "failed", "diverged", "paused", "interrupted")
    directory = write_study(
        storage / "many",
        (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, None, 0.5),
        {64: [0.5, 0.9, 0.95, 0.4, math.nan, 0.3, 0.2]},
        states=states,
    )
    before = checkpoints(directory)
    code, out, _ = say("clean", "many", "--plan")
    assert code == 0
    assert "3 trials  5 trials" in out
    assert "would be freed" in out
    assert checkpoints(directory) == before
    assert not (directory / LOCK_FILE).exists()
    assert say("clean", "many")[0] == 0
    kept = {"0.02", "0.08", "0.32", "none", "0.5"}  # the best, and those that may resume
    assert checkpoints(directory) == {f"clip_factor={value},batch_size=64" for value in kept}
    assert not (directory / TUNE_FOLDER).exists()
    assert "There is nothing to remove." in say("clean", "many")[1]
    assert checkpoints(storage / "first") == {f"clip_factor={value},batch_size=64" for value in (0.01, 0.02)}


def test_each_stratum_keeps_its_best_trial(storage: Path, say: Say) -> None:
    directory = write_study(
        storage / "strata",
        (0.01, 0.02),
        {64: [0.9, 0.8], 256: [0.3, 0.4]},
        states=["finished"] * 3 + ["stopped"],
    )
    say("clean", "strata")
    assert checkpoints(directory) == {
        "clip_factor=0.01,batch_size=64",
        "clip_factor=0.01,batch_size=256",  # the better one was stopped early
    }


@pytest.mark.parametrize("mount", ["", "/mnt/of/another/machine"])
def test_weights_from_which_another_study_starts_stay(storage: Path, say: Say, mount: str) -> None:
    place = (
        (Path(mount) if mount else storage)
        / "first"
        / "trials"
        / "clip_factor=0.02,batch_size=64"
        / CHECKPOINTS_FOLDER
    )
    weights = f"{place}/step-00000001-00000000.pt"
    write_study(storage / "transfer", (0.01,), {64: [0.9]}, change={"recipe/model.weights": weights})
    say("clean")
    assert checkpoints(storage / "first") == {f"clip_factor={value},batch_size=64" for value in (0.01, 0.02)}
    assert checkpoints(storage / "second") == {"clip_factor=0.02,batch_size=64"}


def test_a_running_study_is_left_alone_and_so_is_a_link(storage: Path, say: Say, tmp_path: Path) -> None:
    with alone_with(storage / "first"):
        code, _, err = say("clean", "first")
        assert code == 2
        assert "nothing was removed: first is running" in err
        code, out, _ = say("clean")
        assert code == 0
        assert "first is running" in out
    assert len(checkpoints(storage / "first")) == 2
    assert len(checkpoints(storage / "second")) == 1
    elsewhere = tmp_path / "elsewhere"
    shutil.move(storage / "first" / TUNE_FOLDER, elsewhere)
    (storage / "first" / TUNE_FOLDER).symlink_to(elsewhere)
    say("clean", "first")
    assert list(elsewhere.rglob("*.pkl"))


def test_what_another_user_keeps_for_himself_is_left_alone_and_the_others_are_cleaned(
    storage: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def access(path: str | Path, mode: int, real: Callable[..., bool] = os.access) -> bool:
        return Path(path).name != "first" and real(path, mode)

    monkeypatch.setattr(os, "access", access)  # root may write everything
    code, out, _ = say("clean")
    assert code == 0
    assert "first belongs to somebody else and cannot be written, so it is left alone." in out
    assert len(checkpoints(storage / "first")) == 2
    assert len(checkpoints(storage / "second")) == 1
    code, _, err = say("clean", "first")
    assert code == 2
    assert "nothing was removed: first belongs to somebody else" in err


def test_notes_and_tags_are_added_later_and_found(storage: Path, say: Say) -> None:
    assert say("note", "first", "on two cores")[0] == 0
    assert say("tag", "first", "team=vision", "paper=yes") == (
        0, "first now has team=vision, paper=yes in its journal.\n", "",
    )  # fmt: skip
    assert say("tag", "first", "paper=yes")[1] == "first has that already.\n"
    assert say("tag", "first", "paper=no")[0] == 0
    record = load_study(storage / "first")
    assert (record.notes, record.tags) == (("on two cores",), {"team": "vision", "paper": "no"})
    assert record.state == "finished"
    out = say("show", "first")[1]
    assert "on two cores" in out
    assert "team=vision, paper=no" in out
    names = [study["name"] for study in json.loads(say("list", "--json", "--tag", "paper=no")[1])["studies"]]
    assert names == ["first"]
    assert say("list", "--tag", "paper=no", "--tag", "team=audio")[1].startswith("No study with paper=no and")
    with alone_with(storage / "first"):
        code, _, err = say("note", "first", "again")
    assert code == 2
    assert "another process is running first" in err
    for words in (["note", "first", " "], ["tag", "first", "state=x"], ["tag", "first"], ["note", "first"]):
        code, _, err = say(*words)
        assert code == 2
        assert err.count("\n") == 1


def test_a_note_is_kept_though_the_report_cannot_be_written(storage: Path, say: Say) -> None:
    (storage / "first" / "report.html" / "full").mkdir(
        parents=True
    )  # no file takes the place of such a folder
    code, out, _ = say("note", "first", "on two cores")
    assert code == 3
    assert "first now has the note in its journal." in out
    assert "Its report has not" in out
    assert "report.html cannot be written: Is a directory; choose another place" in out
    assert "-m dashboards.report" in out
    assert load_study(storage / "first").notes == ("on two cores",)


def test_ages_and_hours_are_short() -> None:
    assert [age_text(seconds) for seconds in (0, 59.9, 60, 7200, 172_800)] == [
        "0 s",
        "59 s",
        "1 min",
        "2 h",
        "2 d",
    ]
    assert [hours_text(hours) for hours in (None, 0.004, 1.25, 1234.5)] == ["", "0.00", "1.2", "1,234"]


def test_trials_that_a_search_has_added_count(storage: Path, say: Say) -> None:
    directory = storage / "learning"
    study = Study(
        "learning",
        "How strongly should AGC clip?",
        Recipe().with_values({"data.path": "/data/digits"}),
        {CLIP_FACTOR: Range(0.002, 0.3, log=True), "batch_size": (64, 128)},
        search="tpe",
        trial_limit=14,
    )
    described = json.loads(json.dumps(example_started({})["study"]))
    described |= {
        "name": study.name,
        "space": {name: domain_to_json(domain) for name, domain in study.space.items()},
        "search": {"name": "tpe", "settings": 14, "first_points": [], "lag": 1},
        "seeds": [0],
        "halving": None,
        "recipe": study.recipe.to_values(),
    }
    first = study.trials()
    [added] = study.trials_at({CLIP_FACTOR: 0.05, "batch_size": 128})
    events: list[Any] = [study_started(described, [study.plan(trial) for trial in first]) | {"time": START}]
    for number, trial in enumerate(first):
        events += trial_events(trial.name, START + 1, [0.3 + number / 100])
    events += [trial_proposed(study.plan(added), len(first), []) | {"time": START + 2}]
    events += trial_events(added.name, START + 3, [0.9])
    write_journal(directory, json.loads(json.dumps(events)))
    for trial in [*first, added]:
        place = directory / "trials" / trial.name / CHECKPOINTS_FOLDER
        place.mkdir(parents=True)
        (place / "step-00000001-00000000.pt").write_bytes(bytes(1000))
    assert "7/14  90.0%" in say("list")[1]
    out = say("show", "learning")[1]
    assert "7 of 14 trials have ended" in out
    assert "tpe, 14 settings" in out
    assert say("clean", "learning")[0] == 0
    assert added.name in checkpoints(directory)  # the best of all, and that of batch size 128
    assert len(checkpoints(directory)) == 2


def searched(directory: Path) -> Path:
    """A finished study of a search, in which a field is there for some points only."""
    rho = "optimizer.sam.rho"
    study = Study(
        directory.name,
        "How large should rho be?",
        Recipe().with_values({"data.path": "/data/digits"}),
        {
            rho: (None, 0.05),
            CLIP_FACTOR: Range(0.002, 0.3, log=True),
            "optimizer.sam.ascent_share": When((0.5, 0.75), rho),
        },
        trial_limit=6,
    )
    described = json.loads(json.dumps(example_started({})["study"]))
    described |= {
        "name": study.name,
        "space": {name: domain_to_json(domain) for name, domain in study.space.items()},
        "search": {"name": "sobol", "settings": 6, "first_points": []},
        "seeds": [0],
        "halving": None,
        "recipe": json.loads(json.dumps(study.recipe.to_values())),
    }
    started = study_started(described, [study.plan(trial) for trial in study.trials()])
    events: list[Any] = [json.loads(json.dumps(started | {"time": START}))]
    for number, trial in enumerate(study.trials()):
        events += trial_events(trial.name, START + 1, [0.5 + number / 100])
    events.append({"event": "study_ended", "time": START + 1000, "state": "finished", "wall_seconds": 999.0})
    write_journal(directory, events)
    return directory


def test_ranges_and_fields_that_are_absent_are_understood(storage: Path, say: Say) -> None:
    searched(storage / "one")
    searched(storage / "other")
    assert "55.0%" in say("list")[1]
    code, out, _ = say("show", "one")
    assert code == 0
    assert "clip_factor: log:0.002..0.3" in out
    assert "ascent_share: 0.5,0.75 if optimizer.sam.rho" in out
    assert "sobol, 6 settings" in out
    trials = json.loads(say("show", "one", "--json")[1], parse_constant=pytest.fail)["trial_list"]
    assert {len(trial["setting"]) for trial in trials} == {2, 3}
    document = json.loads(say("compare", "one", "other", "--json")[1], parse_constant=pytest.fail)
    assert document["differences"] == []
    assert len(document["settings"]) == 6
    code, out, _ = say("compare", "one", "first")
    assert code == 0
    assert "log:0.002..0.3" in out
    assert say("clean", "one", "--plan")[0] == 0


def test_a_name_is_looked_up_where_studies_are_kept(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod, $NFNET_RAY_HOME is the shared volume, and the current folder is that of the code."""
    home = tmp_path / "shared"
    shutil.copytree(storage / "first", home / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NFNET_RAY_HOME", str(home))
    assert find_study("first") == home / "runs" / "first"
    with pytest.raises(UserError, match=r"the studies in .*/shared/runs are: first"):
        find_study("other")
    monkeypatch.chdir(home)
    monkeypatch.delenv("NFNET_RAY_HOME")
    assert find_study("first") == Path("runs/first")
    with pytest.raises(UserError, match=r"the studies in \./runs are: first"):
        find_study("other")
