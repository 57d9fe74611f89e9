"""What is wrong with batch normalisation, and is a normaliser-free network with AGC free of it?

Question. Brock et al. (2021, section 1) start from four faults of batch normalisation: it costs time and memory, a
network behaves differently in training and in evaluation, the samples of a batch depend on each other, and small
batches cost accuracy. How large is each of them for the same network with and without batch normalisation?

Command. ``python studies/batch_norm.py`` trains both networks at batches of 2 to 64, on the 1,797 handwritten digits
that come with scikit-learn; ``--data PATH --address auto`` on a cluster, on a data set that data_prep converted.
``python -m benchmarks.batch_norm`` measures the other three faults, in about a minute.

How to read it. ``model.overrides.batch_norm`` replaces each scaled, weight-standardised convolution by a plain one and
batch normalisation; the two networks have the same number of parameters. The normaliser-free one is trained with a clip
factor of 0.04, the best of agc_sweep at a batch of 64, and the other one without clipping. The learning rate is
proportional to the batch for both.

Cost. 8 trials of 4 epochs; a batch of 2 makes 718 steps per epoch. The other faults: 40 seconds of processor time.

Result. On the digits, after 2 epochs with batches of 64 (``benchmarks.batch_norm``; 1 seed, 360 validation images;
nfnet_pico, float32, one core of an AMD EPYC that other work shared, so the times are processor times):

    fault                                                 normaliser-free  batch normalisation
    a training step of 64 images                                 112.6 ms             115.0 ms
    activations kept for the backward pass                       24.2 MiB             34.7 MiB
    top-1 in evaluation mode                                        66.1%                97.2%
    top-1 in training mode, in batches of 64, 8 and 2   67.8, 66.1, 66.1%    96.9, 88.1, 49.7%
    others' logits move when one of 8 images changes                0.00%               29.72%

Batch normalisation keeps 44% more memory, its accuracy depends on the mode and on the batch, and its samples depend on
each other. The table also shows its merit, which the paper's section 2 describes: at the same learning rate it trains
much faster at first.

Small batches (``python studies/batch_norm.py``; top-1 after 4 epochs, 1 seed, 360 validation images; 8 minutes on two
cores of an AMD EPYC that other work shared; ``studies/results/batch_norm``):

    batch                  2     4     8    64
    normaliser-free     94.4  95.6  96.4  96.4
    batch normalisation 23.9  96.4  97.2  98.3

With batches of 2 batch normalisation fails, and the normaliser-free network does nearly as well as with larger ones.
With batches of 4 and more it is ahead by 0.8 to 1.9 points, which is too little for one seed to tell.

On a tenth of CIFAR-10, both with skip gains (``--data data/cifar10_half --epochs 6 --set data.train_share=0.1 --seeds
3,all --set model.overrides.skip_gain=true``; top-1 after 6 epochs, the mean of 3 seeds, and their paired difference
with its 95% interval over seeds and images; 5,000 validation images, nfnet_pico at 32 px, float32, two cores of an
Intel Xeon; ``studies/results/batch_norm_cifar10``):

    batch  normaliser-free  batch normalisation  difference
        2             37.5                 15.1  22.4 (17.6 to 27.3)
        4             39.1                 33.7  5.4 (1.5 to 9.3)
        8             41.2                 41.3  −0.1 (−2.2 to 2.0)
       64             45.5                 45.5  −0.1 (−3.0 to 2.8)

With batches of 2 and 4 batch normalisation loses 22 and 5 points, and from 8 on the two cannot be told apart. Smaller
batches cost the normaliser-free network accuracy, too: the learning rate is proportional to the batch, and nothing else
was adapted to it.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from pathlib import Path

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.study import Study
from studies.base_recipe import recipe_for
from studies.running.flags import main

QUESTION = "How much accuracy do small batches cost, with batch normalisation and with AGC in its place?"
BATCH_SIZES = (2, 4, 8, 64)
EPOCHS = 4
CLIP_FACTOR = 0.04


def batch_norm(data: DatasetSummary, epochs: int | None = None) -> Study:
    """The study on a data set: both networks at each batch size that leaves at least two steps per epoch."""
    recipe = recipe_for(data, epochs or EPOCHS).with_values({"optimizer.agc.clip_factor": CLIP_FACTOR})
    batch_sizes = [size for size in BATCH_SIZES if 2 * size <= data.train_images] or [1]
    points = [
        {
            "model.overrides.batch_norm": normalises,
            "batch_size": size,
            "optimizer.agc.clip_factor": None if normalises else CLIP_FACTOR,
        }
        for size in batch_sizes
        for normalises in (False, True)
    ]
    return Study(
        name="batch_norm",
        question=QUESTION,
        recipe=recipe,
        space={},
        points=tuple(points),
        asked=("model.overrides.batch_norm", "batch_size"),
    )


if __name__ == "__main__":
    sys.exit(main(batch_norm, Path(__file__)))
