"""How strongly should adaptive gradient clipping clip, and how does that depend on the batch?

Question. Brock et al. (2021, section 4.1 and figure 2) find that AGC lets a normaliser-free network train
at large batches, that larger batches need a smaller clip factor, and that without clipping they diverge.
Which factor is best for this network on this data, at each batch size?

Command. ``python studies/agc_sweep.py`` on one machine, on the 1,797 handwritten digits that scikit-learn
carries; ``--data PATH --address auto`` on a cluster, on a data set that data_prep converted.

Cost. 12 trials of 8 epochs, of which half end by epoch 2; one to three minutes on two CPU cores.

Result. README.md shows a run of it.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from pathlib import Path

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.study import Study
from studies.base_recipe import recipe_for
from studies.running.flags import main

QUESTION = "How strongly should adaptive gradient clipping clip, and how does that depend on the batch size?"
# The paper's ablation grid (section 4.1), and no clipping.
CLIP_FACTORS = (0.01, 0.02, 0.04, 0.08, 0.16, None)
BATCH_SIZES = (64, 256)
EPOCHS = 8


def agc_sweep(data: DatasetSummary, epochs: int | None = None) -> Study:
    """The study on a data set: six clip factors at each batch size that leaves at least two steps per epoch."""
    epochs = epochs or EPOCHS
    batch_sizes = tuple(size for size in BATCH_SIZES if 2 * size <= data.train_images)
    return Study(
        name="agc_sweep",
        question=QUESTION,
        recipe=recipe_for(data, epochs),
        space={
            "optimizer.agc.clip_factor": CLIP_FACTORS,
            "batch_size": batch_sizes or (max(1, data.train_images // 2),),
        },
        # A clip factor shows in the first epochs whether training is stable, so most trials can end early.
        halving=Halving(),
    )


if __name__ == "__main__":
    sys.exit(main(agc_sweep, Path(__file__)))
