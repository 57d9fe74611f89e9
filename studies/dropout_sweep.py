"""How much dropout should a network of a given size have, and does stochastic depth change that?

Question. The larger a published NFNet is, the more of the pooled features it drops: 0.2 in F0 to 0.5 in F4 and
beyond. All of them drop residual branches, at a rate of up to a quarter (Brock et al. 2021, table 1 and appendix
A.1). Which rate is best for this network on this data, at each rate of stochastic depth?

Command. ``python studies/dropout_sweep.py`` on one machine, on the 1,797 handwritten digits that come with
scikit-learn, half of which are for validation, since the settings differ by little; ``--data PATH --address auto`` on a
cluster, on a data set that data_prep converted. One study is about one size: ``--set model.name=nfnet_nano`` asks the
same about the next larger network, ``nfnet_f0`` to ``nfnet_f6`` about the published ones.

Cost. 18 trials of 8 epochs, of which half are given up after epoch 6, and not earlier, because dropout slows learning
at first, and pays off when the learning rate has fallen.

Result. On the digits, with ``--set memory_format=contiguous`` (1 seed, 899 validation images, 898 to train with,
nfnet_pico, float32; 2:21 on two cores of an Intel Xeon): dropout of 0.3 and more costs accuracy, and stochastic
depth does not change the result for a single image.

    dropout           0     0.1   0.2   0.3   0.4   0.5
    after 8 epochs    89.3  89.1  89.1  given up after epoch 6
    after 6 epochs    88.5  89.0  88.9  87.4  86.3  85.0

The 95% interval of 89.3 is 87.1 to 91.2 over images; 0, 0.1 and 0.2 cannot be told apart, and another seed was not
tried. 112 steps do not overfit, and the gains of the residual branches, which start at 0, are still so small that the
branches do next to nothing (see ablation.py): there is nothing yet for either to regularise.

On a tenth of CIFAR-10 at 16 px (``--data data/cifar10_half --epochs 16 --set data.train_share=0.1 --set
data.image_size=16 --set data.eval_size=16 --set data.crop_padding=2``: 1,248 steps; 1 seed, 5,000 test images; 21
minutes on two cores of an Intel Xeon that other work kept busy; ``studies/results/dropout_cifar10``) stochastic depth
still changes no accuracy, for the same reason:

    dropout           0     0.1   0.2   0.3   0.4   0.5
    after 16 epochs   46.1  45.6    ..  45.0    ..  45.1
    after 12 epochs   44.5  44.6  42.8  43.5  42.9  43.7

The 95% interval of 46.1 is 44.7 to 47.5 over images. The differences of the other three from it have 95% intervals of
-0.2 to 1.4, 0.2 to 2.1 and 0.0 to 2.1 points over the same images, and no other seed was tried: at most, dropout costs
a point or two here. 1,248 steps do not overfit.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from pathlib import Path

from data_prep.digits import HALF_VALIDATES
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.study import Study
from studies.base_recipe import batch_size_for, recipe_for
from studies.running.flags import main
from studies.running.program import StudyProgram

QUESTION = "How much dropout should a network of this size have, and does stochastic depth change that?"
DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # none, up to that of the largest published networks
STOCHASTIC_DEPTHS = (0.0, 0.1, 0.25)  # none, the paper's for fine-tuning (A.5), its for ImageNet (A.1)
EPOCHS = 8
COMPARED_AFTER = 3 / 4  # of all epochs: a cosine has then fallen to 15% of its peak


def dropout_sweep(data: DatasetSummary, epochs: int | None = None) -> Study:
    """The study on a data set: six rates of dropout at each of three rates of stochastic depth."""
    epochs = epochs or EPOCHS
    return Study(
        name="dropout_sweep",
        question=QUESTION,
        recipe=recipe_for(data, epochs).with_values({"batch_size": batch_size_for(data)}),
        space={"model.dropout": DROPOUTS, "model.stochastic_depth": STOCHASTIC_DEPTHS},
        halving=Halving(first_rung=max(1, round(COMPARED_AFTER * epochs)), eta=2),
    )


PROGRAM = StudyProgram(dropout_sweep, digits=HALF_VALIDATES)

if __name__ == "__main__":
    sys.exit(main(PROGRAM, Path(__file__)))
