"""A question of your own: which values of the fields that --sweep names are best?

Command. ``python studies/sweep.py --sweep optimizer.agc.clip_factor=log:0.002..0.3 --sweep batch_size=64,256`` on one
machine, on the 1,797 handwritten digits that come with scikit-learn; ``--data PATH --address auto`` on a cluster, on a
data set that data_prep converted. The first field is the one in question. Further fields with a list of values are the
conditions under which it is asked. ``--set`` changes what all trials have in common, ``--trials`` the number of points
that are drawn from a range, and ``--plan`` shows the points.

It starts from the Recipe of the other studies: nfnet_pico, plain images, SGD with clipping (studies/base_recipe.py).

Result. ``studies/results/README.md`` has 48 points of clip factor, dropout, SAM's rho and learning rate on a part of
CIFAR-10, with the command.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from pathlib import Path

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.study.study import Study
from studies.base_recipe import batch_size_for, recipe_for
from studies.running.flags import main
from studies.running.program import StudyProgram

EPOCHS = 8  # as the other studies have


def sweep(data: DatasetSummary, epochs: int | None = None) -> Study:
    """The Recipe on a data set, with nothing swept yet."""
    recipe = recipe_for(data, epochs or EPOCHS).with_values({"batch_size": batch_size_for(data)})
    return Study(name="sweep", question="Which values of the swept fields are best?", recipe=recipe, space={})


PROGRAM = StudyProgram(sweep, is_open=True)


if __name__ == "__main__":
    sys.exit(main(PROGRAM, Path(__file__)))
