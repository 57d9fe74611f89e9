"""How strongly should adaptive gradient clipping clip, and how does that depend on the batch?

Question. Brock et al. (2021, section 4.1 and figure 2) find that AGC lets a normaliser-free network train
at large batches, that larger batches need a smaller clip factor, and that without clipping they diverge.
Which factor is best for this network on this data, at each batch size?

Command. ``python studies/agc_sweep.py`` on one machine, on the 1,797 handwritten digits that come with scikit-learn;
``--data PATH --address auto`` on a cluster, on a data set that data_prep converted.

How to read it. The peak learning rate is proportional to the batch, as in the paper, and with the same learning rate
both batches have about the same range of good factors (docs/methods/agc.md): so it is in part the learning rate that
needs the smaller factor. Of factors that are close to each other at an early rung, the larger one gains more
(docs/early_stopping.md).

Cost. 12 trials of 8 epochs, of which half end by epoch 2; half a minute to two minutes on two CPU cores.

Result. README.md shows a run on the digits. On a fifth of CIFAR-10 (``--data data/cifar10 --set data.train_share=0.2
--epochs 12 --seeds 3 --set memory_format=contiguous``; nfnet_pico at 32 px, 10,000 validation images, float32, two
cores of an Intel Xeon that other work kept busy; ``studies/results/agc_sweep_cifar10``), top-1 in percent after 12
epochs, or after 3 if the setting was given up there, as means if there are several seeds:

    clip factor        0.01  0.02  0.04  0.08  0.16  none
    batch 64, given up 37.1  39.1     -     -     -  38.5
    batch 64, finished    -     -  58.7  61.2  61.7     -
    batch 256, given up   -     -     -  27.3  22.9     -
    batch 256, finished 53.1  55.5  53.8     -     -     -

Batch 64: 0.16 (59.7 to 63.7%, 3 seeds) cannot be told from 0.08, and is the largest factor that was tried. Batch 256:
0.02 (53.6 to 57.3%) is better than 0.04 with a probability of 98%, and without clipping the loss became nan in step 38.
So the larger batch needs the smaller factor, as in the paper. The intervals are 95%, over seeds and images.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from pathlib import Path

from data_prep.digits import ALL_DIGITS
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.study import Study
from studies.base_recipe import recipe_for
from studies.running.flags import main

QUESTION = "How strongly should adaptive gradient clipping clip, and how does that depend on the batch size?"
# The paper's ablation grid (section 4.1), a smaller factor, so that the best one is not the smallest, and no clipping.
CLIP_FACTORS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, None)
BATCH_SIZES = (64, 256)
EPOCHS = 8
DIGITS_PIXELS = 16
"""Side of the built-in digits, which were scanned with 8 pixels and are stored with 32: so they train in half the time,
and to no lower accuracy."""


def agc_sweep(data: DatasetSummary, epochs: int | None = None) -> Study:
    """The study on a data set: seven clip factors at each batch size that leaves at least two steps per epoch."""
    epochs = epochs or EPOCHS
    recipe = recipe_for(data, epochs)
    if data.source == ALL_DIGITS.kind:
        sizes = {"image_size": DIGITS_PIXELS, "eval_size": DIGITS_PIXELS, "crop_padding": DIGITS_PIXELS // 8}
        recipe = recipe.with_values({f"data.{name}": value for name, value in sizes.items()})
    batch_sizes = tuple(size for size in BATCH_SIZES if 2 * size <= data.train_images)
    return Study(
        name="agc_sweep",
        question=QUESTION,
        recipe=recipe,
        space={
            "optimizer.agc.clip_factor": CLIP_FACTORS,
            "batch_size": batch_sizes or (max(1, data.train_images // 2),),
        },
        # A factor shows in the first epochs whether training is stable, and only later on which of the stable ones is
        # best: so half of them continue, and what is within noise of those (docs/early_stopping.md).
        halving=Halving(first_rung=max(1, epochs // 2), eta=2),
    )


if __name__ == "__main__":
    sys.exit(main(agc_sweep, Path(__file__)))
