"""The winner is rerun with fresh seeds before its accuracy is quoted, and the reruns decide nothing else."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nfnet_ray.analysis import best_per_stratum, best_setting
from nfnet_ray.analysis.health.cards import health_cards
from nfnet_ray.analysis.inference.holdout import held_out
from nfnet_ray.analysis.record import StudyRecord, study_record
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.study import Halving
from nfnet_ray.study.confirmation import reruns_to_run
from nfnet_ray.study.cost.forecast import Pace, Span, forecast, trials_in_the_end
from nfnet_ray.study.live.display import best_so_far, reported_epochs, trial_table
from nfnet_ray.study.search.upcoming import has_more
from nfnet_ray.tracking.runs.study_metrics import study_metrics
from nfnet_ray.tracking.state import StudyState
from tests.quick.test_decisions import IMAGES, Killed, outcome
from tests.quick.test_extension import BATCH, CLIP, EPOCHS, RANGE, RECIPE, STUDY, Journaled

CONFIRMED = replace(STUDY, halving=None, confirm=3)
RERUNS = ["clip_factor=0.02,rerun=1000", "clip_factor=0.02,rerun=1001", "clip_factor=0.02,rerun=1002"]
SWEEP = {
    f"clip_factor=0.0{place}": [top1] * EPOCHS for place, top1 in enumerate((0.7, 0.8, 0.8, 0.6), start=1)
}
LOWER = {name: [0.77 + 0.01 * number] * EPOCHS for number, name in enumerate(RERUNS)}


def record_of(state: StudyState) -> StudyRecord:
    assert state.started is not None
    return study_record(state, state.started)


def test_the_winner_is_rerun_for_all_epochs_with_seeds_that_the_sweep_did_not_use() -> None:
    study = Journaled(replace(CONFIRMED, halving=Halving(first_rung=1, finalists=1)), **SWEEP, **LOWER)
    state = study.run()
    assert list(state.confirming) == RERUNS  # of two equals the first one in the space
    assert [state.trials[name].epoch for name in RERUNS] == [EPOCHS] * 3
    assert all(not state.trials[name].paused for name in RERUNS)
    assert [state.reruns[name]["recipe"]["seed"] for name in RERUNS] == [1000, 1001, 1002]
    assert not set(RERUNS) & {trial.name for trial in study.study().trials()}
    names = [event["event"] for event in study.events]
    first = names.index("confirmation_planned")
    assert {event["trial"] for event in study.events[first + 1 :] if "trial" in event} == set(RERUNS)


def test_the_answer_quotes_the_reruns_and_the_drop() -> None:
    state = Journaled(CONFIRMED, **SWEEP, **LOWER).run()
    [answer] = best_per_stratum(record_of(state))
    assert answer.best.top1 == 0.8
    assert answer.confirmation is not None
    assert answer.confirmation.drop == pytest.approx(0.02)
    assert answer.quoted.top1 == pytest.approx(0.78)
    assert len(answer.quoted.seed_top1) == 3
    said = answer.sentence()
    assert said.startswith(
        "Best setting: clip_factor 0.02: top-1 78.0% in reruns with fresh seeds (95% interval over "
    )
    assert "seeds and images" in said
    assert (
        "3 seeds). The sweep had 80.0%, a drop of 2.0 points. It cannot be told apart from clip_factor 0.03 (80.0% "
        "in the sweep)"
    ) in said
    assert "a drop of 1.0 points" in replace(answer.confirmation, sweep_top1=0.79).sentence()
    assert "free of the luck of its seeds" in answer.caution()


def test_the_best_setting_is_compared_by_its_reruns() -> None:
    """In the sweep, one seed each, nothing can be called better; three reruns of the winner show how seeds spread."""
    sweep = {**SWEEP, "clip_factor=0.02": [0.9] * EPOCHS}
    again = dict(zip(RERUNS, ([top1] * EPOCHS for top1 in (0.893, 0.897, 0.895)), strict=True))
    [answer] = best_per_stratum(record_of(Journaled(CONFIRMED, **sweep, **again).run()))
    first = answer.contrasts[0]
    assert (first.rests_on, first.covers_seeds, first.kind) == ("reruns of the best", True, "better")
    assert first.difference == pytest.approx(0.895 - 0.8)
    assert first.other.top1 == first.against.top1 == 0.8
    assert answer.verdict == "better"
    assert answer.seeds_measured
    assert answer.sentence().endswith(
        ". It is better than clip_factor 0.03 (80.0% in the sweep) (probability of being better: over 99.9%)"
    )
    assert "compared by its reruns, and the others by their seeds of the sweep" in answer.caution()
    assert "taken to spread as the reruns do" in answer.caution()


def test_a_winner_that_was_lucky_is_not_better_by_its_seeds_of_the_sweep() -> None:
    """With two seeds each the sweep calls it better; in its reruns it is behind the next one."""
    curves = {
        f"clip_factor=0.0{place},seed={seed}": [top1 + 0.001 * seed] * EPOCHS
        for place, top1 in enumerate((0.7, 0.9, 0.8, 0.6), start=1)
        for seed in (0, 1)
    }
    study, sweep = Journaled(replace(CONFIRMED, seeds=(0, 1), confirm=3), **curves, **LOWER), CONFIRMED
    [before] = best_per_stratum(record_of(Journaled(replace(sweep, seeds=(0, 1), confirm=0), **curves).run()))
    assert before.verdict == "better"
    [answer] = best_per_stratum(record_of(study.run()))
    assert answer.quoted.top1 == pytest.approx(0.78)
    assert answer.verdict == "cannot tell"
    assert answer.within_noise[0].point == {CLIP: 0.03}
    assert "cannot be told apart from clip_factor 0.03 (80.0% in the sweep)" in answer.sentence()
    assert "probability" not in answer.sentence()  # the next one is the luckiest of three


def test_the_winners_of_two_conditions_are_compared_by_the_reruns_of_both() -> None:
    space = {CLIP: (0.01, 0.02), BATCH: (32, 64)}
    curves = {
        f"clip_factor=0.0{clip},batch_size={batch}": [top1] * EPOCHS
        for (clip, batch), top1 in {(1, 32): 0.9, (2, 32): 0.5, (1, 64): 0.5, (2, 64): 0.89}.items()
    }
    again = {
        f"clip_factor=0.0{clip},batch_size={batch},rerun={1000 + number}": [top1 + 0.001 * number] * EPOCHS
        for (clip, batch), top1 in {(1, 32): 0.7, (2, 64): 0.88}.items()
        for number in range(3)
    }
    best = best_setting(record_of(Journaled(replace(CONFIRMED, space=space), **curves, **again).run()))
    assert best is not None
    assert best.best.point == {CLIP: 0.01, BATCH: 32}
    assert [found.rests_on for found in best.contrasts[:2]] == ["reruns", "reruns of the best"]
    assert best.contrasts[0].other.top1 == 0.89
    assert best.contrasts[0].against.top1 == pytest.approx(0.881)
    assert (
        ". It is not better than clip_factor 0.02 at batch_size 64 (88.1% in its reruns)" in best.sentence()
    )


def test_the_recipe_is_beaten_by_reruns_though_it_could_be_by_luck_in_the_sweep() -> None:
    sweep = {
        f"clip_factor=0.0{place}": [top1] * EPOCHS for place, top1 in enumerate((0.8, 0.807, 0.806, 0.8), 1)
    }
    again = dict(zip(RERUNS, ([top1] * EPOCHS for top1 in (0.8069, 0.807, 0.8071)), strict=True))
    cards = []
    for study in (replace(CONFIRMED, confirm=0), CONFIRMED):
        record = record_of(Journaled(study, **sweep, **again).run())
        record.study["command"] = "python studies/agc_sweep.py"
        cards.append({card.name: card for card in health_cards(record)})
    before, after = (found["own values"] for found in cards)
    assert before.status == "look"
    assert (after.status, after.sentence) == (
        "good",
        "The best setting is better than the Recipe's own values.",
    )


def test_a_winner_that_lost_a_rerun_is_not_called_better() -> None:
    sweep = {**SWEEP, "clip_factor=0.02": [0.9] * EPOCHS}
    again = {RERUNS[0]: [0.9, None], **{name: [0.9] * EPOCHS for name in RERUNS[1:]}}
    [answer] = best_per_stratum(record_of(Journaled(CONFIRMED, **sweep, **again).run()))
    assert answer.verdict == "cannot tell"
    assert answer.contrasts[0].low > 0
    assert answer.sentence().endswith(
        "1 of 3 reruns diverged or failed. It is not called better than clip_factor 0.03 (80.0% in the sweep) and 2 "
        "more, as reruns were lost"
    )


def test_with_a_holdout_the_reruns_are_quoted_on_images_that_the_winner_was_not_chosen_on() -> None:
    """The winner has all images of its own part right, and its reruns half of the other part."""
    study = Journaled(replace(CONFIRMED, holdout=0.5), **SWEEP, **LOWER)
    study.run()
    quoted, half = held_out(IMAGES, 0.5), np.arange(IMAGES) % 2 == 0
    for event in study.events:
        if event["event"] == "epoch":
            is_winner = event["trial"] == "clip_factor=0.02"
            right = half if event["trial"] in RERUNS else ~quoted if is_winner else ~quoted & half
            event["correct_images"] = CorrectImages(right, np.ones(IMAGES, bool)).to_text()
    [answer] = best_per_stratum(record_of(study.state()))
    assert answer.is_held_out
    assert answer.best.top1 == 0
    assert answer.quoted.top1 == pytest.approx(0.5, abs=0.01)
    assert answer.quoted.validation_images == quoted.sum()
    assert "that it was not chosen on" in answer.sentence()


def test_a_rerun_that_diverges_is_said() -> None:
    state = Journaled(CONFIRMED, **SWEEP, **{**LOWER, RERUNS[0]: [0.5, None]}).run()
    [answer] = best_per_stratum(record_of(state))
    assert "1 of 3 reruns diverged or failed" in answer.sentence()
    assert answer.quoted.top1 == pytest.approx(0.785)


def test_reruns_are_no_settings() -> None:
    """No table of settings and no best trial has them, and every table of trials shows them."""
    study = Journaled(CONFIRMED, **SWEEP, **dict.fromkeys(RERUNS, [0.999] * EPOCHS))
    state = study.run()
    record = record_of(state)
    assert not set(RERUNS) & {*record.trials["trial"], *record.epochs["trial"]}
    assert record.reruns is not None
    assert [*record.reruns["trial"]] == RERUNS
    assert "99.9" not in best_so_far(study.study(), state)
    metrics = study_metrics(state, METRIC)
    assert metrics[f"best_{METRIC}"] == 0.8
    assert metrics[f"confirmed_{METRIC}"] == pytest.approx(0.999)
    console = Console(width=120, file=io.StringIO())
    console.print(trial_table(study.study(), state, reported_epochs))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert ["rerun of the winner" in line for line in lines[1:8]] == [False] * 4 + [True] * 3


@pytest.mark.parametrize("kill_after", range(0, 78, 7))
def test_a_study_that_was_killed_reruns_the_same_winner_with_the_same_seeds(kill_after: int) -> None:
    expected = outcome(Journaled(replace(CONFIRMED, halving=Halving(first_rung=1)), **SWEEP, **LOWER).run())
    study = Journaled(replace(CONFIRMED, halving=Halving(first_rung=1)), **SWEEP, **LOWER)
    try:
        study.run(kill_after=kill_after)
    except Killed:
        assert has_more(study.study(), study.state())
    assert outcome(study.run(random.Random(7))) == expected
    assert not has_more(study.study(), study.state())
    planned = [event for event in study.events if event["event"] == "confirmation_planned"]
    assert len(planned) == 1


def test_each_condition_has_its_winner_and_a_search_that_learns_a_single_one() -> None:
    space = {CLIP: (0.01, 0.02), BATCH: (32, 64)}
    study = Journaled(replace(CONFIRMED, space=space, confirm=2))
    assert study.study().winners == 2
    state = study.run()
    assert sorted(state.reruns[name]["point"][BATCH] for name in state.confirming) == [32, 32, 64, 64]
    learned = Journaled(
        replace(RANGE, search="tpe", trial_limit=6, confirm=2, space={**RANGE.space, BATCH: (32, 64)})
    )
    assert learned.study().winners == 1
    assert len(learned.run().confirming) == 2


def test_an_extension_with_a_new_winner_confirms_that_one() -> None:
    study = Journaled(CONFIRMED, **SWEEP, **LOWER, **{"clip_factor=0.5": [0.9] * EPOCHS})
    study.run()
    events = len(study.events)
    study.extend(space={CLIP: (0.01, 0.02, 0.03, 0.04, 0.5)})
    assert set(study.state().outside) == set(RERUNS)
    state = study.run()
    assert [state.reruns[name]["point"][CLIP] for name in state.confirming] == [0.5] * 3
    assert study.trained_since(events) == {"clip_factor=0.5", *state.confirming}
    record = record_of(state)
    assert record.left_out is not None
    assert [*record.left_out["trial"]] == RERUNS


def test_an_extension_with_the_same_winner_keeps_its_reruns_and_may_ask_for_more() -> None:
    study = Journaled(CONFIRMED, **SWEEP)
    study.run()
    events = len(study.events)
    assert study.extend(confirm=4, seeds=(0, 1)) is not None
    study.curves.update({f"{name},seed=1": curve for name, curve in SWEEP.items()})
    state = study.run()
    assert list(state.confirming) == [*RERUNS, "clip_factor=0.02,rerun=1003"]
    assert study.trained_since(events) & set(state.confirming) == {"clip_factor=0.02,rerun=1003"}


def test_a_study_that_has_ended_can_be_confirmed() -> None:
    study = Journaled(replace(CONFIRMED, confirm=0), **SWEEP, **LOWER)
    assert not study.run().confirming
    extended = study.extend(confirm=3)
    assert extended is not None
    assert extended.added == 0
    assert list(study.run().confirming) == RERUNS


def test_where_all_settings_diverge_there_is_nothing_to_confirm() -> None:
    study = Journaled(CONFIRMED, **{name: [None] for name in SWEEP})
    state = study.run()
    assert state.has_winners
    assert state.confirming == ()
    assert not has_more(study.study(), state)


def test_reruns_are_in_the_plan() -> None:
    space = {CLIP: (0.01, 0.02), BATCH: (32, 64)}
    study = replace(CONFIRMED, space=space, recipe=RECIPE)
    data = DatasetSummary(Path("data"), 1437, 360, ("",) * 10, "0", None)
    pace = Pace(Span(1e-12, 1e-12), 0.0, 0.0, 0.0, Span(0.0, 0.0))
    paces = {trial.name: pace for trial in study.trials()}
    alone = forecast(replace(study, confirm=0), data, paces, 1)
    told = forecast(study, data, paces, 1)
    assert reruns_to_run(study, study.waiting_state()) == 6
    assert trials_in_the_end(study) == 4 + 6
    each = alone.trial_seconds.high / 4
    assert told.trial_seconds.high == pytest.approx(alone.trial_seconds.high + 6 * each, rel=0.1)
    assert told.most_trial_seconds == pytest.approx(told.trial_seconds.high)


def test_a_number_that_is_none_is_refused() -> None:
    changes: dict[str, Any] = {"confirm": -1}
    with pytest.raises(UserError, match="confirm = -1"):
        replace(STUDY, **changes)
