"""Reads the size of the activations, block by block and epoch by epoch, from a study's journal."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from nfnet_ray.analysis.record import StudyRecord

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = ("variance", "mean_square", "expected_variance")
# The names of metrics have the form signal/07_block_05/variance: depth, name of the block, quantity. The event of the
# first epoch also contains metrics with the prefix initial_, which were measured before the first step.
_METRIC = re.compile(rf"(initial_)?signal/(\d+)_(.+)/({'|'.join(QUANTITIES)})")


def signal_by_depth(record: StudyRecord) -> pd.DataFrame:
    """Returns the signal-propagation measurements of all trials (``signal_epochs`` of the Recipe); empty without any.

    Returns:
        A row per trial, measured epoch and block, by trial as in ``record.trials``, then epoch, then depth:
        ``trial``, ``epoch`` (0 is before the first step), ``depth`` (0 is nearest the image), ``block``, ``variance``,
        ``mean_square`` and ``expected_variance`` (NaN where it was not a number, or is not known).
    """
    import pandas as pd

    meanings = {column: found for column in record.epochs if (found := _METRIC.fullmatch(str(column)))}
    measured: dict[tuple[str, int, int], dict[str, Any]] = {}
    epochs = record.epochs[["trial", "epoch", *meanings]] if meanings else record.epochs[:0]
    for trial, rows in epochs.groupby("trial", sort=False):
        for row in rows.to_dict("records"):
            for column, meaning in meanings.items():
                value = row[column]
                # In an epoch at which the trial did not measure, no column has a value.
                if value is None or math.isnan(value):
                    continue
                initial, depth, block, quantity = meaning.groups()
                key = (str(trial), 0 if initial else row["epoch"], int(depth))
                measured.setdefault(key, {"block": block})[quantity] = value
    order = {trial: number for number, trial in enumerate(record.trials["trial"])}
    return pd.DataFrame(
        [
            {"trial": trial, "epoch": epoch, "depth": depth, **dict.fromkeys(QUANTITIES, math.nan), **found}
            for (trial, epoch, depth), found in sorted(
                measured.items(), key=lambda item: (order[item[0][0]], *item[0][1:])
            )
        ],
        columns=["trial", "epoch", "depth", "block", *QUANTITIES],
    )
