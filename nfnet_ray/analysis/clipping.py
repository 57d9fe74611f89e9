"""Reads what AGC clipped in each part of the network from a study's journal (:mod:`nfnet_ray.clipping`)."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.clipping import OCTAVES, Clipping

if TYPE_CHECKING:
    import pandas as pd

CLIP_FACTOR = "optimizer.agc.clip_factor"


def clipping_of(record: StudyRecord, trial: str) -> dict[int, Clipping]:
    """Returns {epoch: record made at its end} of a trial; empty for journals of earlier versions."""
    found = {}
    for epoch, text in sorted(record.clipping.get(trial, {}).items()):
        with contextlib.suppress(ValueError):  # a record of a later version
            found[epoch] = Clipping.from_text(text)
    return found


def clipping_by_layer(record: StudyRecord, trial: str) -> pd.DataFrame:
    """Returns a table with a row for each record and layer of a trial.

    Returns:
        ``epoch``, ``steps`` (how many were counted), ``layer`` (empty for the gains and biases of a part), ``part``,
        ``units``, ``clipped`` (share of them) and the quantiles of ‖g‖ / max(‖w‖, eps): ``q05``, ``q50``, ``q95`` and
        ``largest``.
    """
    import pandas as pd

    columns = ("epoch", "steps", "layer", "part", "units", "clipped", "q05", "q50", "q95", "largest")
    rows = [
        (epoch, kept.steps, layer.name, layer.part, layer.units, layer.clipped, *layer.quantiles)
        for epoch, kept in clipping_of(record, trial).items()
        for layer in kept.layers
    ]
    return pd.DataFrame(rows, columns=list(columns))


def clipping_by_part(record: StudyRecord, *trials: str) -> dict[str, float]:
    """Returns {part of the network: share of its weights' units that the trials clipped}, over all recorded steps."""
    records = _records_of(record, trials)
    steps = sum(kept.steps for kept in records)
    parts = list(records[0].shares_above) if records else []
    return {part: sum(kept.clipped(part) * kept.steps for kept in records) / steps for part in parts}


def clipped_of_all(record: StudyRecord, *trials: str) -> float:
    """Returns the share of all units that the trials clipped, over all recorded steps; NaN without records."""
    records = _records_of(record, trials)
    counted = sum(layer.units * kept.steps for kept in records for layer in kept.layers)
    clipped = sum(layer.clipped * layer.units * kept.steps for kept in records for layer in kept.layers)
    return clipped / counted if counted else math.nan


def _records_of(record: StudyRecord, trials: Sequence[str]) -> list[Clipping]:
    return [kept for trial in trials for kept in clipping_of(record, trial).values()]


def shares_that_factors_would_clip(records: Sequence[Clipping]) -> dict[float, float] | None:
    """Returns {clip factor: share of all units whose ratio was above it}, over all records, in ascending order.

    None without records. This is the share that the factor would have clipped if the training had been the same.
    Clipping changes the training, so the share is a guide and not a forecast.
    """
    sums, weight = [0.0] * len(OCTAVES), 0.0
    for kept in records:
        for part, shares in kept.shares_above.items():
            counted = kept.units(part) * kept.steps
            weight += counted
            for number, share in enumerate(shares):
                sums[number] += counted * float(share)
    if not weight:
        return None
    return {float(factor): total / weight for factor, total in zip(OCTAVES, sums, strict=True)}


def differs_from_step(record: StudyRecord) -> int | None:
    """Returns the first step from which two trials that differ only in their clip factor can differ.

    The step is read from the record of the largest factor: until a unit's ratio exceeds the smallest factor, all
    factors lead to the same weights. None if this was not counted. The step is 1 for a new NFNet, whose biases and skip
    gains start at 0 and have ratios above 1. Only networks that start from trained weights have a common beginning.
    """
    tried = record.trials if CLIP_FACTOR in record.fields else record.trials[:0]
    factors = [value for value in tried.get(CLIP_FACTOR, ()) if isinstance(value, float)]
    with_records = [
        (math.inf if row[CLIP_FACTOR] is None else row[CLIP_FACTOR], row["trial"])
        for row in tried.to_dict("records")
        if record.clipping.get(row["trial"]) and isinstance(row[CLIP_FACTOR], float | None)
    ]
    if not factors or not with_records:
        return None
    last = list(clipping_of(record, max(with_records)[1]).values())[-1]
    below = [number for number, octave in enumerate(OCTAVES) if octave <= min(factors) * (1 + 1e-9)]
    return last.first_step_above[below[-1]] or None if below else None


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """Interpolates linearly between points in the order of their first number; constant beyond the last points."""
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0) if x1 > x0 else y1
    return points[-1][1]
