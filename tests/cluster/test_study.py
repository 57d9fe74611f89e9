"""A study's trials, their names and order, and what a journal remembers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe, RecipeError
from nfnet_ray.study.cost.plan import check_trials, estimate_cost, training_multiply_adds
from nfnet_ray.study.epochs_done import note_progress
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.live.display import StudyDisplay, reported_epochs, trial_table
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.journal import Journal
from nfnet_ray.tracking.state import StudyState

SPACE = {"optimizer.agc.clip_factor": (0.01, 0.16, None), "batch_size": (64, 256)}
RECIPE = Recipe().with_values({"model.name": "nfnet_pico", "schedule.epochs": 8})


def test_trials_cover_the_space_condition_by_condition_and_seed_by_seed() -> None:
    trials = Study("s", "?", RECIPE, SPACE, seeds=(0, 1)).trials()
    assert [trial.name for trial in trials[:4]] == [
        "clip_factor=0.01,batch_size=64,seed=0",
        "clip_factor=0.16,batch_size=64,seed=0",
        "clip_factor=none,batch_size=64,seed=0",
        "clip_factor=0.01,batch_size=256,seed=0",
    ]
    assert len(trials) == 12
    assert {trial.stratum for trial in trials} == {
        f"batch_size={batch},seed={seed}" for batch in (64, 256) for seed in (0, 1)
    }
    last = trials[-1].recipe
    assert (last.optimizer.agc.clip_factor, last.batch_size, last.seed) == (None, 256, 1)


def test_a_space_with_a_wrong_or_repeated_value_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.agc\.clip_factor = -1"):
        Study("s", "?", RECIPE, {"optimizer.agc.clip_factor": (0.01, -1)}).trials()
    with pytest.raises(UserError, match="twice"):
        Study("s", "?", RECIPE, {"batch_size": (64, 64)}).trials()


def test_a_study_survives_its_journal(tmp_path: Path) -> None:
    study = Study("s", "?", RECIPE, SPACE, seeds=(0, 1), halving=Halving(2, 3.0), trial_limit=5)
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(started_event(study))
    progress, started = StudyState.read(tmp_path)
    assert Study.from_event(started) == study
    assert progress.unfinished == [trial.name for trial in study.trials()]


def test_a_limit_counts_settings_and_each_has_all_seeds() -> None:
    study = Study("s", "?", RECIPE, SPACE, seeds=(0, 1, 2), trial_limit=2)
    assert [trial.name for trial in study.trials()] == [
        f"clip_factor={factor},batch_size=64,seed={seed}" for seed in (0, 1, 2) for factor in (0.01, 0.16)
    ]
    # Earlier versions counted trials, and a journal of theirs is resumed with the trials that it names.
    event = started_event(study)
    event["trials"] = event["trials"][:2]
    before = Study.from_event(event)
    assert [trial.name for trial in before.trials()] == [trial.name for trial in study.trials()[:2]]


def test_trials_are_named_as_in_journals_of_earlier_versions() -> None:
    space = {"model.name": ("nfnet_pico", "nfnet_nano"), "batch_size": (64,)}
    names = [trial.name for trial in Study("s", "?", RECIPE, space).trials()]
    assert names == ["name=nfnet-pico,batch_size=64", "name=nfnet-nano,batch_size=64"]


def started_event(study: Study) -> Any:
    return {
        "event": "study_started",
        "time": 0.0,
        "study": {
            "name": study.name,
            "question": study.question,
            "space": {name: list(values) for name, values in study.space.items()},
            "seeds": list(study.seeds),
            "halving": study.halving_description(),
            "recipe": study.recipe.to_values(),
        },
        "trials": [
            {"name": trial.name, "point": dict(trial.point), "recipe": {}} for trial in study.trials()
        ],
    }


def test_the_cost_counts_arithmetic_and_knows_what_halving_may_save() -> None:
    data = DatasetSummary(Path("digits"), 1437, 360, tuple("0123456789"), "", (32, 32))
    study = Study(
        "s", "?", RECIPE, {"optimizer.agc.clip_factor": (0.01, 0.02, 0.04, 0.08), "batch_size": (64,)}
    )
    cost = estimate_cost(study, study.trials(), data)
    assert cost.images == 4 * 8 * (1437 // 64 * 64)
    of_an_image = training_multiply_adds(RECIPE, 10)
    assert cost.multiply_adds == cost.least_multiply_adds == pytest.approx(cost.images * of_an_image)
    halved = Study("s", "?", RECIPE, study.space, halving=Halving(2, 2.0, finalists=1))
    least = estimate_cost(halved, halved.trials(), data).least_multiply_adds / of_an_image
    assert least == pytest.approx(
        (2 + 2 + 4 + 8) * (1437 // 64 * 64)
    )  # rungs at 2 and 4: four trials, two, one
    assert cost.parameters == 192_703


def test_the_table_says_how_many_damaged_images_were_left_out() -> None:
    study = Study("s", "?", RECIPE, {"batch_size": (64,)})
    progress = study.waiting_state()

    def shown() -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(trial_table(study, progress, reported_epochs))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    metrics = {METRIC: 0.5, "damaged_train_images": 0, "damaged_validation_images": 0}
    for epoch, damaged in ((1, 0), (2, 3)):
        metrics["damaged_train_images"] = damaged
        event: Any = {
            "event": "epoch",
            "time": 0.0,
            "trial": "batch_size=64",
            "epoch": epoch,
            "metrics": metrics,
        }
        progress.apply(event)
        assert ("without 3 damaged images" in shown()) == bool(damaged)


@pytest.mark.parametrize(
    ("noted", "shown"),
    [(None, "1/8"), (1.43, "1.4/8"), (0.9, "1/8"), (5.2, "1.9/8")],
    ids=["nothing noted yet", "within the epoch", "of the epoch before", "of before a restart"],
)
def test_the_display_shows_where_a_trial_is_within_its_epoch(
    tmp_path: Path, noted: float | None, shown: str
) -> None:
    study = Study("s", "?", RECIPE, {"batch_size": (64,)})
    progress = study.waiting_state()
    started: Any = {"event": "trial_started", "time": 0.0, "trial": "batch_size=64", "attempt": 1}
    epoch: Any = {
        "event": "epoch",
        "time": 0.0,
        "trial": "batch_size=64",
        "epoch": 1,
        "metrics": {METRIC: 0.5, "train_seconds": 1.0, "images_per_second": 10.0},
    }
    progress.apply(started)
    if noted is not None:
        note_progress(tmp_path / "batch_size=64", noted)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with StudyDisplay(study, progress, tmp_path, lambda: "footnote", console):
        progress.apply(epoch)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert shown in text
    assert "about" in text
    assert "left" in text


def test_the_trials_of_a_study_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is drawn twice a second asks for them: of 1,000 trials they took seconds each time."""
    study = Study("s", "?", RECIPE, SPACE)
    first = study.trials()
    monkeypatch.setattr(Recipe, "with_values", None)
    assert study.trials() == first
    assert study.trials() is not first


def test_batch_normalisation_over_a_single_pixel_is_refused_before_the_start() -> None:
    data = DatasetSummary(Path("d"), 240, 60, tuple("0123456789"), "f", (32, 32))
    values = {"model.name": "resnet50", "data.image_size": 32, "data.eval_size": 32, "batch_size": 8}

    def check(workers: int, **changed: Any) -> None:
        check_trials(Study("s", "?", RECIPE.with_values(values | changed), {}).trials(), data, workers)

    check(4)
    check(8, **{"data.image_size": 64})
    check(8, **{"model.name": "nfnet_pico"})
    for workers, changed in ((8, {}), (4, {"micro_batches": 2})):
        with pytest.raises(UserError, match="one number for each channel"):
            check(workers, **changed)
