"""How well rungs predicted the end: the interval's coverage, and the regret worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nfnet_ray.analysis import StudyRecord, load_study, rung_sentences, rung_summaries, rungs
from nfnet_ray.analysis.effects.importance import importance
from nfnet_ray.analysis.effects.noise import results_at
from nfnet_ray.analysis.effects.stages import stages
from nfnet_ray.analysis.inference.rank_correlation import rank_correlation
from nfnet_ray.analysis.record import study_record
from nfnet_ray.study import Halving
from tests.quick.test_extension import CLIP, STUDY, Journaled
from tests.tracking.example_study import CLIP_FACTOR, START, study_started, trial_events, write_journal

EPOCHS = 6


def record_of(
    folder: Path, curves: list[list[float]], seeds: int = 1, halving: dict[str, Any] | None = None
) -> StudyRecord:
    """A study whose trials had these curves, seed by seed for each factor; a shorter one was stopped."""
    factors = [0.01 * (number + 1) for number in range(len(curves) // seeds)]
    started: Any = study_started({CLIP_FACTOR: factors}, epochs=EPOCHS, seeds=range(seeds))
    started["study"]["halving"] = halving
    started["study"]["recipe"]["schedule.warmup_epochs"] = 1.0
    events = [started]
    for number, (plan, curve) in enumerate(zip(started["trials"], curves, strict=True)):
        state = "finished" if len(curve) == EPOCHS else "stopped"
        events += trial_events(plan["name"], START + 1000 * number, curve, state, seconds_per_epoch=10.0)
    write_journal(folder, events)
    return load_study(folder)


def curve(rung: float, end: float) -> list[float]:
    return [0.1, rung, rung, rung, rung, end]


@pytest.mark.parametrize("levels", [3, 1000])
def test_equal_accuracies_share_a_rank(levels: int) -> None:
    draw = random.Random(levels)
    pairs = [(draw.randrange(levels) / 7, draw.randrange(levels) / 9) for _ in range(40)]
    found = rank_correlation([[pairs]])
    assert found.value == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic, abs=1e-12)
    tau = stats.kendalltau(*zip(*pairs, strict=True)).statistic
    unbiased = (41 * found.value - 3 * tau) / 38
    far = math.atanh(max(found.value, unbiased) + 6 / (40 * (40**2 - 1)))
    reach = 1.959964 * math.sqrt((1 + math.tanh(far) ** 2 / 2) / 37)
    assert found.high == pytest.approx(math.tanh(far + reach), abs=1e-6)


@pytest.mark.parametrize("strata", [(6,), (12, 12, 12, 12), (40,), (5, 45)])
@pytest.mark.parametrize("correlation", [-0.97, 0.0, 0.6, 0.95])
def test_the_interval_of_a_rank_correlation_covers_95_percent(
    strata: tuple[int, ...], correlation: float
) -> None:
    draw, studies = np.random.default_rng(0), 300
    covariance, true = [[1, correlation], [correlation, 1]], 6 / math.pi * math.asin(correlation / 2)
    # Spearman's, of normal variates (Pearson 1907).
    both = [draw.multivariate_normal([0, 0], covariance, (studies, trials)) for trials in strata]
    found = [
        rank_correlation([[list(map(tuple, stratum))] for stratum in study])
        for study in zip(*both, strict=True)
    ]
    covered = np.mean([one.low <= true <= one.high for one in found])
    assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / studies)


def test_rankings_that_agree_entirely_have_an_interval_too() -> None:
    found = rank_correlation([[[(float(n), float(n)) for n in range(6)]]])
    assert (found.value, found.high, found.trials) == (1.0, 1.0, 6)
    assert 0.5 < found.low < 1


def test_seeds_of_a_setting_make_the_interval_no_narrower() -> None:
    pairs = [(0.1, 0.3), (0.2, 0.2), (0.3, 0.5), (0.4, 0.4), (0.5, 0.9), (0.6, 0.8)]
    one, three = rank_correlation([[pairs]]), rank_correlation([[pairs] * 3])
    assert (one.low, one.high) == (three.low, three.high)
    assert rank_correlation([[pairs], [pairs]]).low > one.low
    assert math.isnan(rank_correlation([[pairs[:4]]]).value)


def test_regret_is_what_choosing_at_a_rung_costs(tmp_path: Path) -> None:
    """The second setting leads at epoch 2 by the mean of its seeds, and ends 3 points below the first."""
    curves = [
        curve(0.4, 0.90),
        curve(0.6, 0.92),
        curve(0.7, 0.88),
        curve(0.5, 0.88),
        curve(0.3, 0.5),
        curve(0.1, 0.5),
    ]
    (rung,) = rung_summaries(record_of(tmp_path, curves, seeds=2))
    assert (rung.rung, rung.given_up, rung.compared) == (2, 0, 6)
    assert rung.regret == pytest.approx(0.03)
    assert math.isnan(rung.correlation.value)  # three settings of each seed are too few


def test_what_was_given_up_is_left_out(tmp_path: Path) -> None:
    curves = [curve(0.1 * number, 0.5 + 0.05 * number) for number in range(1, 7)] + [[0.1, 0.9]]
    halving = {"grace_epochs": 2, "reduction_factor": 3, "rule": "synchronous", "finalists": 3}
    record = record_of(tmp_path, curves, halving=halving)
    (rung,) = rung_summaries(record)
    assert (rung.given_up, rung.correlation.trials, rung.regret) == (1, 6, 0)
    assert rung_sentences(record) == [
        "After epoch 2: rank correlation with the end 1.00 (95% interval 0.63 to 1.00, 6 trials that finished); "
        "choosing there costs 0.0 points."
    ]


FACTORS = tuple(round(0.01 * number, 2) for number in range(1, 13))
"""Twelve settings, of which five continue at the first rung and three at the second."""


def of_study(study: Journaled) -> StudyRecord:
    state = study.run()
    assert state.started is not None
    return study_record(state, state.started)


def test_further_seeds_of_contenders_hide_no_setting_from_the_regret() -> None:
    """The two that lead at the end are contenders. The leader at the rung ends four points below the best."""
    ends = {0.01: (0.6, 0.80), 0.02: (0.5, 0.84), 0.03: (0.4, 0.84), 0.04: (0.1, 0.70)}
    names = {f"clip_factor={factor}": [rung, rung, rung, *[end] * 6] for factor, (rung, end) in ends.items()}
    study = Journaled(replace(STUDY, halving=None, more_seeds=(1, 2)), **names)
    record = of_study(study)
    assert len(record.further) == 4
    assert [rung.regret for rung in rung_summaries(record)] == pytest.approx([0.04, 0.04])


def test_trials_that_an_extension_left_out_are_not_asked_for_at_a_rung_in_seconds() -> None:
    halving = Halving(first_rung=1.5, unit="seconds")
    study = Journaled(replace(STUDY, space={CLIP: FACTORS}, halving=halving))
    first, *_ = rung_summaries(of_study(study))
    assert (first.rung, first.compared) == (1.5, 12)
    study.extend(space={CLIP: FACTORS[:8]})
    first, *_ = rung_summaries(of_study(study))
    assert (first.rung, first.compared) == (1.5, 8)


def test_stretched_schedules_of_groups_with_other_rungs_are_not_compared_within_a_schedule() -> None:
    """Nine settings train schedules of 1, 3 and 9 epochs, and the last three those of 1 and 9."""
    halving = Halving(first_rung=1, schedule="stretched", finalists=1, group=9)
    study = Journaled(replace(STUDY, space={CLIP: FACTORS}, halving=halving))
    record = of_study(study)
    lengths = {name: (1, 3, 9) if place < 9 else (1, 9) for place, name in enumerate(record.trials["trial"])}
    own = [
        next(
            (epoch - end + length, length)
            for end, length in zip(itertools.accumulate(lengths[trial]), lengths[trial], strict=True)
            if epoch <= end
        )
        for trial, epoch in zip(record.epochs["trial"], record.epochs["epoch"], strict=True)
    ]
    within, of = zip(*own, strict=True)
    record = replace(record, epochs=record.epochs.assign(schedule_epoch=within, schedule_epochs=of))
    told = [(rung.where, rung.compared) for rung in rung_summaries(record)]
    assert told == [("after schedules of 1 epoch", 12), ("after schedules of 3 epochs", 3)]
    assert [stage.where for stage in stages(record)] == [
        "after schedules of 1 epoch",
        "after schedules of 3 epochs",
        "at the end, after 9 epochs",
    ]


@pytest.mark.parametrize(
    "halving", [Halving(first_rung=1, schedule="stretched"), Halving(first_rung=1.5, unit="seconds")]
)
def test_contenders_are_among_the_settings_at_every_stage(halving: Halving) -> None:
    """Their further seeds pass no rung: they pause at none, so they are at none."""
    study = replace(STUDY, space={CLIP: FACTORS}, halving=halving, more_seeds=(1, 2))
    record = of_study(Journaled(study))
    assert record.further
    first, *_, end = stages(record)
    assert len(first.top1) == 12
    assert [len(results_at(record, stage)) for stage in (first, end)] == [12, 3]
    assert importance(record).iloc[0]["settings"] == 12
    assert record.effects().iloc[0]["measured"] == 12


def test_a_rung_that_predicts_the_end_is_not_blamed_for_having_chosen() -> None:
    """Of 27 trials the best nine finish. Over all of them the rank correlation with the end is 0.77 on average."""
    draw = np.random.default_rng(4)
    chosen, among_all = [], []
    for _ in range(200):
        end = draw.standard_normal(27)
        rung = 0.8 * end + 0.6 * draw.standard_normal(27)
        last = np.sort(rung)[-9]
        trials = [
            {"trial": str(number), "seed": 0, "state": "finished" if one >= last else "stopped"}
            | {"last_top1": end[number]}
            for number, one in enumerate(rung)
        ]
        record: Any = SimpleNamespace(trials=pd.DataFrame(trials), conditions=())
        at_rung = dict(zip(map(str, range(27)), rung.tolist(), strict=True))
        found = rungs._correlation(record, at_rung)
        chosen.append(found.value)
        among_all.append(found.among_all(rungs._spread_of_all(record, at_rung)).value)
    assert np.mean(chosen) < 0.55
    assert np.mean(among_all) == pytest.approx(0.77, abs=0.12)
