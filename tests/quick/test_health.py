"""Each health card appears in a study that was planted to have what it warns of, and not in one without."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dashboards.report import write_report
from nfnet_ray.analysis.health import HealthCard, health_cards, health_lines
from nfnet_ray.analysis.record import StudyRecord, load_study
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.space.sweep_text import parse_sweep
from studies.managing.commands import main
from tests.tracking.example_study import CLIP_FACTOR, START, study_started, trial_events, write_journal

EPOCHS = 9
FACTORS = [0.0025 * 2**number for number in range(9)]  # 0.01, the Recipe's own, is the third


def planted(
    directory: Path,
    curves: Sequence[Sequence[float]],
    states: dict[int, str] | None = None,
    space: dict[str, Any] | None = None,
    **changed: Any,
) -> StudyRecord:
    """The record of a study of clip factors without early stopping, with 50,000 validation images."""
    started: Any = study_started({CLIP_FACTOR: FACTORS[: len(curves)]}, epochs=EPOCHS)
    started["study"] |= {"halving": None} | changed
    started["study"]["space"] |= space or {}
    started["study"]["recipe"]["schedule.warmup_epochs"] = 0.0
    started["study"]["data"] |= {"train_images": 50_000, "validation_images": 50_000}
    events = [started]
    for number, (plan, curve) in enumerate(zip(started["trials"], curves, strict=True)):
        state = (states or {}).get(number, "finished")
        events += trial_events(plan["name"], START + 1000 * number, curve, state, seconds_per_epoch=10.0)
    write_journal(directory, events)
    return load_study(directory)


def flat(*levels: float) -> list[list[float]]:
    return [[level] * EPOCHS for level in levels]


# The best is the fifth of nine, far from the others.
HEALTHY = flat(0.1, 0.2, 0.3, 0.4, 0.9, 0.5, 0.4, 0.3, 0.2)


def card(record: StudyRecord, name: str) -> HealthCard:
    """The only card of that name."""
    (found,) = [card for card in health_cards(record) if card.name == name]
    return found


def swept(found: HealthCard) -> tuple[str, Any]:
    """What the command of a card sweeps, as the command line reads it."""
    words = shlex.split(found.command)
    assert words[:4] == ["python", "studies/agc_sweep.py", "--extend", "agc_sweep"]
    return parse_sweep(words[words.index("--sweep") + 1])


def test_a_healthy_study_has_good_cards_alone(tmp_path: Path) -> None:
    cards = health_cards(planted(tmp_path, HEALTHY))
    assert {card.name for card in cards} == {
        "edge of the space",
        "effect",
        "lost trials",
        "own values",
        "early stopping",
    }
    assert {card.status for card in cards} == {"good"}
    assert {card.command for card in cards} == {""}
    [(line, command)] = health_lines(cards)
    assert line.startswith("GOOD: nothing looks wrong; checked: edge of the space, effect,")
    assert command == ""


@pytest.mark.parametrize(
    ("levels", "side", "domain"),
    [
        ((0.9, 0.5, 0.4, 0.3), "smallest", (0.00125, *FACTORS[:4])),
        ((0.3, 0.4, 0.5, 0.9), "largest", (*FACTORS[:4], 0.04)),
    ],
)
def test_an_optimum_at_the_edge_has_the_line_that_widens_the_space(
    tmp_path: Path, levels: tuple[float, ...], side: str, domain: tuple[float, ...]
) -> None:
    found = card(planted(tmp_path, flat(*levels)), "edge of the space")
    assert (found.status, swept(found)) == ("look", (CLIP_FACTOR, domain))
    assert f"The best clip_factor is the {side} that was tried" in found.sentence


def test_an_optimum_at_the_edge_of_a_range(tmp_path: Path) -> None:
    space = {CLIP_FACTOR: {"low": 0.0025, "high": 0.04, "log": True, "integer": False, "or_none": False}}
    found = card(planted(tmp_path, flat(0.1, 0.2, 0.3, 0.4, 0.9), space=space), "edge of the space")
    assert found.command.endswith(f"--sweep {CLIP_FACTOR}=log:0.0025..0.16")
    inside = planted(tmp_path / "inside", flat(0.1, 0.2, 0.9, 0.4, 0.3), space=space)
    assert card(inside, "edge of the space").status == "good"


def test_values_that_were_left_out_are_named_before_new_ones(tmp_path: Path) -> None:
    """``--trials`` runs the first settings alone: the best of them may be the last, well within the space."""
    space = {CLIP_FACTOR: FACTORS[:6]}
    found = card(planted(tmp_path, flat(0.3, 0.4, 0.5, 0.9), space=space), "edge of the space")
    assert found.sentence == (
        "The best clip_factor is the largest that was tried; 0.04 and 0.08 lie beyond it and were left out."
    )
    assert (found.status, found.command.split()[-2:]) == ("look", ["--trials", "6"])
    inside = planted(tmp_path / "inside", flat(0.3, 0.4, 0.9, 0.5), space=space)
    assert card(inside, "edge of the space").status == "good"


def test_a_study_of_its_first_settings_is_told_how_many_of_a_wider_space_it_is_to_have(
    tmp_path: Path,
) -> None:
    """--extend refuses another space without --trials, where a study has a part of its own alone."""
    space = {CLIP_FACTOR: FACTORS[:4], "optimizer.sam.rho": [None, 0.05]}
    found = card(planted(tmp_path, flat(0.9, 0.5, 0.4, 0.3), space=space), "edge of the space")
    assert found.command.split()[-2:] == ["--trials", "10"]


def test_a_single_setting_is_neither_at_an_edge_nor_unbeaten(tmp_path: Path) -> None:
    recipe = Recipe().with_values({CLIP_FACTOR: FACTORS[0], "schedule.epochs": EPOCHS}).to_values()
    cards = health_cards(planted(tmp_path, flat(0.9), space={CLIP_FACTOR: FACTORS}, recipe=recipe))
    assert [one.name for one in cards if one.status != "good"] == []


def conditional(directory: Path, best: float, ended: bool = True) -> StudyRecord:
    """Three factors at each of three batch sizes, of which the last trial may still run."""
    started = study_started({CLIP_FACTOR: (0.01, 0.02, 0.04), "batch_size": (64, 128, 256)}, epochs=EPOCHS)
    started["study"]["halving"] = None
    started["study"]["command"] = "python studies/agc_sweep.py --storage '/data/my runs' --seeds 1"
    events: list[Any] = [started]
    for number, plan in enumerate(started["trials"]):
        curve = [0.9 if plan["point"][CLIP_FACTOR] == best else 0.4] * EPOCHS
        events += trial_events(plan["name"], START + 1000 * number, curve)
    write_journal(directory, events if ended else events[:-1])
    return load_study(directory)


def test_strata_with_optima_at_both_ends_are_counted_apart(tmp_path: Path) -> None:
    best_at = {64: 0.04, 128: 0.04, 256: 0.01}
    started = study_started({CLIP_FACTOR: (0.01, 0.02, 0.04), "batch_size": tuple(best_at)}, epochs=EPOCHS)
    started["study"]["halving"] = None
    events: list[Any] = [started]
    for number, plan in enumerate(started["trials"]):
        is_best = plan["point"][CLIP_FACTOR] == best_at[plan["point"]["batch_size"]]
        events += trial_events(plan["name"], START + 1000 * number, [0.9 if is_best else 0.4] * EPOCHS)
    write_journal(tmp_path, events)
    found = card(load_study(tmp_path), "edge of the space")
    assert found.sentence.startswith("The best clip_factor is the largest that was tried in 2 of 3 strata,")
    assert swept(found) == (CLIP_FACTOR, (0.01, 0.02, 0.04, 0.08))


def test_an_end_is_no_inside(tmp_path: Path) -> None:
    """Of a journal of an earlier version, whose Recipe lacks a field, and of a field that has no value beyond."""
    recipe = Recipe().with_values({"schedule.epochs": EPOCHS}).to_values()
    del recipe["signal_epochs"]
    older = planted(tmp_path / "older", flat(0.3, 0.4, 0.9), recipe=recipe)
    assert card(older, "edge of the space").status == "look"
    started = study_started({"model.dropout": (0.0, 0.2, 0.4)}, epochs=EPOCHS)
    started["study"]["halving"] = None
    events: list[Any] = [started]
    for plan, level in zip(started["trials"], (0.9, 0.8, 0.7), strict=True):
        events += trial_events(plan["name"], START, [level] * EPOCHS)
    write_journal(tmp_path / "dropout", events)
    found = card(load_study(tmp_path / "dropout"), "edge of the space")
    assert found.status == "good"
    assert found.sentence.endswith("or at an end beyond which no value is allowed: dropout 0.")


def test_conditions_have_no_edge_and_a_study_that_runs_has_none_yet(tmp_path: Path) -> None:
    inside = conditional(tmp_path / "inside", best=0.02)
    assert card(inside, "edge of the space").status == "good"
    running = conditional(tmp_path / "running", best=0.01, ended=False)
    assert [one for one in health_cards(running) if one.name == "edge of the space"] == []


def test_the_next_step_finds_the_study_where_it_is_stored(tmp_path: Path) -> None:
    found = card(conditional(tmp_path, best=0.01), "edge of the space")
    words = [
        "python",
        "studies/agc_sweep.py",
        "--storage",
        "/data/my runs",
        "--extend",
        "agc_sweep",
        "--sweep",
    ]
    assert shlex.split(found.command) == [*words, f"{CLIP_FACTOR}=0.005,0.01,0.02,0.04"]


def test_the_next_step_of_a_study_from_python_is_a_call(tmp_path: Path) -> None:
    """The script that called is no program of a study: with these flags it would do all that it does again."""
    source = {"file": "", "user": "", "branch": "", "repository": ""}
    changed = {"command": "python mine.py", "source": source}
    levels = flat(0.9, 0.5, 0.4, 0.3)
    found = card(planted(tmp_path / "one", levels, **changed), "edge of the space")
    values = "0.00125,0.0025,0.005,0.01,0.02"
    assert found.command == f"nfnet_ray.run(extend='agc_sweep', sweep={{'{CLIP_FACTOR}': '{values}'}})"
    lost = planted(tmp_path / "lost", levels, dict.fromkeys(range(4), "failed"), **changed)
    assert card(lost, "lost trials").command == "nfnet_ray.run(resume='agc_sweep')"


def test_no_effect(tmp_path: Path) -> None:
    found = card(planted(tmp_path, flat(0.5, 0.5005, 0.501, 0.5, 0.4995)), "effect")
    assert found.status == "look"
    assert found.command.endswith("--extend agc_sweep --seeds 3,all")
    assert found.sentence.startswith("No effect of clip_factor can be seen")


def test_the_best_of_equal_values_has_no_effect_though_it_is_ahead_of_the_unluckiest(tmp_path: Path) -> None:
    """As if the two had been named beforehand, the interval of their difference would lie above 0."""
    levels = (0.5, 0.503, 0.498, 0.5075, 0.501, 0.496)
    found = card(planted(tmp_path, flat(*levels)), "effect")
    assert (found.status, found.command[-6:]) == ("look", " 3,all")
    assert found.sentence.startswith(
        "No effect of clip_factor can be seen: of equal values the best is as far"
    )
    told = card(planted(tmp_path / "told", flat(*levels[:-1], 0.46)), "effect")
    assert told.status == "good"
    assert told.sentence.endswith("from others, with an assumed spread between seeds of 0.3 points.")


def test_values_that_a_rung_gave_up_by_luck_have_no_effect(tmp_path: Path) -> None:
    halving = {"grace_epochs": 3, "reduction_factor": 3, "rule": "synchronous", "finalists": 3}
    for name, given_up, status in (("luck", 0.496, "look"), ("worse", 0.4, "good")):
        curves = [*flat(0.5, 0.501, 0.5), *([given_up] * 3 for _ in range(3))]
        record = planted(tmp_path / name, curves, dict.fromkeys((3, 4, 5), "stopped"), halving=halving)
        assert card(record, "effect").status == status


def test_an_effect_of_another_field_is_not_that_of_the_one_in_question(tmp_path: Path) -> None:
    """Of a search over several ranges no two settings have the same value."""
    ranges = {
        name: {"low": low, "high": high, "log": False, "integer": False, "or_none": False}
        for name, low, high in ((CLIP_FACTOR, 0.01, 0.3), ("model.dropout", 0.0, 0.8))
    }
    factors = [0.01 + 0.025 * number for number in range(12)]
    started: Any = study_started({CLIP_FACTOR: factors, "model.dropout": (0.0,)}, epochs=EPOCHS)
    started["study"] |= {"halving": None, "space": ranges}
    for number, plan in enumerate(started["trials"]):
        for values in (plan["point"], plan["recipe"]):
            values["model.dropout"] = number * 5 % 12 / 20
    for by, status in (("model.dropout", "look"), (CLIP_FACTOR, "good")):
        events: list[Any] = [started]
        for number, plan in enumerate(started["trials"]):
            curve = [0.9 - plan["point"][by] + 0.001 * (number * 7 % 5)] * EPOCHS
            events += trial_events(plan["name"], START + 1000 * number, curve)
        write_journal(tmp_path / by, events)
        found = card(load_study(tmp_path / by), "effect")
        assert found.status == status
        assert ("beside the noise and the effects of other" in found.sentence) == (status == "look")


@pytest.mark.parametrize(
    ("last", "status"),
    [((0.9, 0.8, 0.7, 0.6, 0.5), "bad"), ((0.5, 0.6, 0.7, 0.8, 0.9), "good"), ((0.9, 0.8, 0.7, 0.6), None)],
)
def test_rungs_that_disagree(tmp_path: Path, last: tuple[float, ...], status: str | None) -> None:
    """Some finish, in the order of the first rung or in the opposite one; of four nothing is said."""
    curves = [[0.4 + 0.1 * number] * (EPOCHS - 1) + [end] for number, end in enumerate(last)]
    curves += [[0.1 * number] * 3 for number in range(3)]
    halving = {"grace_epochs": 3, "reduction_factor": 3, "rule": "synchronous", "finalists": 3}
    states = dict.fromkeys(range(len(last), len(curves)), "stopped")
    record = planted(tmp_path, curves, states, halving=halving)
    if status is None:
        assert [one for one in health_cards(record) if one.name == "rungs"] == []
        return
    found = card(record, "rungs")
    assert found.status == status
    assert found.command.endswith("--early-stopping none") == (status == "bad")


def test_the_order_of_three_trials_of_a_stratum_says_nothing(tmp_path: Path) -> None:
    """The study of the README: six trials finish in all, three at each batch size, in the opposite order."""
    started = study_started({CLIP_FACTOR: FACTORS[:5], "batch_size": (64, 256)}, epochs=EPOCHS)
    events: list[Any] = [started]
    for number, plan in enumerate(started["trials"]):
        place = FACTORS.index(plan["point"][CLIP_FACTOR])
        start = START + 1000 * number
        if place < 3:
            events += trial_events(
                plan["name"], start, [0.4 + 0.1 * place] * (EPOCHS - 1) + [0.9 - 0.1 * place]
            )
        else:
            events += trial_events(plan["name"], start, [0.1 * place / 10] * 3, "stopped")
    write_journal(tmp_path, events)
    record = load_study(tmp_path)
    assert (record.trials["state"] == "finished").sum() == 6
    assert [found for found in health_cards(record) if found.name == "rungs"] == []


@pytest.mark.parametrize("how", ["diverged", "failed"])
@pytest.mark.parametrize(
    ("lost", "status", "kept"),
    [((8,), "good", None), ((7, 8), "look", FACTORS[:7]), ((0, 1, 2, 3, 8), "bad", FACTORS[4:8])],
)
def test_a_share_that_diverged_or_failed(
    tmp_path: Path, how: str, lost: tuple[int, ...], status: str, kept: list[float] | None
) -> None:
    found = card(planted(tmp_path, HEALTHY, dict.fromkeys(lost, how)), "lost trials")
    assert found.status == status
    assert f"Of 9 trials {len(lost)} {how}" in found.sentence
    if kept:
        assert swept(found) == (CLIP_FACTOR, tuple(kept))


def test_failed_trials_are_run_again_and_diverged_ones_ask_for_another_space(tmp_path: Path) -> None:
    everything = dict.fromkeys(range(9))
    failed = card(planted(tmp_path / "failed", HEALTHY, dict.fromkeys(everything, "failed")), "lost trials")
    assert "learning rate" not in failed.sentence
    assert failed.command.endswith("--resume agc_sweep")
    diverged = planted(tmp_path / "diverged", HEALTHY, dict.fromkeys(everything, "diverged"))
    found = card(diverged, "lost trials")
    assert ("lower the learning rate" in found.sentence, found.command) == (True, "")


def test_a_value_that_was_lost_or_that_another_field_hides_is_judged(tmp_path: Path) -> None:
    """A value whose trial diverged is worse; a setting that differs in another field alone says nothing of it."""
    lost = planted(tmp_path / "lost", flat(0.5, 0.5005, 0.501, 0.5), {3: "diverged"})
    assert card(lost, "effect").status == "good"
    ranges = {"low": 0.0, "high": 0.5, "log": False, "integer": False, "or_none": False}
    started: Any = study_started({CLIP_FACTOR: (0.01, 0.02), "model.dropout": (0.1, 0.4)}, epochs=EPOCHS)
    started["study"] |= {"halving": None, "space": {CLIP_FACTOR: [0.01, 0.02], "model.dropout": ranges}}
    events: list[Any] = [started]
    for number, plan in enumerate(started["trials"]):
        curve = [0.9 if plan["point"]["model.dropout"] == 0.1 else 0.4] * EPOCHS
        events += trial_events(plan["name"], START + 1000 * number, curve)
    write_journal(tmp_path / "hidden", events)
    found = card(load_study(tmp_path / "hidden"), "effect")
    assert found.status == "look"
    assert found.sentence.startswith(
        "Where the other fields are at their best, the best clip_factor cannot be"
    )


@pytest.mark.parametrize("own", [0.9, 0.899])
@pytest.mark.parametrize(("confirmed", "more"), [(0, 3), (2, 4)])
def test_the_recipes_own_values_are_not_beaten(tmp_path: Path, own: float, confirmed: int, more: int) -> None:
    levels = flat(0.1, 0.2, own, 0.9 if own < 0.9 else 0.5, 0.1)
    found = card(planted(tmp_path, levels, confirm=confirmed), "own values")
    assert (found.status, found.command.endswith(f"--confirm {more}")) == ("look", True)
    beaten = planted(tmp_path / "beaten", flat(0.1, 0.2, 0.5, 0.9, 0.1))
    assert card(beaten, "own values").status == "good"


def test_the_best_of_many_beats_the_recipes_own_values_by_more_than_a_choice_does(tmp_path: Path) -> None:
    """The first has an interval above 0 as the best of nine; the Recipe's own is the third."""
    others = (0.497, 0.5, 0.4955, 0.507, 0.498, 0.499, 0.5, 0.501, 0.497)
    found = card(planted(tmp_path, flat(*others)), "own values")
    assert found.status == "look"
    assert "which gain 1.2 points as the best of 9 (95% interval 0.1 to 2.2" in found.sentence
    assert "0.1 to 2.2, with an assumed spread between seeds of 0.3 points)" in found.sentence
    beaten = card(planted(tmp_path / "beaten", flat(*others[:3], 0.53, *others[4:])), "own values")
    assert (beaten.status, beaten.sentence[-1]) == ("good", ".")


def test_the_recipes_own_values_are_not_judged_before_all_have_ended(tmp_path: Path) -> None:
    running = conditional(tmp_path / "running", best=0.01, ended=False)
    assert "own values" not in {one.name for one in health_cards(running)}
    ended = conditional(tmp_path / "ended", best=0.01)
    assert card(ended, "own values").status == "look"


def test_stopping_would_have_lost_the_winner(tmp_path: Path) -> None:
    curves = [*HEALTHY[:4], [0.0] * (EPOCHS - 1) + [0.9], *HEALTHY[5:]]
    found = card(planted(tmp_path, curves), "early stopping")
    assert (found.status, found.command) == ("bad", "python -m studies replay agc_sweep")
    assert "lost the winner, and up to 40.0 points" in found.sentence


def test_a_training_and_a_study_that_has_just_begun_have_no_cards(tmp_path: Path) -> None:
    write_journal(tmp_path / "training", [study_started({})])
    assert health_cards(load_study(tmp_path / "training")) == []
    write_journal(tmp_path / "begun", [study_started({CLIP_FACTOR: FACTORS})])
    assert health_cards(load_study(tmp_path / "begun")) == []


def test_console_and_report_show_the_cards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted(tmp_path / "agc_sweep", flat(0.1, 0.2, 0.3, 0.9))
    assert main(["show", "agc_sweep", "--storage", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "LOOK, edge of the space: The best clip_factor is the largest that was tried" in said
    assert "--extend agc_sweep --sweep" in said
    assert "GOOD" not in said
    assert main(["show", "agc_sweep", "--storage", str(tmp_path), "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)["health"]
    assert (cards[0]["name"], cards[0]["status"]) == ("edge of the space", "look")
    page = write_report(tmp_path / "agc_sweep").read_text()
    assert "<h2>Health</h2>" in page
    assert "Own values: " in page
    assert f"<pre><code>{cards[0]['command']}</code></pre>" in page
    assert "largest that was tried" in page
