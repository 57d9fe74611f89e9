"""Which clip factor, dropout, stochastic depth and SAM are best together?

Question. The paper chooses them one at a time, and by hand. They may depend on each other: clipping, dropout and
an ascent step each hold a network back. Which combination is best for this network on this data, and does any beat
the Recipe that the other studies start from?

Command. ``python studies/joint_sweep.py`` on one machine, on the 1,797 handwritten digits that come with scikit-learn;
``--data PATH --address auto`` on a cluster, on a data set that data_prep converted. ``--trials 60`` tries more
settings; ``--search sobol`` spreads them evenly, which shows more of the space.

How to read it. The settings are proposed by TPE from the results so far (docs/search.md), after the Recipe's own. So
the table is not a fair sample of the space, and the accuracy of the best of many settings is somewhat too high.

Cost. 24 settings of 8 epochs, of which more than half end at epoch 2: about half of all 192 epochs.

Result. Top-1 on the digits with ``--trials 16 --set memory_format=contiguous`` (1 seed, 360 validation images,
nfnet_pico, float32; 12 minutes on two cores of an Intel Xeon that much other work shared;
``studies/results/joint_sweep``). The best setting for each way to use SAM:

    ascent   clip factor  dropout  stochastic depth    rho  top-1  95% over images
    a fifth        0.058     0.19             0.034  0.009   97.8     95.5 to 98.9
    no SAM         0.018     0.17             0.056   none   96.1     93.4 to 97.7
    whole          0.034     0.28             0.070  0.021   96.1     93.6 to 97.7
    the Recipe     0.010     0                0       none   94.2

With 360 images and one seed the first cannot be told from 0.029, 0.46, 0.20 and 0.066 with a fifth (95.8). Both
settings without clipping diverged in epoch 2, and clip factors above 0.07 were given up there at 11.7 to 19.4%.

On a tenth of CIFAR-10 (``--data data/cifar10_half --epochs 12 --set data.train_share=0.1``; 24 settings, 1 seed, 5,000
validation images, nfnet_pico at 32 px, float32, channels_last; 27 minutes on two cores of an AMD EPYC that other work
shared; ``studies/results/joint_cifar10``), top-1 after 12 epochs:

    ascent   clip factor  dropout  stochastic depth    rho  top-1  95% over images
    no SAM         0.018    0.075             0.100   none   48.5     47.1 to 49.9
    no SAM         0.010    0.19              0.072   none   46.9     45.5 to 48.2
    whole          0.011    0.33              0.017  0.030   43.2     41.8 to 44.6
    the Recipe     0.010    0                 0       none   46.0     44.6 to 47.4

The three settings without clipping diverged. None with an ascent on a fifth of the batch finished: one of the three is
like that, and five were given up after epoch 3, at 12.3 to 30.4%. The clip factor explains 43% (10 to 66%) of the
differences at epoch 3, and rho 11% (0 to 34%). The seed was not varied, so whether the first setting beats the Recipe's
cannot be told.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from pathlib import Path

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.space import Range, When
from nfnet_ray.study.study import Study
from studies.base_recipe import batch_size_for, recipe_for
from studies.running.flags import main

QUESTION = "Which clip factor, dropout, stochastic depth and SAM are best together?"
SETTINGS = 24
EPOCHS = 8


def joint_sweep(data: DatasetSummary, epochs: int | None = None) -> Study:
    """The study on a data set: five fields, of which one depends on another, searched by TPE."""
    return Study(
        name="joint_sweep",
        question=QUESTION,
        recipe=recipe_for(data, epochs or EPOCHS).with_values({"batch_size": batch_size_for(data)}),
        space={
            # Each range holds the values of the sweep of that field alone, with room on both sides.
            "optimizer.agc.clip_factor": Range(0.002, 0.3, log=True, or_none=True),
            "model.dropout": Range(0.0, 0.5),
            "model.stochastic_depth": Range(0.0, 0.25),
            "optimizer.sam.rho": Range(0.005, 0.2, log=True, or_none=True),
            "optimizer.sam.ascent_share": When((1.0, 0.2), "optimizer.sam.rho"),
        },
        search="tpe",
        trial_limit=SETTINGS,
        halving=Halving(group=8),
    )


if __name__ == "__main__":
    sys.exit(main(joint_sweep, Path(__file__)))
