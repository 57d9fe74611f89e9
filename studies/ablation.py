"""What does each technique of an NFNet contribute, and which layers have to be clipped?

Question. Brock et al. (2021, section 4.1) train without clipping some layers, and find that the classifier is best left
alone, that the stem need not be clipped, and that all four stages must be. Table 2 of the same paper and Brock et al.
(2021, arXiv 2101.08692) argue for the rest: standardised weights, squeeze-excite, a gain on each residual branch that
starts at 0, stochastic depth. What is lost on this data when one of them is taken away and all else stays?

Command. ``python studies/ablation.py`` on one machine, on the 1,797 handwritten digits that come with scikit-learn;
``--data PATH --address auto`` on a cluster, on a data set that data_prep converted. ``--seeds 3,all`` repeats it, which
is necessary to see differences of a point or two. ``--set model.name=nfnet_nano`` asks about another network.

How to read it. The first setting is the whole network, and each of the others differs from it by what its name says. A
list of excluded parameters replaces the usual one, which has only the classifier's weight. The small network of the
studies has no gains on its residual branches (base_recipe.py), and one setting adds them; another network has them, and
the setting takes them away.

Cost. 13 trials of 8 epochs; nothing is stopped early, because final accuracies are compared.

Result. Top-1 in percent on the digits, both seeds (``--seeds 2,all``: 40 steps; 360 validation images; nfnet_pico,
float32; 5 minutes on two cores of an AMD EPYC that other work shared):

    the whole network               88.3  91.9
    nothing is clipped              diverges, both
    the classifier is clipped too   86.9  85.6
    not clipped: the stem           diverges, both
    not clipped: stage 1            diverges, both
    not clipped: stage 2            diverges, both
    not clipped: stage 3            diverges, both
    not clipped: stage 4            38.3, and one diverges
    not clipped: final convolution  31.9  92.5
    no weight standardisation       60.8  40.6
    no squeeze-excite               90.0  87.5
    a gain on residual branches     70.0  84.7
    no stochastic depth             88.9  90.0

As in the paper, all four stages have to be clipped, and the classifier is best left alone. Here the stem has to be
clipped, too. In so few steps the gains on the branches cost accuracy: they start at 0, and AGC holds them there.

On a tenth of CIFAR-10 at 16 px (``--data data/cifar10_half --epochs 12 --set data.train_share=0.1 --seeds 2,all --set
data.image_size=16 --set data.eval_size=16 --set data.crop_padding=2``: 228 steps; nfnet_pico, float32, 5,000 validation
images; 10 minutes on two cores of an AMD EPYC that other work shared; ``studies/results/ablation_cifar10``), both
seeds:

    the whole network               43.2  43.9
    nothing is clipped              diverges, both
    the classifier is clipped too   43.8  42.4
    not clipped: the stem           diverges, both
    not clipped: stage 1            45.0  44.6
    not clipped: stage 2            45.4  44.0
    not clipped: stage 3            44.1  44.7
    not clipped: stage 4            44.1  44.6
    not clipped: final convolution  43.5  44.3
    no weight standardisation       43.0  43.6
    no squeeze-excite               44.3  44.5
    a gain on residual branches     42.7  41.9
    no stochastic depth             43.3  44.1

Again the stem has to be clipped. In so short a training a single stage can be left unclipped: the accuracy is then up
to two points higher. The gain costs one to two points. The other techniques make a difference of at most one point.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import itertools
import sys
from pathlib import Path
from typing import Any

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.models.variants import get_variant
from nfnet_ray.recipe import ModelRecipe
from nfnet_ray.study.study import Study
from studies.base_recipe import recipe_for, with_network
from studies.running.flags import main

QUESTION = "What does each technique of an NFNet contribute, and which layers have to be clipped?"
EPOCHS = 8
NETWORK = "nfnet_pico"
BATCH_SIZE = 256  # clipping matters where batches are large
STOCHASTIC_DEPTH = 0.1  # so that there is one to take away
CLASSIFIER = "classifier.weight"


def ablation(data: DatasetSummary, epochs: int | None = None, model: str = NETWORK) -> Study:
    """The study on a data set: the whole network, and one setting for each thing that is taken away or added."""
    recipe = with_network(recipe_for(data, epochs or EPOCHS), model).with_values(
        {
            "batch_size": min(BATCH_SIZE, max(1, data.train_images // 2)),
            "model.stochastic_depth": STOCHASTIC_DEPTH,
        }
    )
    return Study(
        name="ablation", question=QUESTION, recipe=recipe, space={}, points=tuple(_points(recipe.model))
    )


def _points(model: ModelRecipe) -> list[dict[str, Any]]:
    variant = get_variant(model.name, model.overrides.chosen())
    ends = itertools.accumulate(variant.depth)
    starts = itertools.accumulate(variant.depth, initial=0)
    stages = [[f"blocks.{block}.*" for block in range(*ends)] for ends in zip(starts, ends, strict=False)]
    not_clipped = [["stem.*"], *stages, ["final_conv.*"]]
    return [
        {},
        {"optimizer.agc.clip_factor": None},
        {"optimizer.agc.exclude": ()},
        *({"optimizer.agc.exclude": (CLASSIFIER, *layers)} for layers in not_clipped),
        {"model.overrides.weight_standardisation": False},
        {"model.overrides.squeeze_excite": False},
        {"model.overrides.skip_gain": not variant.skip_gain},
        {"model.stochastic_depth": 0.0},
    ]


if __name__ == "__main__":
    sys.exit(main(ablation, Path(__file__)))
