"""Names the fields whose best value early in a training is not their best value at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

LATE_ENOUGH = 3 / 4
"""The share of all epochs after which comparisons count as late enough. In both studies of curves (studies/results) the
order of the settings is then that of the end, with a rank correlation of 0.95 and 0.96; after half of the epochs it is
0.75 and 0.80."""

_PAYS_LATE = (
    *("model.dropout", "model.stochastic_depth", "optimizer.weight_decay", "loss.label_smoothing"),
    *("optimizer.sam.rho", "optimizer.sam.method", "optimizer.sam.ascent_share"),
    *("data.mixing.mixup_alpha", "data.mixing.cutmix_alpha", "data.autoaugment"),
    *("data.randaugment.layers", "data.randaugment.magnitude"),
)
"""Fields that lower the accuracy early in a training and may raise it at the end."""
_OTHERWISE_WITHIN_A_SCHEDULE = (
    *("optimizer.agc.clip_factor", "schedule.base_learning_rate", "optimizer.momentum"),
    *("optimizer.ema.decay", "optimizer.ema.warmup"),
)
"""Fields that make steps longer, or average the weights. While the learning rate is high, shorter steps and longer
averages look better than they do at the end. In curves_grid (nfnet_pico with skip gains) the clip factor that is best
after epoch 2 of 8 is too small in 9 of 12 cases and too large in none."""


def compared_early(fields: Sequence[str], first_rung: float, epochs: int, *, is_stretched: bool) -> list[str]:
    """Returns those of ``fields`` whose best value at a first rung, in epochs, may differ from that at the end.

    >>> compared_early(["optimizer.agc.clip_factor", "batch_size"], 2, 8, is_stretched=False)
    ['optimizer.agc.clip_factor']
    >>> compared_early(["optimizer.agc.clip_factor"], 6, 8, is_stretched=False)
    []
    """
    if first_rung >= math.floor(LATE_ENOUGH * epochs):
        return []
    within = () if is_stretched else _OTHERWISE_WITHIN_A_SCHEDULE
    return [field for field in fields if field in (*_PAYS_LATE, *within)]
