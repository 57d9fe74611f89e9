"""Packed metrics are the same mapping in less memory. Less than a second."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from typing import Any

import pytest

from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.epoch_metrics import Metrics, brief, columns_of, packed


def test_packed_metrics_are_the_same_mapping() -> None:
    metrics = {"epoch": 3, "train_loss": 0.1 + 0.2, "gpu_power_watts": None, "validation_loss": -math.inf}
    kept = packed(metrics)
    assert kept == metrics
    assert list(kept) == list(metrics)
    assert kept["train_loss"] == 0.1 + 0.2
    assert kept.get("gpu_power_watts", 1.0) is None
    assert (kept.get("unknown"), kept.get("unknown", 2.0)) == (None, 2.0)
    assert {**kept} == metrics
    assert "gpu_power_watts" in kept
    assert pickle.loads(pickle.dumps(kept)) == copy.deepcopy(kept) == metrics
    with pytest.raises(KeyError):
        kept["unknown"]
    assert math.isnan(packed({"train_loss": math.nan})["train_loss"] or 0.0)


@pytest.mark.parametrize("odd", ["high", [1.0], 10**400])
def test_anything_but_a_number_stays_as_it_is(odd: Any) -> None:
    assert packed({"train_loss": odd}) == {"train_loss": odd}


def test_they_take_a_third_of_the_memory_at_most() -> None:
    def taken(keep: Any) -> int:
        tracemalloc.start()
        kept = [keep({f"metric_{name}": epoch / (name + 1) for name in range(20)}) for epoch in range(1000)]
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(kept) == 1000
        return size

    assert taken(packed) < taken(dict) / 3


def epochs(numbers: range, **more: float | None) -> dict[int, Metrics]:
    return {
        epoch: packed({METRIC: epoch / 100, "train_seconds": 10.0 * epoch, "train_loss": 0.1, **more})
        for epoch in numbers
    }


def test_brief_epochs_have_two_metrics_of_each_and_all_of_the_last() -> None:
    whole = epochs(range(3, 8))
    kept = brief(whole)
    assert list(kept) == list(whole)
    assert (len(kept), next(reversed(kept)), 7 in kept, 8 in kept) == (5, 7, True, False)  # type: ignore[call-overload]
    assert kept[7] == whole[7]
    assert [dict(kept[epoch]) for epoch in range(3, 7)] == [
        {METRIC: epoch / 100, "train_seconds": 10.0 * epoch} for epoch in range(3, 7)
    ]
    assert pickle.loads(pickle.dumps(kept)) == kept
    for missing in (2, 8):
        with pytest.raises(KeyError):
            kept[missing]


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {1: packed({METRIC: 0.1})},
        epochs(range(2, 4)) | epochs(range(1, 2)),
        epochs(range(1, 3), train_seconds=None),
    ],
)
def test_epochs_that_cannot_be_brief_stay_as_they_are(odd: dict[int, Metrics]) -> None:
    assert brief(odd) is odd


def test_brief_epochs_take_a_tenth_of_the_memory_at_most() -> None:
    def taken(keep: Any) -> int:
        tracemalloc.start()
        kept = [
            keep(epochs(range(1, 101), **{f"metric_{name}": name / 7 for name in range(20)}))
            for _ in range(20)
        ]
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(kept) == 20
        return size

    assert taken(brief) < taken(dict) / 10


def test_columns_are_those_of_the_rows_whatever_each_of_them_has() -> None:
    rows = [
        {"a": 1.0, "b": None, "c": None},
        {"b": 2.0, "a": 0.1 + 0.2, "c": None},
        {"a": math.inf, "d": -0.0, "c": None},
    ]
    for given in (list(map(packed, rows)), [*map(packed, rows[:2]), rows[2]], rows):
        found = columns_of(given)
        assert list(found) == ["a", "b", "c", "d"]
        assert [float(value) for value in found["a"]] == [1.0, 0.1 + 0.2, math.inf]
        assert [value is None or math.isnan(value) for value in found["b"]] == [True, False, True]
        assert list(found["c"]) == [None] * 3
        assert math.isnan(found["d"][0])
        assert math.copysign(1, found["d"][2]) == -1
    assert columns_of([]) == {}
