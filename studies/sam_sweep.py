"""How large should the ascent step of sharpness-aware minimisation be, and does SAM pay at equal training time?

Question. Brock et al. (2021, section 6.1 and appendix A.4) train F5 and F6 with SAM, and take the ascent
gradient on a fifth of the batch to save time; they do not say with which rho. Which rho is best for this
network on this data, with the ascent on the whole batch and on a fifth of it, and is the gain in accuracy worth
the time of the second pass?

Command. ``python studies/sam_sweep.py`` on one machine, on the 1,797 handwritten digits that come with scikit-learn;
``--data PATH --address auto`` on a cluster, on a data set that data_prep converted. To ask the same about SAM's
relatives, use ``--set optimizer.sam.method=looksam``, or ``esam`` (then also ``--set optimizer.sam.ascent_share=1``);
the rho of ``asam`` has a different scale (Kwon et al. 2021 use 0.5 and 1).

How to read it. All trials have the same epochs, but not the same time: an ascent on the whole batch doubles a step, and
one on a fifth of it makes it 20 to 40% longer (section 6.1). The curves of the report, over training time, end where
each trial did. SAM pays off at equal time if its curve ends above what plain training reaches *by then*. The curve of
plain training cannot tell, because it ends earlier, with a learning rate of 0. So give plain training as much time as
SAM had, by more epochs, and compare the ends:

    python studies/sam_sweep.py --epochs 16 --set optimizer.sam.rho=none

Without SAM there is no ascent, so rho = none is one trial, and compares with both halves of the sweep.

No trial is stopped early by default: a larger rho starts more slowly, and after the same epochs a trial with SAM has
had up to twice the time. To stop early, compare by training seconds, which charges SAM for its second pass:

    python studies/sam_sweep.py --early-stopping synchronous:first_rung=10,unit=seconds,eta=2

How many seconds are late enough depends on the machine and the data, so there is no default. At equal seconds a trial
with SAM is earlier in its schedule, where its learning rate is higher, so it is somewhat underrated. Complete schedules
do not have that bias: ``--early-stopping synchronous:first_rung=4,eta=2 --schedule stretched`` gives the accuracy that
each number of seconds of training buys.

Cost. 11 trials of 8 epochs: under four minutes on two shared CPU cores.

Result. On the digits no rho beat training without SAM by more than the noise, and those above 0.05 did worse. Top-1
after 8 epochs, from the first command (1 seed, 360 validation images, so 96.9% is 94.6 to 98.3%; nfnet_pico, float32,
two cores of an AMD EPYC that other work shared, so the times mean nothing):

    rho             none   0.01   0.02   0.05    0.1    0.2
    whole batch     96.9   97.2   97.2   96.1   93.3   85.6
    a fifth of it   96.9   97.2   96.9   96.9   94.2   88.1

Plain training for 16 epochs (the command above, the same hardware) reached 98.9. So SAM does not pay off here, neither
at equal time nor at equal epochs. These 176 steps say nothing about long training, for which SAM was made.

On a tenth of CIFAR-10, with skip gains (``--data data/cifar10_half --epochs 12 --set data.train_share=0.1 --seeds 3
--set memory_format=contiguous --set model.overrides.skip_gain=true``: 936 steps; nfnet_pico at 32 px, float32, 5,000
validation images, on two cores of an AMD EPYC that other work kept busy; ``studies/results/sam_cifar10``) it does not
pay off either. The table has the top-1 as a mean of 3 seeds, or of 1 seed if the setting was dropped after it:

    rho             none   0.01   0.02   0.05    0.1    0.2
    whole batch     46.0   44.7   43.2   41.1   37.6   30.6    (0.05 and more: 1 seed)
    a fifth of it   46.0   45.0   43.6   41.1   36.7   32.5    (0.1 and more: 1 seed)

The 95% intervals over seeds and images are 44.9 to 47.1 without SAM, 42.6 to 46.9 and 43.4 to 46.7 with 0.01. An ascent
on the whole batch costs as much as a second step, so plain training can have 24 epochs in the time of 12 with SAM. It
then reaches 52.8% (50.9 to 54.7; 3 seeds; ``--epochs 24 --set optimizer.sam.rho=none --seeds 3,all``, in channels_last;
``studies/results/sam_plain_cifar10``), 8 points more than SAM with the best rho at equal time.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from pathlib import Path

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.space import When
from nfnet_ray.study.study import Study
from studies.base_recipe import batch_size_for, recipe_for
from studies.running.flags import main

QUESTION = "How large should SAM's ascent step rho be, and does SAM pay at equal training time?"
# Around 0.05, which the paper gives for fine-tuning (appendix A.5) and Foret et al. (2021) for ImageNet.
RHOS = (None, 0.01, 0.02, 0.05, 0.1, 0.2)
ASCENT_SHARES = (1.0, 0.2)  # as Foret et al. have it, and as the paper does (section 6.1)
EPOCHS = 8


def sam_sweep(data: DatasetSummary, epochs: int | None = None) -> Study:
    """The study on a data set: no SAM and five rho, with the ascent on the whole batch and on a fifth of it."""
    return Study(
        name="sam_sweep",
        question=QUESTION,
        recipe=recipe_for(data, epochs or EPOCHS).with_values({"batch_size": batch_size_for(data)}),
        space={
            "optimizer.sam.rho": RHOS,
            "optimizer.sam.ascent_share": When(ASCENT_SHARES, "optimizer.sam.rho"),
        },
    )


if __name__ == "__main__":
    sys.exit(main(sam_sweep, Path(__file__)))
