"""What ``studies/train.py`` refuses, in one line and before anything is started, and what it plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.models.published import published_recipe
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.probe_process import Probe
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import study_started
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.state import StudyState
from studies.running.program import StudyProgram
from studies.running.training import TrainingRequest
from studies.running.trials import StudyRequest
from studies.train import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line with which it refuses."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as ended:  # argparse
        code = int(str(ended.code))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("train.py: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workers", "4-2"], "write the smaller number first"),
        (["--workers", "2", "--min-workers", "3"], "--min-workers 3 is more than the 2"),
        (["--workers", "none"], "none is not a whole number above 0"),
        (["--checkpoint-minutes", "0"], "0 is not a number above 0"),
        (["--checkpoints", "nowhere://bucket"], "not a place for checkpoints"),
        (["--model", "nfnet_f99"], "nfnet_f99"),
        (["--workers", "7"], "batch_size 48 cannot be shared equally by 7 workers"),
        (["--force"], "--force goes with --resume"),
        (["--resume", "nothing"], "no study is here"),
        (["--resume", "nothing", "--workers", "2"], "--workers cannot be changed"),
        (
            ["--resume", "nothing", "--epochs", "2"],
            "train on from its weights with --name NEW",
        ),
        (["--resume", "nothing", "--force", "--model", "nfnet_f0"], "--model cannot be changed"),
        (["--set", "optimizer.agc.clip=1"], "optimizer.agc.clip_factor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], few_digits: Path, arguments: list[str], complaint: str
) -> None:
    common = [] if "--resume" in arguments else ["--data", str(few_digits), "--set", "batch_size=48"]
    assert complaint in refused(capsys, *common, *arguments)


def test_a_plan_is_of_the_published_recipe_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], few_digits: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the measurement of this machine's speed, which a plan of tests/e2e/test_study.py makes."""
    measured = Probe(1.0, 1.0, (0.1, 0.1), images=64, image_size=32, eval_seconds=1.0, eval_images=360)
    monkeypatch.setattr("studies.running.planning.plan_text.probe_at_once", lambda *_: measured)
    assert main(["--data", str(few_digits), "--set", "batch_size=48", "--epochs", "3", "--plan"]) == 0
    assert "1 trial of nfnet_pico" in capsys.readouterr().out
    assert list(here.iterdir()) == []


def test_a_training_is_a_study_of_one_trial_and_remembers_what_was_forced_upon_it(tmp_path: Path) -> None:
    recipe = published_recipe("nfnet_pico").with_values({"seed": 5})
    study = Study("run", "?", recipe, {}, seeds=(5,))
    (trial,) = study.trials()
    assert (trial.name, dict(trial.point), trial.recipe.seed) == ("seed=5", {}, 5)
    started = {
        "event": "study_started",
        "time": 0.0,
        "study": {"name": "run", "question": "?", "space": {}, "seeds": [5], "halving": None,
                  "recipe": recipe.to_values()},
        "trials": [{"name": "seed=5", "point": {}, "recipe": {"seed": 5}}],
    }  # fmt: skip
    resumed = [
        {"event": "study_resumed", "time": 1.0, "changed": {"optimizer.agc.clip_factor": 0.5}},
        {"event": "study_resumed", "time": 2.0},
        {"event": "study_resumed", "time": 3.0, "changed": {"schedule.epochs": 7}},
    ]
    journal = tmp_path / JOURNAL_FILE
    journal.write_text("".join(json.dumps(event) + "\n" for event in (started, *resumed)))
    progress, first = StudyState.read(tmp_path)
    assert Study.from_event(first).trials() == study.trials()
    changed: Recipe = study.recipe.with_values(progress.changed)
    assert (changed.optimizer.agc.clip_factor, changed.schedule.epochs) == (0.5, 7)


@pytest.mark.parametrize(
    ("state", "settings", "message"),
    [
        ("finished", {"schedule.epochs": 9}, "run has finished after 6 epochs, so that other settings change nothing"),
        ("finished", {"schedule.epochs": 9}, "from its weights: --name NEW --set model.weights=CHECKPOINT"),
        ("diverged", {"optimizer.momentum": 0.5}, "run has diverged after 6 epochs"),
        ("interrupted", {"schedule.epochs": 5}, "run has been trained for 6 epochs, so that it cannot end after 5"),
        ("interrupted", {"seed": 6}, "--set seed=6: run began with 5, which --force cannot change: start a new"),
        ("interrupted", {"schedule.epochs": 9}, ""),
        ("finished", {"schedule.epochs": 7}, ""),  # which it has
    ],
)  # fmt: skip
def test_what_force_cannot_change_any_more_is_refused(
    state: str, settings: dict[str, object], message: str
) -> None:
    recipe = published_recipe("nfnet_pico").with_values({"seed": 5, "schedule.epochs": 7})
    study = Study("run", "?", recipe, {}, seeds=(5,))
    progress = study.waiting_state()
    (trial,) = progress.members
    trial.state, trial.epochs = state, {6: {}}  # type: ignore[assignment]
    request = TrainingRequest(resume="run", force=True, settings=settings)
    if not message:
        assert request.resumed(study, progress).recipe == recipe.with_values(settings)
        return
    with pytest.raises(UserError) as refusal:
        request.resumed(study, progress)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_study_is_resumed_as_what_it_is() -> None:
    """train.py trained the first trial of a study alone, and a study's program gave a training to Ray Tune."""
    clip = {"optimizer.agc.clip_factor": (0.01, 0.02)}
    study = Study("many", "?", published_recipe("nfnet_pico"), clip)
    with pytest.raises(
        UserError, match="many is a study and not a training run: resume it with the program that"
    ):
        TrainingRequest(resume="many").resumed(study, study.waiting_state())
    training = StudyState()
    told: Any = {"name": "one", "checkpoints": None, **replace(study, space={}).description()}
    training.apply(study_started(told, []))
    with pytest.raises(UserError, match="many is a training run: resume it with"):
        StudyRequest(program=StudyProgram(Study), resume="many").resumed(study, training)
