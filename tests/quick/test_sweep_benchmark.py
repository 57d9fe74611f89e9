"""The benchmark of searches: each tries every setting once, and costs and misses are those worked out by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.sweep import Measured, measure, searches
from nfnet_ray.analysis.record import StudyRecord, load_study
from nfnet_ray.analysis.replay import Pool
from nfnet_ray.study.study import Study
from tests.quick.test_replay import CLIP, EPOCHS, RECIPE
from tests.tracking.example_study import START, study_started, trial_events, write_journal


@pytest.fixture
def record(tmp_path: Path) -> StudyRecord:
    """A grid of two fields, in which one setting is the best of all by ten points."""
    study = Study("s", "which?", RECIPE, {CLIP: (0.01, 0.02, 0.04, 0.08), "model.dropout": (0.0, 0.1, 0.3)})
    started = study_started({})
    started["study"] |= study.description()  # type: ignore[typeddict-item]
    started["trials"] = [study.plan(trial) for trial in study.trials()]
    events: list[Any] = [json.loads(json.dumps(started))]
    draw = random.Random(0)
    for number, plan in enumerate(started["trials"]):
        end = 0.9 if number == 7 else 0.7 + 0.1 * draw.random()
        curve = [end * epoch / EPOCHS for epoch in range(1, EPOCHS + 1)]
        events += trial_events(plan["name"], START + 100 * number, curve, seconds_per_epoch=10)
    write_journal(tmp_path, events)
    return load_study(tmp_path)


def test_conditions_do_not_divide_the_pool(record: StudyRecord) -> None:
    pool = Pool.of(record)
    assert len(pool.strata) == 3
    whole = pool.as_one_stratum()
    assert (whole.settings, whole.best) == (12, (pytest.approx(0.9),))
    assert whole.cost(whole.best_after(1)) == 9 * 1 + 3 * EPOCHS


def test_each_search_tries_every_setting_and_then_finds_the_best(record: StudyRecord) -> None:
    pool = Pool.of(record).as_one_stratum()
    found = searches(record, pool)
    assert {"random", "tpe", "gp", "tpe, synchronous in groups of 8", "Ray's ASHA, eta 4"} <= found.keys()
    for name in (
        "random",
        "tpe",
        "tpe, synchronous in groups of 8",
        "synchronous, eta 3",
        "best 3 after epoch 1",
    ):
        part, trained = found[name](12, 1)
        assert sorted(part.trials) == sorted(pool.trials) == sorted(trained), name
        assert part.regrets(trained) == [0.0], name
    tpe = measure(pool, "tpe", found["tpe"], [3, 12], seeds=2)
    assert tpe.shares.tolist() == [[0.25] * 2, [1.0] * 2]
    assert tpe.regrets[1].tolist() == [0, 0]
    assert tpe.regrets[0].max() > 0
    assert measure(pool, "random, twice", found["random, twice"], [12], seeds=1).shares.tolist() == [[0.5]]


def test_the_cheapest_way_has_an_interval_over_seeds() -> None:
    shares = np.array([[0.1] * 4, [0.3] * 4, [0.9] * 4])
    one = Measured("x", (1, 2, 3), shares, np.array([[0.02] * 4, [0.0, 0.0, 0.0, 0.03], [0.0] * 4]))
    assert one.cheapest(0.005) == (0.9, 2)
    assert one.cheapest(0.01) == (pytest.approx(0.3), 1)
    assert one.interval(0.01) == (pytest.approx(0.3), pytest.approx(0.9))
