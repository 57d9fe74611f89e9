"""A plan's numbers: against journals made by hand, and against arithmetic. Takes about two seconds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.baselines import BASELINES
from nfnet_ray.models.published import published_differences, published_recipe, with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.earlier_runs import earlier_trials, kind_of, like, of_schedules
from nfnet_ray.study.cost.forecast import (
    Pace,
    Span,
    checkpoint_bytes,
    complete_schedules,
    forecast,
    pace_of_earlier,
    pace_of_probe,
    rung_table,
)
from nfnet_ray.study.cost.plan import estimate_cost, multiply_adds, training_multiply_adds
from nfnet_ray.study.cost.probe_process import Probe
from nfnet_ray.study.halving import Halving, with_schedule_of
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.trial_progress import TrialProgress
from studies.base_recipe import recipe_for, with_network
from tests.tracking.example_study import CLIP_FACTOR, START, study_started, trial_events, write_journal

DATA = DatasetSummary(Path("x"), 1440, 360, tuple("abcdefghij"), "0", None)
ONE_CORE = {"workers": 1, "cpus": 1, "gpus": 0}
SMALL = {"model.name": "nfnet_pico", "data.image_size": 32, "batch_size": 144}


def write_study(storage: Path, name: str, seconds: tuple[float, ...], **changes: Any) -> None:
    """A study of nfnet_pico with a trial of two epochs for each number of seconds that an epoch takes."""
    factors = tuple(0.01 * number for number in range(1, len(seconds) + 1))
    started: Any = study_started({CLIP_FACTOR: factors}, epochs=2, name=name)
    started["study"]["recipe"] |= SMALL | changes.pop("recipe", {})
    started["study"]["hardware"] |= changes
    events = [started]
    for plan, one in zip(started["trials"], seconds, strict=True):
        events += trial_events(plan["name"], START + 10, (0.1, 0.2), seconds_per_epoch=one)
    write_journal(storage / name, events)


def test_earlier_trials_are_those_of_the_same_kind_on_the_same_hardware(tmp_path: Path) -> None:
    write_study(tmp_path, "like", (40.0, 44.0, 42.0))
    write_study(tmp_path, "larger", (80.0,), recipe={"data.image_size": 48})
    write_study(tmp_path, "elsewhere", (1.0,), description="8 nodes", cpus=256)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "journal.jsonl").write_text("{}\n")
    found = earlier_trials(tmp_path, lambda hardware: hardware["cpus"] == 2)
    assert len(found) == 4
    recipe = Recipe().with_values(SMALL)
    same = like(found, kind_of(recipe, ONE_CORE))
    assert len(same) == 3
    assert not like(found, kind_of(recipe.with_values({"precision": "bfloat16"}), ONE_CORE))
    assert not like(found, kind_of(recipe, ONE_CORE | {"workers": 2}))

    pace = pace_of_earlier(same)
    epoch = multiply_adds(recipe, DATA, 1)
    # The 10% and the 90% quantile of 40, 42 and 44 s, and a tenth of a second of waiting for data.
    assert pace.training.low * epoch == pytest.approx(40.4 + 0.1)
    assert pace.training.high * epoch == pytest.approx(43.6 + 0.1)
    assert pace.eval_seconds * 360 == pytest.approx(1.5)
    assert pace.checkpoint_seconds == pytest.approx(0.2)
    assert pace.first_startup_seconds == pytest.approx(4.2)
    assert (pace.memory_bytes, pace.watts) == (None, None)


def pace_of(seconds_per_epoch: Span, recipe: Recipe, **more: Any) -> Pace:
    epoch = multiply_adds(recipe, DATA, 1)
    return Pace(seconds_per_epoch.times(1 / epoch), 1 / 360, 0.5, 10.0, Span(1.0, 2.0), **more)


@pytest.mark.parametrize("places", [1, 2, 6])
def test_a_forecast_adds_up_epochs_evaluations_checkpoints_and_starts(places: int) -> None:
    recipe = Recipe().with_values(SMALL | {"schedule.epochs": 9, "optimizer.ema.decay": None})
    study = Study("s", "?", recipe, {CLIP_FACTOR: (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)})
    pace = pace_of(Span(8.0, 12.0), recipe, memory_bytes=7e9, watts=250.0)
    told = forecast(study, DATA, dict.fromkeys((trial.name for trial in study.trials()), pace), places)
    one = Span(9 * (8 + 1 + 0.5) + 1, 9 * (12 + 1 + 0.5) + 2)
    begin = 10 - 2  # only the first trial of a place starts a process
    assert told.wall_seconds.low == pytest.approx(begin + 6 / places * one.low)
    assert told.wall_seconds.high == pytest.approx(begin + 6 / places * one.high)
    assert told.trial_seconds.high == pytest.approx(6 * one.high + begin * places)
    assert told.most_wall_seconds == pytest.approx(told.wall_seconds.high)
    assert told.joules is not None
    assert told.joules.low == pytest.approx(250 * 6 * one.low)
    assert told.memory_bytes == 7e9


def test_rungs_let_through_what_the_plan_says_and_cost_that() -> None:
    recipe = Recipe().with_values(SMALL | {"schedule.epochs": 9, "optimizer.ema.decay": None})
    halving = Halving(first_rung=1, eta=3.0, finalists=1)
    study = Study("s", "?", recipe, {CLIP_FACTOR: tuple(0.1 * n for n in range(1, 10))}, halving=halving)
    assert rung_table(study) == [(1, 9), (3, 3), (9, 1)]
    pace = pace_of(Span(10.0, 10.0), recipe)
    told = forecast(study, DATA, dict.fromkeys((trial.name for trial in study.trials()), pace), places=1)
    epochs, legs = 6 * 1 + 2 * 3 + 1 * 9, 6 * 1 + 2 * 2 + 1 * 3
    assert told.trial_seconds.low == pytest.approx(epochs * 11.5 + legs * 1 + 8)
    assert told.most_trial_seconds == pytest.approx(81 * 11.5 + 9 * 2 + 8)


def test_complete_schedules_are_paid_for_one_after_the_other() -> None:
    recipe = Recipe().with_values(SMALL | {"schedule.epochs": 9, "optimizer.ema.decay": None})
    halving = Halving(first_rung=1, eta=3.0, finalists=1, schedule="stretched")
    study = Study("s", "?", recipe, {CLIP_FACTOR: tuple(0.1 * n for n in range(1, 10))}, halving=halving)
    assert rung_table(study) == [(1, 9), (3, 3), (9, 1)]
    assert complete_schedules(study) == 13
    pace = pace_of(Span(10.0, 10.0), recipe)
    told = forecast(study, DATA, dict.fromkeys((trial.name for trial in study.trials()), pace), places=1)
    epochs, legs = 9 * 1 + 3 * 3 + 1 * 9, 9 + 3 + 1
    assert told.trial_seconds.low == pytest.approx(epochs * 11.5 + legs * 1 + 8)
    cost = estimate_cost(study, study.trials(), DATA)
    assert cost.least_multiply_adds == pytest.approx(multiply_adds(recipe, DATA, 1) * epochs)
    assert cost.multiply_adds == pytest.approx(multiply_adds(recipe, DATA, 1) * 9 * 13)


def test_rungs_in_seconds_cost_the_epochs_that_fit_into_them() -> None:
    recipe = Recipe().with_values(SMALL | {"schedule.epochs": 9, "optimizer.ema.decay": None})
    halving = Halving(first_rung=15, eta=3.0, finalists=1, unit="seconds")
    study = Study("s", "?", recipe, {CLIP_FACTOR: tuple(0.1 * n for n in range(1, 10))}, halving=halving)
    assert rung_table(study) == [(15.0, 9), (45.0, 3), (math.inf, 1)]
    pace = pace_of(Span(10.0, 10.0), recipe)
    told = forecast(study, DATA, dict.fromkeys((trial.name for trial in study.trials()), pace), places=1)
    epochs, legs = 6 * 2 + 2 * 5 + 1 * 9, 6 * 1 + 2 * 2 + 1 * 3
    assert told.trial_seconds.low == pytest.approx(epochs * 11.5 + legs * 1 + 8)


def test_the_pace_of_complete_schedules_is_that_of_their_images() -> None:
    """Images grow anew in each schedule: one of two epochs has a small one and a full-size one."""
    growing = {"data.progressive.start_size": 16, "data.progressive.step": 16, "schedule.epochs": 4}
    recipe = Recipe().with_values(SMALL | growing)
    epochs = {
        number: {"train_seconds": 10.0 * number, "schedule_epochs": 2.0 if number <= 2 else 4.0}
        for number in range(1, 7)
    }
    progress = TrialProgress("t", epochs=dict(epochs))
    arithmetic = multiply_adds(with_schedule_of(recipe, 2), DATA, 2) + multiply_adds(recipe, DATA, 4)
    assert of_schedules(recipe, DATA, progress) == pytest.approx(arithmetic)


def test_a_second_evaluation_is_that_of_the_moving_average() -> None:
    recipe = Recipe().with_values(SMALL | {"schedule.epochs": 1, "optimizer.ema.decay": None})
    pace = pace_of(Span(10.0, 10.0), recipe)
    totals = []
    for decay in (None, 0.99):
        study = Study("s", "?", recipe.with_values({"optimizer.ema.decay": decay}), {})
        totals.append(forecast(study, DATA, {study.trials()[0].name: pace}, 1).trial_seconds.low)
    assert totals[1] - totals[0] == pytest.approx(1.0)


def test_a_probe_measures_one_of_several_workers() -> None:
    recipe = Recipe().with_values(SMALL)
    measured = Probe(process_seconds=5.0, startup_seconds=3.0, step_seconds=(9.0, 9.0, 2.0, 2.0))
    assert pace_of_probe(Probe(trouble="killed"), recipe, 10, 1) is None
    measured.take({"step_seconds": 2.0, "images": 72, "image_size": 16}, 20.0)
    measured.take({"eval_seconds": 4.0, "images": 200}, 24.0)
    pace = pace_of_probe(measured, recipe, 10, workers=2)
    assert pace is not None
    assert pace.training.low * 72 * 2 * training_multiply_adds(recipe, 10, 16) == pytest.approx(2.0)
    assert pace.eval_seconds == pytest.approx(4.0 / 200 / 2)
    assert pace.first_startup_seconds == 8.0
    assert pace.later_startup == Span(1.0, 3.0)


@pytest.mark.parametrize(
    ("values", "copies"),
    [
        ({}, 3),  # the weights, the momentum and the moving average
        ({"optimizer.ema.decay": None}, 2),
        ({"optimizer.name": "rmsprop"}, 4),
        ({"optimizer.sam.rho": 0.05, "optimizer.sam.method": "looksam"}, 4),
        ({"precision": "float64"}, 6),
    ],
)
def test_a_checkpoint_has_what_the_optimiser_keeps(values: dict[str, Any], copies: int) -> None:
    assert checkpoint_bytes(Recipe().with_values(values), 1000) == copies * 1000 * 4


@pytest.mark.parametrize("name", ["nfnet_f0", "tf_efficientnet_b0", "resnet50"])
def test_what_differs_from_the_published_recipe_restores_it(name: str) -> None:
    recipe = with_network(recipe_for(DATA, 8), name)
    different = published_differences(recipe)
    assert different
    restored = with_published_values(recipe.with_values(different))
    assert published_differences(restored) == {}
    left_out = {"data.path": "", "memory_format": "auto", "grouped_convolutions": "auto"}
    assert restored.to_values() | left_out == published_recipe(name).to_values() | left_out


def test_a_new_network_without_a_recipe_is_told_where_to_add_one(monkeypatch: pytest.MonkeyPatch) -> None:
    new = replace(BASELINES["resnet50"], name="resnet18")
    monkeypatch.setitem(BASELINES, "resnet18", new)
    with pytest.raises(UserError, match=r"resnet18 has no Recipe: add one to _FAMILIES in .*published\.py"):
        published_recipe("resnet18")


def test_a_network_without_a_published_recipe_is_compared_with_none() -> None:
    assert published_differences(Recipe().with_values({"model.name": "nfnet_pico"})) is None


def test_of_a_study_that_has_begun_only_what_is_left_costs_something() -> None:
    recipe = Recipe().with_values(SMALL | {"schedule.epochs": 9, "optimizer.ema.decay": None})
    halving = Halving(first_rung=1, eta=3.0, finalists=1)
    study = Study("s", "?", recipe, {CLIP_FACTOR: tuple(0.1 * n for n in range(1, 10))}, halving=halving)
    progress = study.waiting_state()
    # Of nine trials two were given up at epoch 1, one has finished, and one waits at epoch 3.
    behind = {0: ("stopped", 1), 1: ("stopped", 1), 2: ("finished", 9), 3: ("paused", 3)}
    for number, (state, epochs) in behind.items():
        trial = progress.trials[study.trials()[number].name]
        trial.state = state
        for epoch in range(1, epochs + 1):
            trial.epochs[epoch] = {"epoch": epoch}
    pace = pace_of(Span(10.0, 10.0), recipe)
    told = forecast(study, DATA, dict.fromkeys(progress.trials, pace), 1, progress)
    # Of the other five, four are given up at epoch 1 and one at epoch 3; the one that waits there need not train.
    assert told.trial_seconds.low == pytest.approx((4 * 1 + 1 * 3) * 11.5 + (4 + 2) * 1 + 8)
    assert told.most_trial_seconds == pytest.approx((5 * 9 + 6) * 11.5 + 6 * 2 + 8)
    cost = estimate_cost(study, study.trials(), DATA, progress)
    assert cost.multiply_adds == pytest.approx(multiply_adds(recipe, DATA, 9) * (5 + 6 / 9))
