"""A baseline trains under the loop that NFNets train under, with its own published Recipe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nfnet_ray.models.published import published_recipe
from nfnet_ray.training import PlainContext, train
from nfnet_ray.training.form.probe import measure_images_per_second
from tests.resume.test_checkpoints import StoppedContext

ON_DIGITS = {
    "data.image_size": 32,
    "data.eval_size": 32,
    "data.crop": "padded",
    "data.flip": False,
    "schedule.epochs": 1,
    "batch_size": 80,
    "precision": "float32",
}


def test_efficientnet_trains_with_rmsprop_stairs_and_its_average(few_digits: Path) -> None:
    recipe = published_recipe("tf_efficientnet_b0").with_values(
        {**ON_DIGITS, "data.path": str(few_digits), "schedule.warmup_epochs": 0.5}
    )
    reports: list[dict[str, float]] = []
    context = PlainContext(
        device=torch.device("cpu"), threads=1, on_report=lambda metrics: reports.append(dict(metrics))
    )
    outcome = train(recipe, context)
    (report,) = reports
    assert math.isfinite(report["train_loss"])
    assert {"validation_top1", "raw_validation_top1"} <= report.keys()
    assert int(outcome.model.get_buffer("bn1.num_batches_tracked")) == 3
    assert outcome.model.get_parameter("classifier.weight").shape == (10, 1280)


def test_a_probe_takes_a_baseline() -> None:
    recipe = published_recipe("resnet50").with_values({**ON_DIGITS, "batch_size": 2})
    assert measure_images_per_second(recipe, num_classes=10, threads=1) > 0


@pytest.mark.slow
def test_a_baseline_resumes_within_an_epoch_to_the_same_weights(few_digits: Path, tmp_path: Path) -> None:
    """It draws dropout from torch's generator and has running statistics, which no NFNet has."""
    recipe = published_recipe("test_efficientnet").with_values(
        {
            **ON_DIGITS,
            "data.path": str(few_digits),
            "schedule.warmup_epochs": 0.5,
            "model.dropout": 0.2,
            "model.stochastic_depth": 0.2,
        }
    )
    whole = train(recipe, PlainContext(device=torch.device("cpu"), threads=1))
    assert train(recipe, StoppedContext(after=1 / 3, checkpoints=tmp_path)).state == "stopped"
    resumed = train(recipe, PlainContext(device=torch.device("cpu"), threads=1, checkpoints=tmp_path))
    expected, got = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
