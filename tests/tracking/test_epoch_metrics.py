"""Packed metrics are the same mapping in less memory. Less than a second."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from typing import Any

import pytest

from nfnet_ray.tracking.epoch_metrics import packed


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
def test_what_is_no_number_stays_as_it_is(odd: Any) -> None:
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
