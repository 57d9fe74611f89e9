"""What a plan warns of where a training is too short, or compared too early, for what is asked of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nfnet_ray.models.catalogue import list_models
from nfnet_ray.models.published import published_recipe
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.halving import Halving, parse_halving
from nfnet_ray.study.study import Study
from studies.ablation import ablation
from studies.agc_sweep import agc_sweep
from studies.dropout_sweep import dropout_sweep
from studies.efficientnet_baselines import efficientnet_baselines
from studies.joint_sweep import joint_sweep
from studies.running.planning.training_remarks import training_remarks
from studies.sam_sweep import sam_sweep
from studies.sweep import sweep
from tests.quick.test_studies import DIGITS

IMAGENET = replace(DIGITS, train_images=1_281_167, uniform_size=None)
EARLY = "Trials are compared from epoch 4 of 8 on. The best clip_factor may be another one there"


def training(recipe: Recipe) -> list[str]:
    return training_remarks(Study(name="a", question="?", recipe=recipe, space={}), IMAGENET)


def short(model: str, epochs: int, **values: Any) -> Recipe:
    return published_recipe(model).with_values({"schedule.epochs": epochs, **values})


def test_of_published_recipes_there_is_nothing_to_remark() -> None:
    for name in list_models():
        if not name.startswith("test_"):
            assert training(published_recipe(name)) == []


def test_a_warm_up_and_stairs_that_are_made_for_a_longer_training() -> None:
    (warmup,) = training(short("nfnet_f0", 8))
    assert warmup.startswith(
        "The learning rate rises for 62.5% of the training: schedule.warmup_epochs=5 is for more "
    )
    assert training(short("nfnet_f0", 8, **{"schedule.warmup_epochs": 1.0})) == []
    (stairs,) = training(short("resnet50", 8))
    assert stairs.endswith("To end at 1%: --set schedule.decay_epochs=4")
    assert training(short("resnet50", 8, **{"schedule.decay_epochs": 4.0})) == []


def test_an_average_that_has_not_forgotten_the_initial_weights() -> None:
    """0.9999 to the power of 8 times 312 steps is 0.78."""
    values = {"schedule.warmup_epochs": 1.0, "optimizer.ema.decay": 0.9999}
    (said,) = training(short("nfnet_f0", 8, **values, **{"optimizer.ema.warmup": False}))
    assert "consists of the initial weights by 77.9%" in said
    assert training(short("nfnet_f0", 8, **values)) == []


def test_running_statistics_that_have_not_forgotten_the_first_ones() -> None:
    """TensorFlow's momentum is 0.99: 0.99 to the power of 50 times 2 steps is 0.37."""
    values = {"schedule.warmup_epochs": 1.0, "schedule.decay_epochs": 0.3}
    few = replace(IMAGENET, train_images=10_000)
    study = Study(name="a", question="?", recipe=short("tf_efficientnet_b0", 50, **values), space={})
    (said,) = training_remarks(study, few)
    assert "with statistics that are the initial ones by 36.6%" in said
    more = replace(study, recipe=study.recipe.with_values({"batch_size": 256}))
    assert training_remarks(more, few) == []


@pytest.mark.parametrize("study", [ablation, sam_sweep, efficientnet_baselines])
def test_studies_that_train_all_to_the_end_have_nothing_to_remark(study: Any) -> None:
    assert training_remarks(study(DIGITS), DIGITS) == []


def test_a_field_that_is_compared_early() -> None:
    (said,) = training_remarks(agc_sweep(DIGITS), DIGITS)
    assert said.startswith(EARLY)
    later = said.split("--early-stopping ")[1]
    assert training_remarks(replace(agc_sweep(DIGITS), halving=parse_halving(later)), DIGITS) == []
    assert training_remarks(replace(agc_sweep(DIGITS), halving=Halving(schedule="stretched")), DIGITS) == []
    (joint,) = training_remarks(joint_sweep(DIGITS), replace(DIGITS, train_images=50_000))
    assert "The best clip_factor, dropout, stochastic_depth, rho and ascent_share may be others" in joint
    assert joint.endswith("synchronous:first_rung=6,eta=2,finalists=3,group=8")


def test_a_field_that_acts_in_branches_whose_gains_cannot_grow() -> None:
    """The gains of two checkpoints of the ablation were below 4e-4 (studies/ablation.py); the bound is 8e-4."""
    without = dropout_sweep(DIGITS)
    study = replace(without, recipe=without.recipe.with_values({"model.overrides.skip_gain": None}))
    (said,) = training_remarks(study, DIGITS)
    assert "in which stochastic_depth acts, hardly take part" in said
    assert "at most 0.0009" in said
    unclipped = study.recipe.with_values({"optimizer.agc.clip_factor": None})
    assert training_remarks(without, DIGITS) == []
    assert training_remarks(replace(study, recipe=unclipped), DIGITS) == []
    assert training_remarks(study, IMAGENET) == []


def test_decays_that_the_average_does_not_reach_are_the_same_training() -> None:
    """The digits have 176 steps of 64 images in 8 epochs: (1 + 175) / (10 + 175) is 0.951."""
    decays = (None, 0.9, 0.99, 0.99999)
    study = Study(name="a", question="?", recipe=sweep(DIGITS).recipe, space={"optimizer.ema.decay": decays})
    (said,) = training_remarks(study, DIGITS)
    assert said.startswith("optimizer.ema.decay 0.99 and 0.99999 are the same training")
    assert "0.951 after the 176 steps" in said
    assert training_remarks(replace(study, space={"optimizer.ema.decay": decays[:3]}), DIGITS) == []
