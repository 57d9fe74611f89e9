"""Which clip factor, dropout, stochastic depth and SAM are best together?

Question. The paper chooses them one after the other, and by hand. They may depend on each other: clipping, dropout and
an ascent step each hold a network back. Which combination is best for this network on this data, and does any beat
the Recipe that the other studies start from?

Command. ``python studies/joint_sweep.py`` on one machine, on the 1,797 handwritten digits that scikit-learn carries;
``--data PATH --address auto`` on a cluster, on a data set that data_prep converted. ``--trials 60`` tries more
settings; ``--search sobol`` spreads them evenly, which shows more of the space.

How to read it. The settings are proposed by TPE from the results so far (docs/search.md), after the Recipe's own. So
the table is no fair sample of the space, and the best of many settings is quoted somewhat too high.

Cost. 24 settings of 8 epochs, of which more than half end at epoch 2: about half of all 192 epochs.

Result. Not yet known.
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
        halving=Halving(cohort=8),
    )


if __name__ == "__main__":
    sys.exit(main(joint_sweep, Path(__file__)))
