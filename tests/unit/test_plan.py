"""What a study is said to cost, for networks and ways of training that cost differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.cluster.plan import StudyCost, check_trials, estimate_cost
from nfnet_ray.cluster.study import Study
from nfnet_ray.data.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import published_recipe
from nfnet_ray.recipe import Recipe

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


def test_a_baseline_with_overrides_is_refused_before_anything_starts() -> None:
    recipe = published_recipe("resnet50").with_values({"model.overrides.se_ratio": 0.5})
    with pytest.raises(UserError, match="overrides se_ratio are not possible"):
        cost_of(recipe)
