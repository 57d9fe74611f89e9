"""The Recipe that the studies start from: a small network, plain images, settings that fit the images' size."""

from __future__ import annotations

from dataclasses import replace

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.recipe import (
    DataRecipe,
    EMARecipe,
    MixingRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Overrides,
    RandAugmentRecipe,
    Recipe,
    ScheduleRecipe,
)

# Images up to this size are shifted, as CIFAR's are; larger ones are cropped, as ImageNet's are.
SMALL_IMAGE_PIXELS = 64
USUAL_BATCH_SIZES = (64, 256)
LEAST_STEPS_PER_EPOCH = 20  # five epochs are a hundred steps


def recipe_for(data: DatasetSummary, epochs: int) -> Recipe:
    """A Recipe of ``epochs`` epochs on a data set. The study sets the batch size."""
    size, small = max(data.uniform_size or (0,)), is_small(data)
    return Recipe(
        # In so few steps AGC holds the gains of the residual branches at 0, where they begin: what acts in the branches
        # would change nothing, and the best clip factor would be the one that lets the gains grow.
        # docs/methods/residual_branches.md
        model=ModelRecipe(name="nfnet_pico", overrides=Overrides(skip_gain=False)),
        data=DataRecipe(
            path=str(data.path),
            crop="padded" if small else "random_resized",
            crop_padding=size // 8 if small else 0,  # CIFAR's 4 of 32 pixels
            # Also where --set changes the size: at 16 pixels the official crop leaves a third of each side.
            eval_crop="whole" if small else "squash",
            flip=not all(name.isdigit() for name in data.class_names),  # a mirrored digit is not a digit
            # Plain images, as in the paper's ablation of AGC, so that nothing else affects the answer.
            mixing=MixingRecipe(mixup_alpha=None, cutmix_alpha=None),
            randaugment=RandAugmentRecipe(layers=0),
        ),
        optimizer=OptimizerRecipe(ema=EMARecipe(decay=None)),
        schedule=ScheduleRecipe(
            epochs=epochs,
            warmup_epochs=epochs / 8,
            # Four times the paper's, so that a few epochs show what many would.
            base_learning_rate=0.4,
        ),
        # On a CPU by rules, so that a study gives the same bits in every run.
        memory_format="auto",
        grouped_convolutions="auto",
    )


def with_network(recipe: Recipe, name: str) -> Recipe:
    """The Recipe with another network, and without overrides, which are made for the Recipe's own."""
    if name == recipe.model.name:
        return recipe
    return replace(recipe, model=replace(recipe.model, overrides=Overrides())).with_values(
        {"model.name": name}
    )


def is_small(data: DatasetSummary) -> bool:
    """Whether all images of a data set have the same size, of at most 64 pixels."""
    return data.uniform_size is not None and max(data.uniform_size) <= SMALL_IMAGE_PIXELS


def batch_size_for(data: DatasetSummary) -> int:
    """The largest of 64 and 256 that leaves at least 20 steps per epoch, for studies that do not sweep it."""
    fitting = [size for size in USUAL_BATCH_SIZES if size * LEAST_STEPS_PER_EPOCH <= data.train_images]
    return max(fitting, default=max(1, min(USUAL_BATCH_SIZES[0], data.train_images // 2)))
