"""The published values of each model: those that a Recipe leaves open, and whole Recipes.

The Recipe of each family is a function. Its docstring names the source, the published accuracy, and the details that a
Recipe cannot express. Accuracies are top-1 on ImageNet's 50,000 validation images, with one crop.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.models.catalogue import get_model, refuse_overrides
from nfnet_ray.recipe import (
    AGCRecipe,
    DataRecipe,
    EMARecipe,
    LossRecipe,
    MixingRecipe,
    ModelRecipe,
    OptimizerRecipe,
    RandAugmentRecipe,
    Recipe,
    ResolvedRecipe,
    ScheduleRecipe,
    is_import_path,
    split_weights,
)
from nfnet_ray.settings import narrowed

# Strength of RandAugment by model. F-series: official experiment_nfnets.py, the same for the wider `plus`
# members. EfficientNet: tensorflow/tpu models/official/efficientnet/README.md (Cubuk et al. 2019).
# EfficientNetV2: google/automl effnetv2_configs.py, the last and largest of its progressive training.
_RANDAUGMENT_MAGNITUDES = {
    **dict(zip((f"nfnet_f{index}" for index in range(8)), (5, 10, 10, 15, 15, 15, 15, 15), strict=True)),
    "tf_efficientnet_b5": 17,
    "tf_efficientnet_b7": 28,
    "tf_efficientnetv2_s": 10,
    "tf_efficientnetv2_m": 15,
}


def _randaugment_magnitude(name: str, train_size: int) -> float:
    """The published magnitude, or that of the F-series at this image size. If it is too strong for the size, images
    become blank (paper A.3)."""
    published = _RANDAUGMENT_MAGNITUDES.get(name.removesuffix("_plus"))
    if published is not None:
        return float(published)
    return 5.0 if train_size <= 192 else 10.0 if train_size <= 256 else 15.0


def with_published_values(recipe: Recipe) -> Recipe:
    """Replaces None in a Recipe by the model's published sizes, dropout, stochastic depth and RandAugment magnitude.

    If no magnitude was published, it is that of the F-series at the model's training size. For a user's own network
    nothing was published. It gets no dropout and no stochastic depth, and is evaluated at its training size.

    Raises UserError for a model that does not exist, for overrides that the model does not take, and for a user's own
    network without `data.image_size`.
    """
    name = recipe.model.name
    if recipe.model.is_own:
        return _with_plain_values(recipe)
    model = get_model(name, recipe.model.overrides.chosen())
    published = {
        "model.dropout": model.dropout,
        "model.stochastic_depth": model.stochastic_depth,
        "data.image_size": model.train_size,
        "data.eval_size": model.test_size,
        "data.randaugment.magnitude": _randaugment_magnitude(name, model.train_size),
    }
    values = recipe.to_values()
    return recipe.with_values({key: value for key, value in published.items() if values[key] is None})


def _with_plain_values(recipe: Recipe) -> Recipe:
    """Replaces None in the Recipe of a user's own network by plain values."""
    model, size = recipe.model, recipe.data.image_size
    refuse_overrides(model.name, model.overrides.chosen())
    if size is None:
        raise UserError(
            f"nothing is known about the images of {model.label}: set data.image_size, such as 224"
        )
    if recipe.signal_epochs:
        raise UserError(
            f"signal_epochs = {recipe.signal_epochs}: the signal of {model.label} has no expectation; set it to 0"
        )
    plain = {
        "model.dropout": 0.0,
        "model.stochastic_depth": 0.0,
        "data.eval_size": size,
        "data.randaugment.magnitude": _randaugment_magnitude(model.name, size),
    }
    values = recipe.to_values()
    return recipe.with_values({key: value for key, value in plain.items() if values[key] is None})


def resolve(recipe: Recipe) -> ResolvedRecipe:
    """The result of :func:`with_published_values`, typed as a ResolvedRecipe. Raises the same errors."""
    return narrowed(with_published_values(recipe), ResolvedRecipe)


def published_recipe(name: str) -> Recipe:
    """The Recipe that was published for a model, with all values filled in except `data.path`.

    >>> recipe = published_recipe("nfnet_f1")
    >>> recipe.batch_size, recipe.data.image_size, recipe.data.randaugment.magnitude
    (4096, 224, 10.0)

    Raises UserError for a model that does not exist, and for one without a Recipe, such as a user's own network.
    """
    if isinstance(name, str) and is_import_path(name):
        raise UserError(
            f"nothing was published for {split_weights(name)[0]}: start from another network's Recipe, such as "
            f"published_recipe('nfnet_f0').with_values({{'model.name': {name!r}}})"
        )
    get_model(name)
    family = next((family for pattern, family in _FAMILIES.items() if re.match(pattern, name)), None)
    if family is None:
        raise UserError(
            f"model {name} has no Recipe: add one to _FAMILIES in nfnet_ray/models/published.py (CONTRIBUTING.md)"
        )
    return with_published_values(family(name))


# Fields that do not change what is learned, or that each study chooses for itself.
_NOT_COMPARED = {
    "data.path",
    "data.resident",
    "data.on_damaged",
    "micro_batches",
    "memory_format",
    "compile",
    "grouped_convolutions",
    "activation_memory_budget",
    "capture",
    "seed",
    "signal_epochs",
}


def published_differences(recipe: Recipe) -> dict[str, Any] | None:
    """{dotted name: published value} where a Recipe differs from that of its model; None if none was published.

    Raises UserError for a model that does not exist.
    """
    name = recipe.model.name
    if recipe.model.is_own or re.match(_WITHOUT_PUBLISHED, name):
        return None
    own, published = with_published_values(recipe).to_values(), published_recipe(name).to_values()
    return {
        field: value
        for field, value in published.items()
        if value != own[field] and field not in _NOT_COMPARED
    }


# Paper appendix A.5: 15,000 steps of 2,048 images on ImageNet's 1,281,167 are 24 epochs, and 5,000 of warm-up 8.
FINETUNING_EPOCHS = 24
FINETUNING_WARMUP_SHARE = 1 / 3


def finetuning_values(epochs: int = FINETUNING_EPOCHS) -> dict[str, object]:
    """{dotted Recipe name: value} of how the paper fine-tunes NFNets that were trained on a larger data set.

    Source: paper appendix A.5, for JFT-300M to ImageNet: SGD at a peak of 0.1 for 2,048 images, of which a third of
    the steps is warm-up, weight decay 1e-5, dropout 0.25 and stochastic depth 0.1 whatever the size of the network,
    SAM with a rho of 0.05. With other ``epochs`` the warm-up keeps its share.

    Not in it, as the paper does not say it for fine-tuning: the moving average, AGC and augmentation, which stay what
    the Recipe has.
    """
    return {
        "model.dropout": 0.25,
        "model.stochastic_depth": 0.1,
        "optimizer.weight_decay": 1e-5,
        "optimizer.sam.rho": 0.05,
        "schedule.epochs": epochs,
        "schedule.warmup_epochs": epochs * FINETUNING_WARMUP_SHARE,
        "schedule.base_learning_rate": 0.1 * 256 / 2048,
        "batch_size": 2048,
    }


_NO_MIXING = MixingRecipe(mixup_alpha=None, cutmix_alpha=None)
_NO_RANDAUGMENT = RandAugmentRecipe(layers=0)


def _nfnet(name: str) -> Recipe:
    """NFNet-F0 to F7, and the wider F0+ to F7+, which the paper only pre-trains.

    Source: official experiment_nfnets.py, paper section 6.1 and appendix A. Published: F0 83.6, F1 84.7,
    F2 85.1, F3 85.7, F4 85.9, F5 86.0; with SAM F5 86.3 and F6 86.5. Mean of three seeds, SAM's of one.

    SAM is off, also for F5 and F6: the paper gives no rho for ImageNet (its 0.05 is for fine-tuning, A.5), and
    the official repository has no SAM. To have it: `optimizer.sam.rho`, with `optimizer.sam.ascent_share` 0.2.

    The paper's bfloat16 casts the weights too, ours is autocast's: weights stay float32 until an operation.
    """
    return Recipe(  # the defaults of the fields are this recipe; what is said again is what makes it
        model=ModelRecipe(name=name),
        data=DataRecipe(
            crop="random_resized",
            mixing=MixingRecipe(mixup_alpha=0.2, cutmix_alpha=1.0, partners="separate"),
            randaugment=RandAugmentRecipe(layers=4),
            eval_crop="squash",
        ),
        optimizer=OptimizerRecipe(
            weight_decay=2e-5,
            decayed="weights",
            agc=AGCRecipe(clip_factor=0.01, exclude=("classifier.weight",)),
            ema=EMARecipe(decay=0.99999, warmup=True),
        ),
        schedule=ScheduleRecipe(epochs=360, warmup_epochs=5.0, base_learning_rate=0.1),
        loss=LossRecipe(label_smoothing=0.1),
        batch_size=4096,
        precision="bfloat16",
    )


def _small_nfnet(name: str) -> Recipe:
    """The small members, for images of CIFAR's size. There are no published Recipes for them.

    The optimiser, the schedule's shape and the smoothing are the F-series'; the shifts by up to 4 of 32 pixels
    are those of He et al. 2016 for CIFAR-10. No mixing and no RandAugment, whose translations are counted in
    pixels and leave nothing of an image this small. A start for studies of one's own, not tuned.
    """
    return Recipe(
        model=ModelRecipe(name=name),
        data=DataRecipe(
            crop="padded",
            crop_padding=4,
            mixing=_NO_MIXING,
            randaugment=_NO_RANDAUGMENT,
            eval_crop="whole",
        ),
        schedule=ScheduleRecipe(epochs=60, warmup_epochs=5.0, base_learning_rate=0.1),
        batch_size=256,
    )


def _nf_resnet(name: str) -> Recipe:
    """NF-ResNets as in the paper's ablation of AGC.

    Source: paper section 4.1 and appendix D: Nesterov momentum, 90 epochs, batches of 256 to 4096, 0.1 for 256
    images, AGC on all but the classifier's weight with a factor of 0.01 to 0.16 (0.01 for 1024 images and
    more, section 5.1). What the paper leaves open is the default of the official experiment.py: batch 1024,
    warm-up of 5 epochs, cosine, weight decay 1e-4, label smoothing 0.1, plain crops and flips, no dropout, no
    EMA, float32, central evaluation crop. Accuracies are published as a figure (figure 2) alone.
    """
    return Recipe(
        model=ModelRecipe(name=name, dropout=0.0),
        data=DataRecipe(mixing=_NO_MIXING, randaugment=_NO_RANDAUGMENT, eval_crop="central"),
        optimizer=OptimizerRecipe(
            weight_decay=1e-4,
            agc=AGCRecipe(clip_factor=0.01, exclude=("classifier.weight",)),
            ema=EMARecipe(decay=None),
        ),
        schedule=ScheduleRecipe(epochs=90, warmup_epochs=5.0, base_learning_rate=0.1),
        batch_size=1024,
    )


def _nf_regnet(name: str) -> Recipe:
    """NF-RegNet-B0 to B5.

    Source: official experiment_nf_regnets.py: batch 1024 at 0.4, 360 epochs, no AGC, weight decay 5e-5 and 1e-5
    more for each level, MixUp and CutMix without RandAugment, EMA, float32, central evaluation crop; no
    accuracies there. Its cosine ends at 0.001, ours at 0.
    """
    level = int(name[-1])
    return Recipe(
        model=ModelRecipe(name=name),
        data=DataRecipe(
            mixing=MixingRecipe(mixup_alpha=0.2, cutmix_alpha=1.0, partners="separate"),
            randaugment=_NO_RANDAUGMENT,
            eval_crop="central",
        ),
        optimizer=OptimizerRecipe(
            weight_decay=round(5e-5 + 1e-5 * level, 5),  # no trace of binary fractions in tables
            agc=AGCRecipe(clip_factor=None, exclude=("classifier.weight",)),
            ema=EMARecipe(decay=0.99999, warmup=True),
        ),
        schedule=ScheduleRecipe(epochs=360, warmup_epochs=5.0, base_learning_rate=0.1),
        batch_size=1024,
    )


def _efficientnet(name: str) -> Recipe:
    """EfficientNet-B0 to B7, each with the better of its published augmentations.

    Source: Tan and Le 2019; tensorflow/tpu models/official/efficientnet, `main.py`, `utils.py` and README.md.
    Published with AutoAugment: B0 77.1, B1 79.1, B2 80.1, B3 81.6, B4 82.9, B6 84.0; with RandAugment of two
    layers: B5 83.7, B7 84.7.

    The original holds out 25,022 training images and keeps the checkpoint that is best on them; it also
    averages batch normalisation's statistics over groups of replicas, where ours are each worker's own.

    The layout is the faster one on the GPU that timm measured (docs/methods/baselines.md); measure it on yours.
    """
    has_randaugment = name in _RANDAUGMENT_MAGNITUDES
    return Recipe(
        model=ModelRecipe(name=name),
        data=DataRecipe(
            mixing=_NO_MIXING,
            randaugment=RandAugmentRecipe(layers=2) if has_randaugment else _NO_RANDAUGMENT,
            autoaugment=not has_randaugment,
            eval_crop="central",
        ),
        optimizer=OptimizerRecipe(
            name="rmsprop",
            momentum=0.9,
            nesterov=False,
            rmsprop_decay=0.9,
            rmsprop_eps=1e-3,
            weight_decay=1e-5,
            decayed="all_but_norm",
            agc=AGCRecipe(clip_factor=None, exclude=("classifier.weight",)),
            ema=EMARecipe(decay=0.9999, warmup=True),
        ),
        schedule=ScheduleRecipe(
            epochs=350,
            warmup_epochs=5.0,
            base_learning_rate=0.016,  # 0.256 at 4096
            shape="staircase",
            decay_factor=0.97,
            decay_epochs=2.4,
        ),
        loss=LossRecipe(label_smoothing=0.1),
        batch_size=4096,
        precision="bfloat16",
        memory_format="channels_last",
    )


def _efficientnet_v2(name: str) -> Recipe:
    """EfficientNetV2-S and M with their progressive training: four stages of growing images and augmentation.

    Source: Tan and Le 2021; google/automl efficientnetv2, `hparams.py`, `effnetv2_configs.py`, `utils.py`, and for
    the stages `main_tf2.py`: 171, 214, 257, 300 pixels for S, 192, 256, 320, 384 for M; RandAugment from 5 and
    mixing from 0 on, in equal steps. (The paper's table 6 has 128 to 300 and 380, RandAugment of 5 to 15 and 20,
    and dropout that grows too, from 0.1 to 0.3 and 0.4; the code's is constant.) EfficientNet's optimiser and
    schedule, but biases are not decayed (`weight_decay_exclude`). Published: S 83.9, M 85.2.

    Smaller differences: the original mixes after RandAugment, crops from 5% of the area, maps pixels to -1..1,
    and evaluates on the whole image, squashed; here a border of 16 pixels is cut off the squashed image.
    """
    mixes = name.endswith("_m")
    return _efficientnet(name).with_values(
        {
            "data.progressive.start_size": 192 if mixes else 171,
            "data.progressive.stages": 4,
            "data.progressive.step": 1,
            "data.progressive.start_magnitude": 5.0,
            "data.progressive.mixing_grows": True,
            "data.mixing.mixup_alpha": 0.2 if mixes else None,
            "data.mixing.cutmix_alpha": 0.2 if mixes else None,
            "data.mixing.partners": "batch",  # the batch in reverse (`datasets.py`)
            "data.eval_crop": "squash",
            "optimizer.decayed": "weights",
        }
    )


def _resnet50(name: str) -> Recipe:
    """ResNet-50 as torchvision trained its first weights (IMAGENET1K_V1). Published: 76.13.

    Source: torchvision's `references/classification` and the weights' own page: batch 256 at 0.1, divided by
    10 every 30 of 90 epochs, momentum 0.9 without Nesterov, weight decay 1e-4, plain crops and flips.

    The original decays batch normalisation's gains and shifts too, and starts the last of each branch at 1;
    here they are not decayed, and timm starts it at 0. Goyal et al. 2017 do both, and with one more step down
    at epoch 80 report 76.4. For larger batches they warm up: `schedule.warmup_epochs` 5. torchvision's crops
    are larger, too: it draws their area, TensorFlow their height (docs/methods/crop_and_flip.md).
    """
    return Recipe(
        model=ModelRecipe(name=name),
        data=DataRecipe(mixing=_NO_MIXING, randaugment=_NO_RANDAUGMENT, eval_crop="central"),
        optimizer=OptimizerRecipe(
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            decayed="all_but_norm",
            agc=AGCRecipe(clip_factor=None, exclude=("fc.weight",)),
            ema=EMARecipe(decay=None),
        ),
        schedule=ScheduleRecipe(
            epochs=90,
            warmup_epochs=0.0,
            base_learning_rate=0.1,
            shape="staircase",
            decay_factor=0.1,
            decay_epochs=30.0,
        ),
        loss=LossRecipe(label_smoothing=0.0),
        batch_size=256,
        memory_format="channels_last",
    )


def _test_efficientnet(name: str) -> Recipe:
    """timm's smallest EfficientNet, for images of CIFAR's size. There is no published Recipe for it.

    Optimiser, moving average, smoothing and the schedule's shape are EfficientNet's, each epoch a share of as many;
    images, batch and the number of epochs are those of the small NFNets (`_small_nfnet`). Not tuned.
    """
    return _efficientnet(name).with_values(_small_baseline_values(350, 2.4, 5.0))


def _test_resnet(name: str) -> Recipe:
    """timm's smallest ResNet, for images of CIFAR's size. There is no published Recipe for it.

    ResNet-50's optimiser and schedule, each epoch a share of as many; images, batch and the number of epochs are those
    of the small NFNets (`_small_nfnet`). Not tuned.
    """
    return _resnet50(name).with_values(_small_baseline_values(90, 30.0, 0.0))


def _small_baseline_values(epochs: int, decay_epochs: float, warmup_epochs: float) -> dict[str, Any]:
    """The small NFNets' values for a small baseline, with a published schedule scaled to their number of epochs."""
    small = _small_nfnet("nfnet_pico")
    share = small.schedule.epochs / epochs
    names = (
        "crop",
        "crop_padding",
        "mixing.mixup_alpha",
        "mixing.cutmix_alpha",
        "randaugment.layers",
        "eval_crop",
    )
    values = small.to_values()
    return {f"data.{name}": values[f"data.{name}"] for name in names} | {
        "data.autoaugment": False,
        "schedule.epochs": small.schedule.epochs,
        "schedule.decay_epochs": decay_epochs * share,
        "schedule.warmup_epochs": warmup_epochs * share,
        "batch_size": small.batch_size,
        "precision": small.precision,
    }


# Their Recipe is this project's (_small_nfnet, _test_efficientnet, _test_resnet).
_WITHOUT_PUBLISHED = r"nfnet_(?!f\d)|test_"
_FAMILIES: dict[str, Callable[[str], Recipe]] = {
    r"nfnet_f\d": _nfnet,
    r"nfnet_": _small_nfnet,
    r"nf_resnet": _nf_resnet,
    r"nf_regnet": _nf_regnet,
    r"tf_efficientnet_b": _efficientnet,
    r"tf_efficientnetv2_": _efficientnet_v2,
    r"resnet50": _resnet50,
    r"test_efficientnet": _test_efficientnet,
    r"test_resnet": _test_resnet,
}
