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

The small network has no gains on its residual branches (base_recipe.py). They start at 0, and in so few steps AGC holds
them there: stochastic depth would drop branches that do nothing. Another network, by ``--set model.name=``, has its own
gains; ``--plan`` says if they are held.

Result. Top-1 on the digits (1 seed, 899 validation images, 898 to train with, nfnet_pico, float32; 6 minutes on two
cores of an Intel Xeon that other work shared):

    dropout                  0     0.1   0.2   0.3   0.4   0.5
    stochastic depth 0       96.4  95.9  95.9  95.9    ..    ..
    stochastic depth 0.1     96.4  95.4  95.3  95.0    ..    ..
    stochastic depth 0.25    96.2  95.2  94.8  94.5    ..    ..

Those without a number were given up after epoch 6 with 92.8 to 93.9. With stochastic depth each rate of dropout is
worse than none; the smallest difference is 1.0 points (95% interval over the same images 0.1 to 1.9; no other seed was
tried). Without stochastic depth up to 0.3 cannot be told apart from none. 112 steps do not overfit.

On a tenth of CIFAR-10 at 16 px (``--data data/cifar10_half --epochs 16 --set data.train_share=0.1 --set
data.image_size=16 --set data.eval_size=16 --set data.crop_padding=2``: 1,248 steps; 1 seed, 5,000 test images; 17
minutes on two cores of an Intel Xeon that other work kept busy; ``studies/results/dropout_cifar10``):

    dropout                  0     0.1   0.2   0.3   0.4   0.5
    stochastic depth 0       46.7  46.0  46.4  46.1  45.9    ..
    stochastic depth 0.1     47.0  45.9  46.1  46.2  46.0  45.3
    stochastic depth 0.25    46.8  46.6  46.2    ..  45.9  44.8

The 95% interval of 47.0 is 45.5 to 48.4 over images. No dropout is best in each row, and a rate of 0.5 is worse by 1.6
points (95% interval 0.6 to 2.7) and 2.0 points (1.0 to 3.1) in the last two, over the same images. Seeds could explain
that: no other one was tried, and 0.9 points are assumed between them. The rates of stochastic depth cannot be told
apart without dropout. 1,248 steps do not overfit either.
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
