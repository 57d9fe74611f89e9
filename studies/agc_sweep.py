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

Cost. 14 trials of 8 epochs, of which half end at epoch 4; a minute on two CPU cores.

Result. README.md shows a run on the digits. On a tenth of CIFAR-10 at 16 px (``--data data/cifar10_half --epochs 12
--set data.train_share=0.1 --set data.image_size=16 --set data.eval_size=16 --set data.crop_padding=2 --seeds 3``, then
extended by the factors 0.32 and 0.64; nfnet_pico, 5,000 validation images, float32; 19 minutes on two cores of an AMD
EPYC that other work shared; ``studies/results/agc_sweep_cifar10``), top-1 in percent after 12 epochs, or after 6 if the
setting was given up there. Those that may be the best have three seeds:

    clip factor         0.005  0.01  0.02  0.04  0.08  0.16  0.32  0.64  none
    batch 64, given up   35.7  39.1     -     -     -     -     -     -     -
    batch 64, finished      -     -  45.8  48.5  49.6  50.4  50.3  49.6  48.7
    batch 256, given up     -     -     -     -     -  28.9     -     -     -
    batch 256, finished  41.2  43.3  46.3  46.0  42.1     -   nan   nan   nan

Batch 64: 0.16 (49.2 to 51.6%, 3 seeds) cannot be told apart from 0.32, 0.08 and 0.64; a parabola through the seven that
finished has its optimum at 0.21, and is within 0.2 points of that from 0.13 to 0.35. Batch 256: 0.02 (44.9 to 47.8%) is
better than 0.04 with a probability of 76%, and the loss becomes nan with 0.32, 0.64 and without clipping. So the larger
batch needs the smaller factor, as in the paper. The intervals are 95%, over seeds and images.
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
