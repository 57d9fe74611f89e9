"""The estimated cost of a study, for networks and techniques with different costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console

from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.catalogue import count_multiply_adds
from nfnet_ray.models.published import published_recipe
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost import probe_process
from nfnet_ray.study.cost.plan import StudyCost, check_trials, estimate_cost
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.study import Study
from studies.running.planning import plan_text
from studies.running.runner import Places

DATA = DatasetSummary(Path("x"), 1000, 100, tuple("abcdefghij"), "0", None)


def cost_of(recipe: Recipe) -> StudyCost:
    study = Study("s", "?", recipe.with_values({"schedule.epochs": 2}), {"batch_size": (100,)})
    check_trials(study.trials(), DATA, workers=1)
    return estimate_cost(study, study.trials(), DATA)


def test_a_baseline_costs_what_its_table_says() -> None:
    cost = cost_of(published_recipe("tf_efficientnet_b0"))
    assert cost.images == 2 * 1000
    assert cost.parameters == 5_288_548 - 990 * 1281
    assert cost.multiply_adds == 3 * 2000 * (385_814_752 - 990 * 1280)


@pytest.mark.parametrize(
    ("sam", "passes"),
    [
        ({}, 3),
        ({"rho": 0.05}, 6),
        ({"rho": 0.05, "ascent_share": 0.2}, 3.6),
        ({"rho": 0.05, "method": "asam"}, 6),
        ({"rho": 0.05, "method": "looksam", "looksam_interval": 5}, 3.6),
        ({"rho": 0.05, "method": "esam", "esam_data_share": 0.5}, 5.5),
    ],
)
def test_an_ascent_step_is_paid_for(sam: dict[str, Any], passes: float) -> None:
    """In forward passes of an image; a backward pass is worth two."""
    plain = Recipe().with_values({"model.name": "nfnet_pico"})
    recipe = plain.with_values({f"optimizer.sam.{field}": value for field, value in sam.items()})
    assert cost_of(recipe).multiply_adds / cost_of(plain).multiply_adds == pytest.approx(passes / 3)


def test_a_share_of_the_images_costs_its_share() -> None:
    plain = Recipe().with_values({"model.name": "nfnet_pico"})
    part = plain.with_values({"data.train_share": 0.3})
    assert cost_of(part).images == 2 * 300
    assert cost_of(part).multiply_adds / cost_of(plain).multiply_adds == pytest.approx(0.3)


def test_growing_images_cost_what_each_epochs_size_costs() -> None:
    plain = Recipe().with_values({"model.name": "nfnet_pico", "data.image_size": 32})
    growing = plain.with_values({"data.progressive.start_size": 16})
    costs = [cost_of(recipe).multiply_adds for recipe in (plain, growing)]
    small = cost_of(plain.with_values({"data.image_size": 16})).multiply_adds
    assert costs[1] == (small + costs[0]) / 2  # two epochs: the first at 16 px, the last at 32


def test_a_study_that_may_be_stopped_early_is_stopped_at_small_images() -> None:
    values = {
        "model.name": "nfnet_pico",
        "data.image_size": 32,
        "data.progressive.start_size": 16,
        "batch_size": 100,
    }
    growing = Recipe().with_values(values | {"schedule.epochs": 3, "data.progressive.end_epoch": 1})
    study = Study(
        "s", "?", growing, {"optimizer.agc.clip_factor": (0.01, 0.02)}, halving=Halving(1, 4.0, finalists=1)
    )
    least = estimate_cost(study, study.trials(), DATA).least_multiply_adds
    one = [count_multiply_adds("nfnet_pico", size, 10) * 3 * 1000 for size in (16, 32)]
    assert least == pytest.approx(2 * one[0] + 2 * one[1])  # one trial after its first epoch, one at its end


def test_a_baseline_with_overrides_is_refused_before_anything_starts() -> None:
    recipe = published_recipe("resnet50").with_values({"model.overrides.se_ratio": 0.5})
    with pytest.raises(UserError, match="overrides se_ratio are not possible"):
        cost_of(recipe)


def test_a_trial_on_gpus_is_not_measured_on_the_cores_of_a_machine_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan_text, "probe_at_once", Mock(side_effect=AssertionError))
    head = Resources(1, 8, 0, 16.0, "8 CPU cores", ((8, 0),))
    monkeypatch.setattr(plan_text, "local_resources", lambda: head)
    cluster = Resources(2, 72, 8, 272.0, "72 CPU cores, 8 GPUs", ((8, 0), (64, 8)))
    study, request = Study("s", "?", Recipe(), {"batch_size": (100,)}), Mock(address="auto")
    places = Places(cluster, WorkerResources(1, 7, 1.0), 8)
    estimate = plan_text._estimate(request, study, DATA, tmp_path, places, Console())
    assert (estimate.paces, estimate.probe) == ({}, None)
    assert "this machine has no GPU to measure a trial on" in estimate.source


@pytest.mark.parametrize("gpu", [False, True])
def test_a_trial_without_a_gpu_is_measured_without_one(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    start = Mock(side_effect=InterruptedError)
    monkeypatch.setattr(probe_process.subprocess, "Popen", start)
    with pytest.raises(InterruptedError):
        probe_process.probe(Recipe(), 1, 1, gpu)
    environment = start.call_args.kwargs["env"]
    assert environment == (dict(os.environ) if gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def test_a_trial_is_not_measured_on_the_cores_where_torch_cannot_use_the_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan_text, "probe_at_once", Mock(side_effect=AssertionError))
    monkeypatch.setattr(plan_text, "gpu_problem", Mock(return_value="NVIDIA's driver is too old for torch"))
    here = Resources(1, 8, 1, 16.0, "8 CPU cores, 1 GPU", ((8, 1),))
    monkeypatch.setattr(plan_text, "local_resources", lambda: here)
    study, request = Study("s", "?", Recipe(), {"batch_size": (100,)}), Mock(address=None)
    places = Places(here, WorkerResources(1, 7, 1.0), 1)
    estimate = plan_text._estimate(request, study, DATA, tmp_path, places, Console())
    assert estimate.paces == {}
    assert "torch cannot use this machine's GPUs: NVIDIA's driver is too old for torch" in estimate.source


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPUs can be used")
def test_a_probe_that_is_to_use_a_gpu_says_why_it_cannot(few_digits: Path) -> None:
    recipe = Recipe().with_values(
        {"model.name": "nfnet_pico", "data.path": str(few_digits), "batch_size": 16}
    )
    measured = probe_process.probe(recipe, 1, 1, gpu=True)
    assert measured.step_seconds == ()
    assert "CUDA" in measured.trouble or "NVIDIA" in measured.trouble
