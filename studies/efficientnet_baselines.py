"""How much training time does a normaliser-free network take to reach the accuracy of an EfficientNet?

Question. Brock et al. (2021, figure 1 and table 3) train NFNet-F1 to the accuracy of EfficientNet-B7 with steps that
take an eighth of the time. The curve of one long training does not show that: its accuracy halfway is not what a
training of half the length reaches, since its learning rate is still high. So each network is trained with several
*budgets*, each with a complete schedule of its own, and times are compared at equal accuracy.

Command. ``python studies/efficientnet_baselines.py`` on one machine, on the 1,797 handwritten digits that come with
scikit-learn; ``--data PATH --address auto`` on a cluster, on a data set that data_prep converted.

How to read it. Every network has the Recipe that was published for it (``published_recipe``): its own optimiser,
schedule, augmentation, image size and batch. A shorter budget has the same schedule, shrunk. Images up to 64 pixels are
for the small members of the families, whose Recipes are this project's: the optimiser and the schedule are those of
their family, and no more tuned for one than for the other. So few steps need larger learning rates: all of them are
multiplied by the same number, which is 4, or 16 if there are at most 10,000 training images. (On the digits, with one
seed and 3 and 8 epochs, 16 was the best of 1/4, 1, 4 and 16 for each network, except test_resnet at 8 epochs, where 4
gave 98.1% and 16 gave 97.8%.)

Cost. 27 trials of 3, 6 and 12 epochs on the digits: 4 minutes on two cores. On ImageNet there are 13 networks,
each with budgets of a quarter, a half and all of its published epochs: 13 times 1.75 published trainings, for each of
three seeds. ``--plan`` shows it, and ``--seeds 1`` and ``--epochs`` reduce it.

Result. On the digits, with no flags (3 seeds, 360 validation images, float32; two trials at once on two cores of an AMD
EPYC, with a higher priority than other work; ``studies/results/efficientnet_baselines``):

    At equal accuracy (97.5%) nfnet_pico takes 2.56 of test_efficientnet's training time (95% interval
    over seeds and images 1.74 to 3.55)

    mean top-1 in percent, and seconds   3 epochs   6 epochs  12 epochs
    nfnet_pico                         94.0,  7.9 98.4, 15.9 99.0, 30.4
    test_efficientnet                  94.9,  3.2 98.0,  5.9 99.2, 11.9
    test_resnet                        96.7,  3.4 97.6,  7.3 98.4, 14.6

On a tenth of CIFAR-10 at 16 px (``--data data/cifar10_half --set data.train_share=0.1 --set data.image_size=16 --set
data.eval_size=16 --set data.crop_padding=2``: 4,992 images an epoch; 3 seeds, 5,000 test images, float32; 5 minutes,
two trials at once on two cores of an AMD EPYC, with a higher priority than other work;
``studies/results/efficientnet_cifar10``):

    At equal accuracy (40.5%) nfnet_pico takes 1.27 of test_efficientnet's training time (95% interval
    over seeds and images 0.99 to 1.53)
    At equal accuracy (41.5%) nfnet_pico takes 1.48 of test_resnet's training time (95% interval
    over seeds and images 1.19 to 1.78)

    mean top-1 in percent, and seconds   3 epochs   6 epochs  12 epochs
    nfnet_pico                         31.6,  9.2 38.5, 17.8 44.4, 33.5
    test_efficientnet                  27.6,  5.5 36.9, 10.0 42.0, 22.0
    test_resnet                        33.8,  5.4 37.5,  9.6 43.1, 20.8

So among these tiny networks, with the same learning rates and no tuning, the normaliser-free one is the most accurate
after 6 and 12 epochs, and the slowest: a step of nfnet_pico has three times the multiply-adds of test_efficientnet's.
This says nothing about the published sizes on a GPU, which the paper is about and which have not been tried.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.models.published import published_recipe
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.halving import with_schedule_of
from nfnet_ray.study.study import Study
from studies.base_recipe import batch_size_for, is_small, recipe_for
from studies.running.flags import main

QUESTION = (
    "How much training time does a normaliser-free network take to reach the accuracy of an EfficientNet?"
)
SMALL_NETWORKS = ("nfnet_pico", "test_efficientnet", "test_resnet")
NETWORKS = (
    *(f"nfnet_f{index}" for index in range(3)),
    *(f"tf_efficientnet_b{index}" for index in range(8)),
    "tf_efficientnetv2_s",
    "resnet50",
)
# Of the longest: a budget frontier needs several, and each costs as much as all shorter ones together.
SHARES = (0.25, 0.5, 1.0)
SMALL_EPOCHS = 12
FEW_IMAGES = 10_000
SEEDS = (0, 1, 2)


def efficientnet_baselines(data: DatasetSummary, epochs: int | None = None) -> Study:
    """The study on a data set: each network with each budget.

    ``epochs`` are those of the longest budget; by default of each network what was published for it, and for images up
    to 64 pixels 12.
    """
    networks = SMALL_NETWORKS if is_small(data) else NETWORKS
    recipes = [_recipe(name, data, epochs) for name in networks]
    return Study(
        name="efficientnet_baselines",
        question=QUESTION,
        recipe=recipes[0],
        space={},
        points=tuple(point for recipe in recipes for point in _points(recipe, recipes[0])),
        asked=("model.name", "schedule.epochs"),
        seeds=SEEDS,
    )


def _recipe(name: str, data: DatasetSummary, epochs: int | None) -> Recipe:
    # Each in the form that is the fastest for it.
    recipe = published_recipe(name).with_values({"memory_format": "auto", "grouped_convolutions": "auto"})
    if is_small(data):
        usual = recipe_for(data, SMALL_EPOCHS)
        fields = [f"data.{field}" for field in ("crop", "crop_padding", "flip", "eval_crop")]
        if name == usual.model.name:  # the overrides are made for this network
            fields += [f"model.overrides.{field}" for field in usual.model.overrides.chosen()]
        values = usual.to_values()
        own: dict[str, Any] = {field: values[field] for field in fields}
        factor = 16 if data.train_images <= FEW_IMAGES else 4
        own["schedule.base_learning_rate"] = factor * recipe.schedule.base_learning_rate
        recipe = recipe.with_values(own | {"batch_size": min(recipe.batch_size, batch_size_for(data))})
        recipe = with_schedule_of(recipe, epochs or SMALL_EPOCHS)
    elif epochs:
        recipe = with_schedule_of(recipe, epochs)
    return recipe.with_values({"data.path": str(data.path)})


def _points(recipe: Recipe, first: Recipe) -> Iterator[dict[str, Any]]:
    """A point for each budget of a network: its name and epochs, and all else in which its Recipe differs."""
    base = first.to_values()
    # Of one or two epochs, as in a rehearsal, shares are the same number of them.
    budgets = dict.fromkeys(max(1, round(share * recipe.schedule.epochs)) for share in SHARES)
    for epochs in budgets:
        values = with_schedule_of(recipe, epochs).to_values()
        asked = {name: values[name] for name in ("model.name", "schedule.epochs")}
        yield asked | {name: value for name, value in values.items() if value != base[name]}


if __name__ == "__main__":
    sys.exit(main(efficientnet_baselines, Path(__file__)))
