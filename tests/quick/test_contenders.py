"""Further seeds go to the settings that one seed could not exclude, as the journal alone decides."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.analysis import best_per_stratum, best_setting
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study import Halving, Study
from nfnet_ray.study.contenders import further_to_run
from nfnet_ray.study.cost.forecast import Pace, Span, forecast
from nfnet_ray.study.differences import differing_fields
from nfnet_ray.study.search.upcoming import has_more
from studies.running.names import seeds_text
from tests.quick.test_confirmation import record_of
from tests.quick.test_decisions import Killed, outcome
from tests.quick.test_extension import BATCH, CLIP, EPOCHS, RANGE, STUDY, Journaled, asked

REPEATED = replace(STUDY, halving=None, more_seeds=(1, 2))
# On 50,000 images 0.79 and 0.8 are told apart, with a spread between seeds of 0.3 points, and 0.799 and 0.8 are not.
FIRST = {
    f"clip_factor=0.0{place}": [top1] * EPOCHS for place, top1 in enumerate((0.799, 0.8, 0.78, 0.79), start=1)
}
FURTHER = [f"clip_factor=0.0{factor},seed={seed}" for factor in (2, 1) for seed in (1, 2)]
CURVES = {**FIRST, **{name: [0.801 if "0.01" in name else 0.797] * EPOCHS for name in FURTHER}}


def test_only_contenders_get_further_seeds_once_every_setting_has_been_trained() -> None:
    study = Journaled(REPEATED, **CURVES)
    state = study.run()
    assert list(state.repeating) == FURTHER
    assert set(state.dropped) == {"clip_factor=0.03", "clip_factor=0.04"}
    assert "dropped after 1 seed: 1.0 points below the best" in str(state.trials["clip_factor=0.04"].reason)
    assert [trial.name for trial in study.study().trials()] == list(FIRST)
    names = [event["event"] for event in study.events]
    chosen = names.index("contenders_chosen")
    later = {event["trial"] for event in study.events[chosen + 1 :] if "trial" in event}
    assert later == set(FURTHER)
    assert {state.trials[name].state for name in FURTHER} == {"finished"}


def test_the_answer_compares_the_contenders_and_says_who_was_dropped() -> None:
    state = Journaled(REPEATED, **CURVES).run()
    [answer] = best_per_stratum(record_of(state))
    assert answer.best.point == {CLIP: 0.01}  # the first seed said otherwise
    assert answer.seeds_measured
    assert [len(found.other.seed_top1) for found in answer.contrasts] == [3]
    assert [result.point[CLIP] for result in answer.dropped] == [0.04, 0.03]
    assert answer.sentence().endswith(
        ". 2 others were dropped after 1 seed, the best of them: clip_factor 0.04 (79.0%)"
    )
    assert "dropped after 1 seed" in answer.caution()


def test_the_two_best_stay_even_if_one_seed_tells_them_apart() -> None:
    state = Journaled(REPEATED, **{**CURVES, "clip_factor=0.01": [0.7] * EPOCHS}).run()
    assert list(state.repeating) == [
        *(f"clip_factor=0.02,seed={seed}" for seed in (1, 2)),
        *(f"clip_factor=0.04,seed={seed}" for seed in (1, 2)),
    ]


def test_a_larger_spread_between_seeds_keeps_more_contenders() -> None:
    study = Journaled(replace(REPEATED, seed_spread=0.01), **CURVES)
    assert study.study().seed_spread == 0.01
    state = study.run()
    assert {state.further[name]["point"][CLIP] for name in state.repeating} == {0.01, 0.02, 0.03, 0.04}
    assert not differing_fields(study.study(), Journaled(REPEATED).study())


def test_with_early_stopping_those_given_up_are_no_contenders_and_further_seeds_pass_no_rung() -> None:
    study = Journaled(replace(REPEATED, halving=Halving(first_rung=1, finalists=2)), **CURVES)
    state = study.run()
    assert list(state.repeating) == FURTHER
    assert {state.trials[name].state for name in ("clip_factor=0.03", "clip_factor=0.04")} == {"stopped"}
    assert all(not state.trials[name].paused for name in FURTHER)
    assert state.dropped == {}


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("halving", [None, Halving(first_rung=1)])
def test_the_order_of_arrival_and_a_kill_make_no_difference(halving: Halving | None, order: int) -> None:
    study = replace(REPEATED, halving=halving, confirm=1)
    expected = outcome(Journaled(study, **CURVES).run())
    killed = Journaled(study, **CURVES)
    with pytest.raises(Killed):
        killed.run(random.Random(order), kill_after=10 * order + 13)
    assert has_more(killed.study(), killed.state())
    assert outcome(killed.run(random.Random(100 + order))) == expected


def test_each_condition_has_its_contenders_and_reruns_follow_them() -> None:
    study = Journaled(replace(REPEATED, space={CLIP: (0.01, 0.02), BATCH: (32, 64)}, confirm=1))
    state = study.run()
    assert len(state.repeating) == 2 * 2 * 2
    assert sorted(state.reruns[name]["point"][BATCH] for name in state.confirming) == [32, 64]
    assert {state.reruns[name]["recipe"]["seed"] for name in state.confirming} == {1000}


def test_a_search_that_learns_is_told_of_the_first_seeds() -> None:
    study = Journaled(replace(RANGE, search="tpe", trial_limit=6, more_seeds=(1,)))
    alone = Journaled(replace(RANGE, search="tpe", trial_limit=6))
    state = study.run()
    assert list(state.plans) == list(alone.run().plans)
    assert state.repeating


def test_an_extension_chooses_the_contenders_again() -> None:
    new = ("clip_factor=0.5", "clip_factor=0.5,seed=1", "clip_factor=0.5,seed=2")
    study = Journaled(REPEATED, **CURVES, **{name: [0.82] * EPOCHS for name in new})
    study.run()
    events = len(study.events)
    extended = study.extend(space={CLIP: (0.01, 0.02, 0.03, 0.04, 0.5)})
    assert extended is not None
    assert extended.sentences() == ["Extended: 1 new trial, 4 that it has already."]
    state = study.run()
    assert study.trained_since(events) == set(new)
    # What was trained before stays, though clip_factor 0.01 is no contender any more.
    assert {*FURTHER, *new[1:]} == set(state.repeating)
    best = best_setting(record_of(state))
    assert best is not None
    assert best.best.point == {CLIP: 0.5}
    assert {found.other.point[CLIP] for found in best.contrasts} == {0.01, 0.02}
    assert {result.point[CLIP] for result in best.dropped} == {0.03, 0.04}


def test_more_seeds_for_all_settings_keep_those_that_contenders_had() -> None:
    study = Journaled(REPEATED, **CURVES)
    study.run()
    events = len(study.events)
    study.extend(seeds=(0, 1, 2), more_seeds=())
    state = study.run()
    assert study.trained_since(events) == {
        f"clip_factor=0.0{factor},seed={seed}" for factor in (3, 4) for seed in (1, 2)
    }
    assert len(state.members) == 12
    assert not state.dropped


def test_an_extension_says_that_contenders_and_winners_are_trained_again() -> None:
    """``--extend NAME --seeds 3`` promised "0 new trials", and trained."""
    study = Journaled(replace(REPEATED, more_seeds=()), **CURVES)
    study.run()
    extended = study.extend(more_seeds=(1, 2), confirm=1)
    assert extended is not None
    assert extended.sentences() == [
        "Extended: 0 new trials, 4 that it has already, then 2 more seeds of each setting that may be the best, "
        "then 1 more rerun of the best setting."
    ]


def test_fewer_seeds_leave_further_trials_out_and_say_so() -> None:
    study = Journaled(REPEATED, **CURVES)
    study.run()
    extended = study.extend(more_seeds=(1,))
    assert extended is not None
    assert extended.sentences() == [
        "Extended: 0 new trials, 4 that it has already, 2 earlier trials stay as evidence, outside the study."
    ]
    assert {name for name in FURTHER if name.endswith("seed=2")} <= study.state().outside


def test_the_number_of_seeds_says_for_whom_they_are() -> None:
    assert [seeds_text(text) for text in ("1", "3", "3,all")] == [(1, False), (3, False), (3, True)]
    for text in ("0", "-1", "x", "3,", "3,some", "²", "1001", "1000000,all"):
        with pytest.raises(UserError, match="3,all"):
            seeds_text(text)
    one = Journaled(replace(STUDY, halving=None)).study()
    assert (asked(one, seeds=3).seeds, asked(one, seeds=3).more_seeds) == ((0,), (1, 2))
    assert asked(one, seeds=3, are_seeds_for_all=True).seeds == (0, 1, 2)
    some = Journaled(REPEATED).study()
    assert (asked(some).seeds, asked(some).more_seeds) == ((0,), (1, 2))
    assert (asked(some, seeds=2).more_seeds, asked(some, seeds=1).more_seeds) == ((1,), ())
    assert asked(Journaled(replace(STUDY, seeds=(3, 4))).study(), seeds=3).seeds == (3, 4, 5)


def test_the_plan_has_as_few_and_as_many_as_there_may_be() -> None:
    study = replace(REPEATED, space={CLIP: (0.01, 0.02, 0.03), BATCH: (32, 64)})
    assert further_to_run(study, study.waiting_state()) == (8, 12)
    halved = replace(
        study,
        space={CLIP: tuple(n / 1000 for n in range(1, 13)), BATCH: (32,)},
        halving=Halving(first_rung=1),
    )
    assert further_to_run(halved, halved.waiting_state()) == (4, 6)
    data = DatasetSummary(Path("data"), 1437, 360, ("",) * 10, "0", None)
    pace = Pace(Span(1e-12, 1e-12), 0.0, 0.0, 0.0, Span(0.0, 0.0))
    told = forecast(study, data, {trial.name: pace for trial in study.trials()}, 1).trial_seconds
    once = forecast(
        replace(study, more_seeds=()), data, {t.name: pace for t in study.trials()}, 1
    ).trial_seconds
    assert told.low / once.low == pytest.approx((6 + 8) / 6, rel=0.05)
    assert told.high / once.high == pytest.approx((6 + 12) / 6, rel=0.05)
    all_told = forecast(halved, data, {trial.name: pace for trial in halved.trials()}, 1)
    assert all_told.most_trial_seconds / once.high == pytest.approx((12 + 24) / 6, rel=0.05)


def test_more_seeds_need_a_single_first_one() -> None:
    changes: dict[str, Any] = {"seeds": (0, 1), "more_seeds": (2,)}
    with pytest.raises(UserError, match="more_seeds"):
        Study("s", "?", Recipe(), {}, **changes)
