"""An exported study says what the study's own folder says, and nothing of the machine that it ran on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dashboards.report import write_report
from nfnet_ray.analysis import best_per_stratum, load_study
from nfnet_ray.analysis.files.exported import STUDY_FILE
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.descriptions import TrialPlan
from nfnet_ray.tracking.events import (
    confirmation_planned,
    contenders_chosen,
    epoch_ended,
    study_ended,
    study_started,
    trial_ended,
    trial_paused,
    trial_started,
)
from nfnet_ray.tracking.journal import Journal
from studies.managing.commands import main
from tests.tracking.example_study import study_started as example_started

IMAGES, EPOCHS = 37, 4
CLIP, RHO = "optimizer.agc.clip_factor", "optimizer.sam.rho"
POINTS = [{CLIP: 0.01, RHO: 0.05}, {CLIP: None, RHO: 0.1}, {CLIP: 0.04, RHO: None}, {CLIP: 0.08, RHO: 0.2}]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A study of four trials: finished, stopped at a rung, diverged, not started."""
    space = {CLIP: [0.01, None, 0.04, 0.08], RHO: [0.05, 0.1, None, 0.2]}
    study: Any = json.loads(json.dumps(example_started(space)["study"]))
    study["name"] = "mine"
    study["data"] |= {"path": "/home/somebody/data/digits", "validation_images": IMAGES}
    study["command"] = "/usr/bin/python studies/sweep.py --data /home/somebody/data/digits --storage=../runs"
    study["recipe"] |= {"data.path": "/home/somebody/data/digits"}
    plans: list[TrialPlan] = [
        {"name": f"trial{number}", "point": point, "recipe": point} for number, point in enumerate(POINTS)
    ]
    (tmp_path / "store" / "mine").mkdir(parents=True)
    draw = np.random.default_rng(0)
    with Journal(tmp_path / "store" / "mine" / "journal.jsonl") as journal:
        journal.append(study_started(study, plans))
        for name, epochs, state in (
            ("trial0", 4, "finished"),
            ("trial1", 2, "stopped"),
            ("trial2", 1, "diverged"),
        ):
            journal.append(trial_started(name, 1))
            for epoch in range(1, epochs + 1):
                correct = draw.random(IMAGES) < 0.6
                measured = np.arange(IMAGES) != 5
                text = CorrectImages(correct & measured, measured).to_text() if epoch in (2, 4) else None
                metrics = {
                    METRIC: float(correct.mean()),
                    "validation_loss": draw.random(),
                    "train_seconds": 1.5 * epoch,
                }
                event = epoch_ended(name, epoch, metrics)
                if text:
                    event["correct_images"] = text
                journal.append(event)
                if epoch == 2:
                    journal.append(trial_paused(name, 2))
            journal.append(trial_ended(name, state, "why", epochs))  # type: ignore[arg-type]
        journal.append(study_ended("finished", 12.0))
    return tmp_path / "store"


@pytest.fixture
def exported(storage: Path, tmp_path: Path) -> Path:
    assert main(["export", "mine", str(tmp_path / "out"), "--storage", str(storage)]) == 0
    return tmp_path / "out"


def test_it_is_read_as_the_study_is(storage: Path, exported: Path) -> None:
    own, other = load_study(storage / "mine"), load_study(exported)
    pd.testing.assert_frame_equal(own.trials, other.trials, rtol=1e-5)
    pd.testing.assert_frame_equal(own.epochs, other.epochs[own.epochs.columns], rtol=1e-5)
    assert own.correct_images == other.correct_images
    assert own.pauses == other.pauses
    assert (own.state, own.wall_seconds) == (other.state, other.wall_seconds)
    assert [best.sentence() for best in best_per_stratum(own)] == [
        best.sentence() for best in best_per_stratum(other)
    ]


def test_the_files_are_read_without_this_library(exported: Path) -> None:
    trials = pd.read_csv(exported / "trials.csv")
    assert trials[CLIP].tolist() == ["0.01", "none", "0.04", "0.08"]
    assert trials["state"].tolist() == ["finished", "stopped", "diverged", "not started"]
    epochs = pd.read_csv(exported / "epochs.csv")
    assert epochs.groupby("trial").size().to_dict() == {"trial0": 4, "trial1": 2, "trial2": 1}
    bits = np.load(exported / "bits.npz")
    assert list(zip(bits["trial"], bits["epoch"], strict=True)) == [
        ("trial0", 2),
        ("trial0", 4),
        ("trial1", 2),
    ]
    correct, measured = (np.unpackbits(bits[name], axis=1, count=IMAGES) for name in ("correct", "measured"))
    assert measured.sum(axis=1).tolist() == [IMAGES - 1] * 3
    assert correct.shape == (3, IMAGES)
    assert json.loads((exported / STUDY_FILE).read_text())["started"]["study"]["name"] == "mine"


def test_it_has_a_report(exported: Path) -> None:
    page = write_report(exported)
    assert page == exported / "report.html"
    text = page.read_text()
    assert "Best setting: clip_factor 0.01" in text
    assert "Idle time" not in text


def test_nothing_of_the_machines_folders_is_in_it(exported: Path) -> None:
    text = (exported / STUDY_FILE).read_text()
    assert "somebody" not in text
    assert "python studies/sweep.py --data digits --storage=runs" in text


def test_anything_but_an_export_is_one_line(
    exported: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (exported / "bits.npz").unlink()
    with pytest.raises(UserError, match="is not an exported study that can be read"):
        load_study(exported)
    assert main(["export", "mine", str(storage / "mine"), "--storage", str(storage)]) == 2
    assert "is a study's own folder" in capsys.readouterr().err


def test_contenders_dropped_settings_and_reruns_are_kept(tmp_path: Path) -> None:
    """Also those of an earlier winner, which take part in no answer any more."""
    study: Any = json.loads(json.dumps(example_started({CLIP: [0.01, 0.04]})["study"]))
    study |= {"name": "mine", "more_seeds": [1], "confirm": 1, "places": 2}
    study["data"] |= {"validation_images": IMAGES}
    plans: list[TrialPlan] = [
        {"name": f"trial{clip}", "point": {CLIP: clip}, "recipe": {}} for clip in (0.01, 0.04)
    ]
    seed1: TrialPlan = {"name": "trial0.04,seed=1", "point": {CLIP: 0.04}, "recipe": {"seed": 1}}
    reruns: list[TrialPlan] = [
        {"name": f"rerun{clip}", "point": {CLIP: clip}, "recipe": {"seed": 1000}} for clip in (0.01, 0.04)
    ]
    (tmp_path / "store" / "mine").mkdir(parents=True)
    draw = np.random.default_rng(0)

    def trained(plan: TrialPlan) -> None:
        journal.append(trial_started(plan["name"], 1))
        event = epoch_ended(plan["name"], 1, {METRIC: draw.random(), "train_seconds": 1.5})
        event["correct_images"] = CorrectImages(draw.random(IMAGES) < 0.6, np.full(IMAGES, True)).to_text()
        journal.append(event)
        journal.append(trial_ended(plan["name"], "finished", None, 1))

    with Journal(tmp_path / "store" / "mine" / "journal.jsonl") as journal:
        journal.append(study_started(study, plans))
        for plan in plans:
            trained(plan)
        journal.append(contenders_chosen([seed1], {"trial0.01": "3 points below the best"}))
        trained(seed1)
        journal.append(confirmation_planned(reruns[:1]))
        trained(reruns[0])
        journal.append(confirmation_planned(reruns[1:], [reruns[0]["name"]]))
        trained(reruns[1])
        journal.append(study_ended("finished", 12.0))
    assert main(["export", "mine", str(tmp_path / "out"), "--storage", str(tmp_path / "store")]) == 0

    own, other = load_study(tmp_path / "store" / "mine"), load_study(tmp_path / "out")
    assert own.reruns is not None
    assert own.left_out is not None
    assert other.reruns is not None
    assert other.left_out is not None
    assert (own.further, own.dropped) == (other.further, other.dropped) == ({seed1["name"]}, own.dropped)
    assert list(own.dropped) == ["trial0.01"]
    for mine, read in (
        (own.trials, other.trials),
        (own.reruns, other.reruns),
        (own.left_out, other.left_out),
    ):
        pd.testing.assert_frame_equal(mine, read, rtol=1e-5)
    assert own.correct_images == other.correct_images
    assert [best.sentence() for best in best_per_stratum(own)] == [
        best.sentence() for best in best_per_stratum(other)
    ]
    assert own.idle is not None
    assert other.idle is None, "an export does not say when its trials began"
