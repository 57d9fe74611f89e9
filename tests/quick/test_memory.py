"""Trials that are known not to fit into the memory that they share are refused. Less than a second."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.earlier_runs import MeasuredTrial, kind_of
from nfnet_ray.study.cost.memory import known_memory, memory_shortage
from nfnet_ray.study.study import Study
from studies.running.planning import plan_text

RECIPE = Recipe().with_values({"model.name": "nfnet_pico", "batch_size": 64})
ONE_GPU = Resources(1, 8, 1, 1.0, "8 cores, 1 GPU", ((8, 1),))


def earlier(memory_bytes: float | None, gpus: float = 1.0, **values: object) -> MeasuredTrial:
    worker = {"workers": 1, "cpus": 8, "gpus": gpus}
    kind = kind_of(RECIPE.with_values(values), worker)
    return MeasuredTrial(kind, 1.0, 1.0, 1.0, 1.0, memory_bytes, None)


def test_memory_is_that_of_a_trial_like_it_whatever_its_share_of_a_gpu() -> None:
    measured = [earlier(3e9), earlier(5e9, gpus=0.5), earlier(None), earlier(9e9, batch_size=128)]
    assert known_memory([RECIPE], measured) == 5e9
    assert known_memory([RECIPE.with_values({"precision": "bfloat16"})], measured) is None


def test_a_shortage_names_what_fits() -> None:
    assert memory_shortage(4, 20e9, 80e9, gpu=True) is None
    assert memory_shortage(4, 30e9, 80e9, gpu=True) == (
        "4 workers of 30.00 GB each, as measured before, do not fit into a GPU of 80.00 GB: give --gpus-per-worker 0.5"
    )
    assert "give --trials-at-once 2" in str(memory_shortage(4, 10e9, 24e9, gpu=False))
    assert "give a smaller network or batch" in str(memory_shortage(2, 90e9, 80e9, gpu=True))


def test_a_study_whose_trials_do_not_fit_on_a_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_text, "memory_bytes_here", Mock(return_value=80e9))
    monkeypatch.setattr(plan_text, "earlier_trials", Mock(return_value=[earlier(30e9)]))
    study = Study("s", "?", RECIPE, {"optimizer.agc.clip_factor": (0.01, 0.02)})
    plan_text.refuse_too_little_memory(study, tmp_path, ONE_GPU, WorkerResources(1, 4, 0.5))
    plan_text.refuse_too_little_memory(study, tmp_path, ONE_GPU, WorkerResources(1, 8, 1.0))
    with pytest.raises(UserError, match=r"4 workers of 30\.00 GB each, .* give --gpus-per-worker 0\.5"):
        plan_text.refuse_too_little_memory(study, tmp_path, ONE_GPU, WorkerResources(1, 2, 0.25))
