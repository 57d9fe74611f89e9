"""The published Recipe of every model builds, is consistent, and has the published values."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.data.augmentation.progressive import data_at_epoch
from nfnet_ray.errors import UserError
from nfnet_ray.models import list_models
from nfnet_ray.models.published import published_recipe, with_published_values
from nfnet_ray.optim import learning_rate_at
from nfnet_ray.recipe import Recipe, RecipeError

REPOSITORY = Path(__file__).resolve().parents[2]
OFFICIAL = json.loads((REPOSITORY / "tests" / "fixtures" / "nfnet_structure.json").read_text())
F_SERIES = [f"nfnet_f{index}{suffix}" for suffix in ("", "_plus") for index in range(8)]
EFFICIENTNETS = [f"tf_efficientnet_b{index}" for index in range(8)]
EFFICIENTNETS_V2 = ["tf_efficientnetv2_s", "tf_efficientnetv2_m"]

# Of no published run: the data's place, how it is kept, the parts of a batch, the seed, and what is measured.
LEFT_TO_THE_USER = ("data.path", "data.resident", "micro_batches", "seed", "signal_epochs")


def values(name: str) -> dict[str, Any]:
    return published_recipe(name).to_values()


@pytest.mark.parametrize("name", list_models())
def test_every_model_has_a_complete_recipe(name: str) -> None:
    recipe = published_recipe(name)
    assert recipe.model.name == name
    assert with_published_values(recipe) == recipe  # nothing is left open
    assert Recipe.from_values(json.loads(json.dumps(recipe.to_values()))) == recipe
    defaults = Recipe().to_values()
    assert {field: recipe.to_values()[field] for field in LEFT_TO_THE_USER} == {
        field: defaults[field] for field in LEFT_TO_THE_USER
    }
    assert recipe.optimizer.sam.rho is None
    assert recipe.optimizer.momentum == 0.9
    assert recipe.data.flip


@pytest.mark.parametrize("name", list_models())
def test_no_recipe_has_what_its_family_has_not(name: str) -> None:
    recipe = published_recipe(name)
    is_nfnet = name.startswith(("nfnet_", "nf_resnet"))
    assert (recipe.optimizer.agc.clip_factor == 0.01) == is_nfnet
    assert (recipe.optimizer.name == "rmsprop") == ("efficientnet" in name)
    assert (recipe.schedule.shape == "staircase") == (not name.startswith("nf"))
    assert recipe.optimizer.nesterov == name.startswith("nf")
    mixes = name.startswith(("nfnet_f", "nf_regnet")) or name == "tf_efficientnetv2_m"
    assert (recipe.data.mixing.mixup_alpha is not None) == mixes
    assert (recipe.data.mixing.cutmix_alpha is not None) == mixes
    # One automatic augmentation at most.
    assert not (recipe.data.autoaugment and recipe.data.randaugment.layers)


@pytest.mark.parametrize("name", F_SERIES)
def test_f_series_is_trained_as_officially(name: str) -> None:
    recipe = published_recipe(name)
    config = OFFICIAL["official_train_config"]
    variant = OFFICIAL["variants"][name.removeprefix("nfnet_").removesuffix("_plus").upper()]
    optimizer = config["optimizer"]["kwargs"]
    assert recipe.batch_size == config["train_batch_size"]
    assert recipe.schedule.epochs == config["num_epochs"]
    assert recipe.schedule.base_learning_rate == config["lr"]
    assert recipe.peak_learning_rate == 1.6
    steps_per_epoch = 1_281_167 / config["train_batch_size"]
    warmup_steps = config["lr_schedule"]["kwargs"]["warmup_steps"]
    assert recipe.schedule.warmup_epochs * steps_per_epoch == pytest.approx(warmup_steps, rel=1e-12)
    assert recipe.loss.label_smoothing == config["label_smoothing"]
    assert recipe.optimizer.weight_decay == optimizer["weight_decay"]
    assert recipe.optimizer.decayed == "weights"
    assert recipe.optimizer.momentum == optimizer["momentum"]
    assert recipe.optimizer.agc.clip_factor == optimizer["clipping"]
    assert recipe.optimizer.agc.eps == optimizer["eps"]
    assert recipe.optimizer.ema.decay == config["ema_decay"]
    assert recipe.optimizer.ema.warmup
    assert recipe.precision == "bfloat16"
    assert recipe.model.stochastic_depth == config["model_kwargs"]["stochdepth_rate"]
    assert recipe.model.dropout == variant["drop_rate"]
    assert recipe.data.image_size == variant["train_imsize"]
    assert recipe.data.eval_size == variant["test_imsize"]
    assert recipe.data.eval_crop == "squash"
    assert recipe.data.crop == "random_resized"
    mixing = recipe.data.mixing
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.partners) == (0.2, 1.0, "separate")
    layers, magnitude = divmod(int(variant["ra_level"]), 100)
    assert recipe.data.randaugment.layers == layers
    assert recipe.data.randaugment.magnitude == magnitude


def test_randaugment_follows_the_variant() -> None:
    """The paper's appendix A.3, F0 to F6; F7 is in the official code alone."""
    magnitudes = [values(name)["data.randaugment.magnitude"] for name in F_SERIES[:8]]
    assert magnitudes == [5, 10, 10, 15, 15, 15, 15, 15]


@pytest.mark.parametrize(
    ("name", "size", "dropout", "layers", "magnitude"),
    [
        ("tf_efficientnet_b0", 224, 0.2, 0, None),
        ("tf_efficientnet_b1", 240, 0.2, 0, None),
        ("tf_efficientnet_b2", 260, 0.3, 0, None),
        ("tf_efficientnet_b3", 300, 0.3, 0, None),
        ("tf_efficientnet_b4", 380, 0.4, 0, None),
        ("tf_efficientnet_b5", 456, 0.4, 2, 17),
        ("tf_efficientnet_b6", 528, 0.5, 0, None),
        ("tf_efficientnet_b7", 600, 0.5, 2, 28),
    ],
)
def test_efficientnets_have_their_own_recipe(
    name: str, size: int, dropout: float, layers: int, magnitude: float | None
) -> None:
    recipe = published_recipe(name)
    assert (recipe.data.image_size, recipe.data.eval_size) == (size, size)
    assert recipe.model.dropout == dropout
    assert recipe.data.randaugment.layers == layers
    assert recipe.data.autoaugment == (layers == 0)
    if magnitude is not None:
        assert recipe.data.randaugment.magnitude == magnitude
    assert recipe.data.eval_crop == "central"
    assert recipe.optimizer.decayed == "all_but_norm"


@pytest.mark.parametrize("name", EFFICIENTNETS + EFFICIENTNETS_V2)
def test_efficientnets_share_optimiser_and_schedule(name: str) -> None:
    recipe = published_recipe(name)
    assert recipe.batch_size == 4096
    assert recipe.peak_learning_rate == pytest.approx(0.256)
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (350, 5)
    assert (recipe.schedule.decay_factor, recipe.schedule.decay_epochs) == (0.97, 2.4)
    optimizer = recipe.optimizer
    assert (optimizer.rmsprop_decay, optimizer.rmsprop_eps, optimizer.weight_decay) == (0.9, 1e-3, 1e-5)
    assert (optimizer.ema.decay, optimizer.ema.warmup) == (0.9999, True)
    assert recipe.loss.label_smoothing == 0.1
    assert recipe.model.stochastic_depth == 0.2
    assert optimizer.agc.exclude == ("classifier.weight",)


@pytest.mark.parametrize(
    ("name", "sizes", "dropout", "magnitude", "alpha"),
    [
        ("tf_efficientnetv2_s", (300, 384), 0.2, 10, None),
        ("tf_efficientnetv2_m", (384, 480), 0.3, 15, 0.2),
    ],
)
def test_second_efficientnets_end_with_their_last_stage(
    name: str, sizes: tuple[int, int], dropout: float, magnitude: float, alpha: float | None
) -> None:
    recipe = published_recipe(name)
    assert (recipe.data.image_size, recipe.data.eval_size) == sizes
    assert recipe.model.dropout == dropout
    assert (recipe.data.randaugment.layers, recipe.data.randaugment.magnitude) == (2, magnitude)
    mixing = recipe.data.mixing
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.partners) == (alpha, alpha, "batch")
    assert not recipe.data.autoaugment
    assert recipe.optimizer.decayed == "weights"


@pytest.mark.parametrize(
    (
        "name",
        "stages",
    ),  # pixels, RandAugment's magnitude, MixUp's alpha: google/automl efficientnetv2/main_tf2.py
    [
        ("tf_efficientnetv2_s", [(171, 5, None), (214, 20 / 3, None), (257, 25 / 3, None), (300, 10, None)]),
        (
            "tf_efficientnetv2_m",
            [(192, 5, None), (256, 25 / 3, 0.2 / 3), (320, 35 / 3, 0.4 / 3), (384, 15, 0.2)],
        ),
    ],
)
def test_second_efficientnets_grow_in_four_stages(
    name: str, stages: list[tuple[int, float, float | None]]
) -> None:
    recipe = published_recipe(name)
    borders = [int(stage / 4 * 350) for stage in range(5)]
    for expected, first, end in zip(stages, borders, borders[1:], strict=False):
        for epoch in (first, end - 1):
            data = data_at_epoch(recipe.data, epoch, recipe.schedule.epochs)
            assert (data.image_size, data.randaugment.magnitude) == pytest.approx(expected[:2])
            assert data.mixing.mixup_alpha == data.mixing.cutmix_alpha == pytest.approx(expected[2])


def test_resnet_is_torchvisions_first() -> None:
    recipe = published_recipe("resnet50")
    assert (recipe.batch_size, recipe.peak_learning_rate) == (256, 0.1)
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.warmup_epochs) == (90, 0)
    assert (schedule.decay_factor, schedule.decay_epochs) == (0.1, 30)
    assert recipe.optimizer.weight_decay == 1e-4
    assert recipe.optimizer.ema.decay is None
    assert recipe.optimizer.agc.exclude == ("fc.weight",)
    assert recipe.loss.label_smoothing == 0
    assert (recipe.data.image_size, recipe.data.eval_size) == (224, 224)
    assert (recipe.model.dropout, recipe.model.stochastic_depth) == (0, 0)


@pytest.mark.parametrize("name", [name for name in list_models() if name.startswith("nf_resnet")])
def test_nf_resnets_are_those_of_the_ablation(name: str) -> None:
    recipe = published_recipe(name)
    assert (recipe.batch_size, recipe.peak_learning_rate) == (1024, 0.4)
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (90, 5)
    assert (recipe.optimizer.weight_decay, recipe.optimizer.ema.decay) == (1e-4, None)
    assert recipe.data.randaugment.layers == 0
    assert recipe.data.image_size == 224
    assert recipe.model.dropout == 0


@pytest.mark.parametrize("name", [name for name in list_models() if name.startswith("nf_regnet")])
def test_nf_regnets_decay_more_with_each_level(name: str) -> None:
    recipe = published_recipe(name)
    decays = {"b0": 5e-5, "b1": 6e-5, "b2": 7e-5, "b3": 8e-5, "b4": 9e-5, "b5": 1e-4}
    assert recipe.optimizer.weight_decay == decays[name[-2:]]
    assert (recipe.batch_size, recipe.peak_learning_rate) == (1024, 0.4)
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (360, 5)
    assert recipe.optimizer.ema.decay == 0.99999
    assert recipe.data.randaugment.layers == 0
    assert recipe.precision == "float32"


@pytest.mark.parametrize("name", ["nfnet_pico", "nfnet_nano"])
def test_small_members_take_small_images_as_they_are(name: str) -> None:
    recipe = published_recipe(name)
    assert (recipe.data.crop, recipe.data.image_size, recipe.data.eval_size) == ("padded", 32, 32)
    assert recipe.data.randaugment.layers == 0  # its translations are counted in pixels
    assert recipe.optimizer.agc.clip_factor == 0.01


@pytest.mark.parametrize(
    ("name", "epoch", "rate"),
    [
        ("nfnet_f0", 0, 0.0),
        ("nfnet_f6", 2.5, 0.8),  # half of the warm-up to 1.6
        ("nfnet_f6", 5 + 355 / 2, 0.8),  # half of the cosine
        ("nfnet_f6", 360, 0.0),
        ("nf_resnet50", 5, 0.4),
        ("nf_resnet50", 47.5, 0.2),
        ("nf_regnet_b3", 5, 0.4),
        ("tf_efficientnet_b7", 2.5, 0.128),
        ("tf_efficientnet_b7", 5, 0.256 * 0.97**2),
        ("tf_efficientnetv2_m", 24.01, 0.256 * 0.97**10),
        ("tf_efficientnet_b0", 349.9, 0.256 * 0.97**145),
        ("resnet50", 0, 0.1),
        ("resnet50", 29.99, 0.1),
        ("resnet50", 30.01, 0.01),
        ("resnet50", 89.99, 0.001),
    ],
)
def test_learning_rates_on_imagenet_are_the_published_ones(name: str, epoch: float, rate: float) -> None:
    recipe = published_recipe(name)
    steps_per_epoch = 1_281_167 / recipe.batch_size
    step = round(epoch * steps_per_epoch)
    actual = learning_rate_at(
        step, recipe.schedule, peak=recipe.peak_learning_rate, steps_per_epoch=steps_per_epoch
    )
    assert actual == pytest.approx(rate, rel=2e-3, abs=1e-6)  # an epoch is not a whole number of steps


def test_only_what_is_open_is_filled() -> None:
    recipe = Recipe().with_values(
        {
            "model.name": "nfnet_f3",
            "model.dropout": 0.0,
            "data.image_size": 128,
            "data.randaugment.magnitude": 3,
        }
    )
    filled = with_published_values(recipe)
    assert (filled.model.dropout, filled.model.stochastic_depth) == (0.0, 0.25)
    assert (filled.data.image_size, filled.data.eval_size) == (128, 416)
    assert filled.data.randaugment.magnitude == 3


@pytest.mark.parametrize(
    ("name", "magnitude"), [("resnet50", 10), ("tf_efficientnet_b4", 15), ("nfnet_nano", 5)]
)
def test_without_a_published_magnitude_it_is_the_f_series_of_that_size(name: str, magnitude: float) -> None:
    recipe = with_published_values(Recipe().with_values({"model.name": name}))
    assert recipe.data.randaugment.magnitude == magnitude


def test_an_unknown_model_is_named_with_its_neighbours() -> None:
    with pytest.raises(
        UserError, match=r"^unknown model 'tf_efficientnet_b9'; did you mean .*tf_efficientnet_b"
    ):
        published_recipe("tf_efficientnet_b9")
    with pytest.raises(
        UserError,
        match=r"^unknown model 'vit'; use one of nfnet_pico, .*, resnet50 \(a network of your own is",
    ):
        with_published_values(Recipe().with_values({"model.name": "vit"}))


def test_a_baseline_takes_no_overrides() -> None:
    recipe = Recipe().with_values({"model.name": "resnet50", "model.overrides.alpha": 0.3})
    with pytest.raises(UserError, match=r"^model resnet50: overrides alpha are not possible"):
        with_published_values(recipe)
    with pytest.raises(RecipeError):
        Recipe().with_values({"model.dropout": 1.0})


def test_needs_neither_torch_nor_timm() -> None:
    program = (
        "import sys; from nfnet_ray.models import list_models;"
        "from nfnet_ray.models.catalogue import count_multiply_adds, count_parameters;"
        "from nfnet_ray.models.published import published_recipe;"
        "[(published_recipe(n), count_parameters(n, 10), count_multiply_adds(n, 32, 10)) for n in list_models()];"
        "sys.exit(', '.join({'torch', 'timm', 'numpy'} & sys.modules.keys()) or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
