"""What rules of early stopping would have cost and missed on known curves: by hand, and against the real decisions."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nfnet_ray.analysis.record import StudyRecord, load_study
from nfnet_ray.analysis.replay import replay, replay_caution, replay_sentence
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.study import Study
from studies.managing.commands import main
from tests.quick.test_decisions import Simulation
from tests.tracking.example_study import START, study_started, trial_events, write_journal

CLIP, EPOCHS = "optimizer.agc.clip_factor", 9
RECIPE = Recipe().with_values({"schedule.epochs": EPOCHS, "schedule.warmup_epochs": 0.5, "batch_size": 64})


def study_of(settings: int, seeds: int = 1, halving: Halving | None = None) -> Study:
    values = tuple(number / 1000 for number in range(1, settings + 1))
    return Study("s", "which?", RECIPE, {CLIP: values}, seeds=tuple(range(seeds)), halving=halving)


def record_of(
    folder: Path,
    study: Study,
    curves: dict[str, list[float]],
    state: str = "finished",
    cut: str = "diverged",
) -> StudyRecord:
    """The record of a study in which every trial was trained to its end; a shorter one was ``cut``."""
    started = study_started({})
    started["study"] |= study.description()  # type: ignore[typeddict-item]
    started["study"]["data"] |= {"train_images": 50_000, "validation_images": 50_000}
    started["trials"] = [study.plan(trial) for trial in study.trials()]
    events: list[Any] = [json.loads(json.dumps(started))]
    for number, trial in enumerate(study.trials()):
        curve = curves[trial.name]
        how = state if len(curve) == EPOCHS else cut
        events += trial_events(trial.name, START + 100 * number, curve, how, seconds_per_epoch=10)
    events.append({"event": "study_ended", "time": START + 9e4, "state": "finished", "wall_seconds": 9e4})
    write_journal(folder, events)
    return load_study(folder)


def straight(study: Study) -> dict[str, list[float]]:
    """Curves that never cross; the first setting is the best."""
    return {
        trial.name: [(0.9 - 0.05 * number) * epoch / EPOCHS for epoch in range(1, EPOCHS + 1)]
        for number, trial in enumerate(study.trials())
    }


def row(table: pd.DataFrame, rule: str) -> dict[str, Any]:
    found: dict[str, Any] = table.set_index("rule").loc[rule].to_dict()
    return found


def test_costs_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    study = study_of(9)
    table = replay(record_of(tmp_path, study, straight(study)), orders=3)
    assert row(table, "everything")["epochs"] == 9 * EPOCHS
    # Rungs at epochs 1 and 3, of which 3 of 9 continue, and at least 3 finish.
    halved = row(table, "synchronous, eta 3")
    assert halved["epochs"] == 6 * 1 + 3 * EPOCHS
    assert halved["train_seconds"] == pytest.approx(10 * halved["epochs"])
    assert (halved["same"], halved["regret"]) == (1.0, 0.0)
    assert row(table, "best after epoch 4")["epochs"] == 6 * 4 + 3 * EPOCHS
    # A random search with the cost of 33 of 81 epochs has four settings, with twice the cost seven.
    assert row(table, "random")["epochs"] == 4 * EPOCHS
    assert row(table, "random, twice")["epochs"] == 7 * EPOCHS
    assert row(table, "random")["same"] == pytest.approx(4 / 9, abs=0.05)
    # The expected regret of the best of four of nine that are five points apart: the sum of the chances to miss the
    # first k, times five points.
    missed = [5 / 9, 5 * 4 / 72, 5 * 4 * 3 / 504, 5 * 4 * 3 * 2 / 3024, 5 * 4 * 3 * 2 / 15120]
    assert row(table, "random")["regret"] == pytest.approx(0.05 * sum(missed), abs=0.004)


def test_a_winner_that_starts_slowly_is_lost_by_early_stopping(tmp_path: Path) -> None:
    study = study_of(9)
    curves = straight(study)
    late = study.trials()[5].name
    curves[late] = [0.01] * (EPOCHS - 1) + [0.95]
    table = replay(record_of(tmp_path, study, curves), orders=3)
    for rule in ("synchronous, eta 3", "median", "best after epoch 8"):
        assert row(table, rule)["regret"] == pytest.approx(0.05)
        assert row(table, rule)["same"] == 0
    assert "lost 5.0 points by its choice" in replay_sentence(table)


@pytest.mark.parametrize("rule", ["synchronous", "hyperband"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_replay_trains_what_the_study_would_have_trained(tmp_path: Path, rule: Any, seeds: int) -> None:
    draw = random.Random(seeds)
    whole = study_of(12, seeds)
    curves = {
        trial.name: [
            draw.random() for _ in range(EPOCHS if draw.random() > 0.2 else draw.randrange(1, EPOCHS))
        ]
        for trial in whole.trials()
    }
    table = replay(record_of(tmp_path, whole, curves), orders=2)
    real = study_of(12, seeds, Halving(rule=rule))
    padded = {name: [*curve, *[None] * (EPOCHS - len(curve))] for name, curve in curves.items()}
    end = Simulation(real, padded, images=50_000).run(3, random.Random(0))
    epochs = sum(trial.epoch for trial in end.trials.values())
    assert row(table, "synchronous, eta 3" if rule == "synchronous" else "hyperband")["epochs"] == epochs


def test_rules_that_depend_on_the_order_of_arrival_are_tried_in_several_orders(tmp_path: Path) -> None:
    draw = random.Random(0)
    study = study_of(20)
    curves = {trial.name: [draw.random() for _ in range(EPOCHS)] for trial in study.trials()}
    table = replay(record_of(tmp_path, study, curves), orders=10)
    assert {row(table, rule)["orders"] for rule in ("asynchronous, eta 3", "median")} == {10}
    assert row(table, "median")["regret_low"] < row(table, "median")["regret_high"]
    # Whoever is first is promoted among few, and more of them are than the best third.
    assert row(table, "asynchronous, eta 3")["epochs"] > row(table, "synchronous, eta 3")["epochs"]
    assert table.equals(replay(load_study(tmp_path), orders=10))  # the same again


def test_a_journal_of_another_version_can_be_replayed(tmp_path: Path) -> None:
    study = study_of(4)
    expected = replay(record_of(tmp_path, study, straight(study)), orders=2)
    record = load_study(tmp_path)
    del record.study["recipe"]["optimizer.momentum"]
    record.study["recipe"]["model.that_is_gone"] = 3
    assert replay(record, orders=2).equals(expected)


def test_what_cannot_be_replayed_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(4)
    record_of(tmp_path / "s", study, straight(study), state="stopped")
    with pytest.raises(UserError, match="4 settings of 4 were not trained to the end"):
        replay(load_study(tmp_path / "s"))
    assert main(["replay", "s", "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "s cannot be replayed: 4 settings" in said.out + said.err
    assert "--early-stopping none" in said.out + said.err


def test_settings_that_were_stopped_are_left_out_and_the_numbers_are_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two best of eleven were stopped after epoch 2: the others are replayed as a study of nine."""
    nine, eleven = study_of(9), study_of(11)
    theirs = straight(nine)
    curves = {
        trial.name: [0.9, 0.9] if number < 2 else list(theirs.values())[number - 2]
        for number, trial in enumerate(eleven.trials())
    }
    alone = record_of(tmp_path / "nine", nine, theirs).replay()
    record = record_of(tmp_path / "s", eleven, curves, cut="stopped")
    assert record.replay().equals(alone)
    assert main(["replay", "s", "--storage", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 settings of 11 were not trained to the end and are left out" in said


def test_further_seeds_of_contenders_pass_no_rung_and_are_left_out(tmp_path: Path) -> None:
    """Seven of nine settings have a second seed, in which the best one is far behind."""
    once, twice = study_of(9), study_of(9, seeds=2)
    theirs = straight(once)
    further = [trial.name for trial in twice.trials() if trial.recipe.seed]
    first = [trial.name for trial in twice.trials() if not trial.recipe.seed]
    curves = dict(zip(first, theirs.values(), strict=True))
    curves |= {name: [0.5 + 0.01 * number] * EPOCHS for number, name in enumerate(further)}
    alone = record_of(tmp_path / "once", once, theirs).replay()
    record = record_of(tmp_path / "twice", twice, curves)
    dropped = set(further[7:])
    record = replace(
        record,
        trials=record.trials[~record.trials["trial"].isin(dropped)],
        epochs=record.epochs[~record.epochs["trial"].isin(dropped)],
        further=frozenset(further[:7]),
    )
    assert record.replay().equals(alone)
    assert replay_caution(record).startswith("7 further trials of contenders are left out")


def test_a_choice_that_loses_less_than_equal_within_is_not_missed(tmp_path: Path) -> None:
    study = study_of(9)
    curves = straight(study)
    late = study.trials()[5].name
    curves[late] = [0.01] * (EPOCHS - 1) + [0.903]  # the best of those that do not start slowly has 90%
    record = record_of(tmp_path, study, curves)
    found = row(record.replay(), "synchronous, eta 3")
    assert (found["same"], found["missed"]) == (0, 1)
    assert "lost 0.3 points by its choice" in replay_sentence(record.replay())
    record.study["equal_within"] = 0.004
    found = row(record.replay(), "synchronous, eta 3")
    assert (found["same"], found["missed"]) == (0, 0)
    assert "equal in practice (0.3 points less)" in replay_sentence(record.replay(), 0.004)


def test_a_rule_that_costs_what_the_default_costs_is_not_called_cheaper() -> None:
    rows = [("everything", 1.0), ("synchronous, eta 2", 0.9), ("synchronous, eta 3", 0.9)]
    table = pd.DataFrame(rows, columns=["rule", "share"]).assign(same=1.0, missed=0.0, regret=0.0)
    assert replay_sentence(table).endswith("; no other rule is cheaper and within 0.2 points.")


def test_the_command_prints_a_row_for_each_rule_and_a_conclusion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(9)
    record_of(tmp_path / "s", study, straight(study))
    assert main(["replay", "s", "--storage", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "best after epoch 8" in said
    assert (
        "Early stopping (synchronous, eta 3) would have trained 41% of the epochs and chosen the same setting"
        in said
    )
    assert main(["replay", "s", "--storage", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {rule["rule"] for rule in document["rules"]} >= {"everything", "median", "random, twice"}


def test_an_exported_study_can_be_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(Path(__file__).parents[2] / "studies" / "results" / "curves"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    everything = next(rule for rule in document["rules"] if rule["rule"] == "everything")
    assert everything["epochs"] == 47 * 8 + 4  # one diverged
