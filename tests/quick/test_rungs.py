"""How well rungs predicted the end: the interval's coverage, and the regret worked out by hand."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nfnet_ray.analysis import StudyRecord, load_study, rung_sentences, rung_summaries
from nfnet_ray.analysis.inference.rank_correlation import rank_correlation
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
