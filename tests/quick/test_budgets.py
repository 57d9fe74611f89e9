"""Studies of trials that train for different numbers of epochs, and of points of which only a part is asked about."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.digits import describe_digits
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import published_recipe
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.added_trials import reruns_of
from nfnet_ray.study.cost.probe_process import Probe
from nfnet_ray.study.decisions import ends, groups, most_epochs
from nfnet_ray.study.differences import differing_fields
from nfnet_ray.study.halving import Halving, with_schedule_of
from nfnet_ray.study.space.asked import asked_points
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.swept import beside_the_question, swept_fields
from studies.efficientnet_baselines import NETWORKS, SHARES, SMALL_NETWORKS, efficientnet_baselines
from studies.running.flags import main
from tests.quick.test_decisions import Simulation

NAME, EPOCHS, RATE, DECAY = (
    "model.name",
    "schedule.epochs",
    "schedule.base_learning_rate",
    "optimizer.weight_decay",
)
POINTS = (
    {NAME: "nfnet_pico", EPOCHS: 2, RATE: 0.4},
    {NAME: "nfnet_pico", EPOCHS: 8, RATE: 0.4},
    {NAME: "test_resnet", EPOCHS: 4, RATE: 0.1, DECAY: 1e-4},
)
DIGITS = describe_digits(Path("data") / "digits")
PROBE = Probe(1.0, 1.0, (0.1, 0.1), images=64, image_size=32, eval_seconds=1.0, eval_images=360)
IMAGENET = DatasetSummary(Path("imagenet"), 1_281_167, 50_000, ("tench", "goldfish"), "f", None)


def study() -> Study:
    recipe = Recipe().with_values(
        {NAME: "nfnet_pico", EPOCHS: 8, "schedule.warmup_epochs": 0.5, "batch_size": 64}
    )
    return Study(
        "budgets", "what does time buy?", recipe, {}, points=POINTS, asked=(NAME, EPOCHS), seeds=(0, 1)
    )


def test_each_trial_trains_for_its_own_number_of_epochs() -> None:
    made = study()
    assert [trial.recipe.schedule.epochs for trial in made.trials()] == [2, 8, 4] * 2
    assert sorted(set(ends(made).values())) == [2, 4, 8]
    assert [len(group.trials) for group in groups(made)] == [2, 2, 2]
    assert most_epochs(made) == 8
    end = Simulation(made, {trial.name: [0.5] * 8 for trial in made.trials()}).run(2, random.Random(0))
    assert {name: trial.epoch for name, trial in end.trials.items()} == ends(made)
    assert {trial.state for trial in end.trials.values()} == {"finished"}


def test_what_is_not_asked_about_is_in_the_recipe_and_in_no_name() -> None:
    made = study()
    last = made.trials()[2]
    assert last.name == "name=test-resnet,epochs=4,seed=0"
    assert (last.recipe.schedule.base_learning_rate, last.recipe.optimizer.weight_decay) == (0.1, 1e-4)
    assert made.trials()[0].recipe.optimizer.weight_decay == made.recipe.optimizer.weight_decay
    assert last.point == {NAME: "test_resnet", EPOCHS: 4}
    assert made.plan(last) == {
        "name": last.name,
        "point": last.point,
        "recipe": {**POINTS[2], "seed": 0},
    }
    assert made.fields == (NAME, EPOCHS)


def test_the_journal_gives_the_study_again() -> None:
    made = study()
    told = {"name": made.name, **made.description()}
    event: StudyStarted = json.loads(
        json.dumps(
            {"event": "study_started", "study": told, "trials": [made.plan(trial) for trial in made.trials()]}
        )
    )
    again = Study.from_event(event)
    assert differing_fields(again, made) == []
    assert [trial.recipe for trial in again.trials()] == [trial.recipe for trial in made.trials()]
    assert [trial.name for trial in again.trials()] == [trial.name for trial in made.trials()]
    assert swept_fields(event["study"]) == (NAME, EPOCHS)
    # Where runs are compared, the values count that nobody asks about.
    assert beside_the_question(event["study"], DECAY) == [made.recipe.optimizer.weight_decay] * 2 + [1e-4]
    assert beside_the_question(event["study"], EPOCHS) == []


def test_a_rerun_has_what_goes_with_its_point() -> None:
    made = replace(study(), confirm=2)
    reruns = reruns_of(made, {NAME: "test_resnet", EPOCHS: 4}, made.waiting_state())
    assert [trial.recipe.optimizer.weight_decay for trial in reruns] == [1e-4, 1e-4]
    assert [trial.recipe.schedule.epochs for trial in reruns] == [4, 4]
    assert not {trial.recipe.seed for trial in reruns} & {0, 1}


def test_a_field_that_is_set_is_fixed_for_all_points() -> None:
    recipe = study().recipe.with_values({RATE: 0.2})
    points = asked_points(POINTS, recipe, {RATE: 0.2}, {})
    assert [point[RATE] for point in points] == [0.2] * 3
    made = replace(study(), recipe=recipe, points=points)
    assert {trial.recipe.schedule.base_learning_rate for trial in made.trials()} == {0.2}


def test_points_that_become_the_same_training_are_one() -> None:
    recipe = study().recipe.with_values({DECAY: 1e-3})
    points = [{}, {RATE: 0.2}, {DECAY: 1e-4}, {RATE: 0.3}]
    assert asked_points(points, recipe, {DECAY: 1e-3}, {}) == ({}, {RATE: 0.2}, {RATE: 0.3})


def test_trials_of_different_length_are_not_compared_early() -> None:
    with pytest.raises(UserError, match=r"schedule\.epochs is swept: use --early-stopping none"):
        replace(study(), halving=Halving())
    with pytest.raises(UserError, match=r"schedule\.epochs is swept"):
        Study("s", "?", Recipe(), {EPOCHS: (2, 4)}, halving=Halving())
    assert [
        trial.recipe.schedule.epochs for trial in Study("s", "?", Recipe(), {EPOCHS: (8, 16)}).trials()
    ] == [8, 16]


def test_points_that_the_question_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"points 1 and 2 of the study are the same in all that is asked about"
    ):
        replace(study(), asked=(NAME,))
    with pytest.raises(UserError, match="plain list of points"):
        Study("s", "?", Recipe(), {RATE: (0.1, 0.4)}, asked=(RATE,))


@pytest.mark.parametrize("data", [DIGITS, IMAGENET], ids=["digits", "imagenet"])
@pytest.mark.parametrize("epochs", [None, 24])
def test_the_baselines_have_the_recipe_of_their_own_family(data: DatasetSummary, epochs: int | None) -> None:
    made = efficientnet_baselines(data, epochs)
    networks = SMALL_NETWORKS if data is DIGITS else NETWORKS
    assert len(made.trials()) == len(networks) * len(SHARES) * len(made.seeds)
    for trial in made.trials():
        published = published_recipe(trial.recipe.model.name)
        longest = max(point[EPOCHS] for point in made.points or () if point[NAME] == trial.recipe.model.name)
        if data is IMAGENET and epochs is None:
            assert longest == published.schedule.epochs
        expected = with_schedule_of(published, trial.recipe.schedule.epochs).to_values()
        own = trial.recipe.to_values()
        changed = {name for name, value in expected.items() if own[name] != value}
        of_the_data = {"data.path", "seed"} | (
            {"data.crop_padding", "data.flip", "batch_size", RATE} if data is DIGITS else set()
        )
        if data is DIGITS:  # the same factor for all
            assert own[RATE] == 16 * expected[RATE]
        if trial.recipe.model.name == "nfnet_pico":  # in so few steps AGC would hold them at 0
            assert own["model.overrides.skip_gain"] is False
            changed.remove("model.overrides.skip_gain")
        assert changed - {"memory_format", "grouped_convolutions"} <= of_the_data
        assert own["memory_format"] == own["grouped_convolutions"] == "auto"
    assert {point[NAME] for point in made.points or ()} == set(networks)


@pytest.mark.parametrize(("epochs", "budgets"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3})])
def test_a_rehearsal_of_the_baselines_has_each_budget_once(epochs: int, budgets: set[int]) -> None:
    made = efficientnet_baselines(DIGITS, epochs)
    assert {point[EPOCHS] for point in made.points or ()} == budgets
    assert len(made.points or ()) == len(budgets) * len(SMALL_NETWORKS)


def test_more_seeds_are_for_every_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings of a short budget are never the best, so contenders alone would be the longest ones."""
    monkeypatch.setattr("studies.running.planning.plan_text.probe_at_once", lambda *_: PROBE)
    program = Path("studies") / "efficientnet_baselines.py"
    assert main(efficientnet_baselines, program, ["--plan", "--seeds", "2"]) == 0
    assert f"{len(SMALL_NETWORKS) * len(SHARES) * 2} trials of 3 networks" in capsys.readouterr().out
