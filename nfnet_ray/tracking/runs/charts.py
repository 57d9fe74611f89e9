"""Defines the charts of a study in MLflow, for which the accuracy has a second name under each condition.

A chart of MLflow 3.17 draws all runs that have its metric and has no other filter, so a chart for each condition needs
a separate metric for each.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.labels import short_names, stratum_label
from nfnet_ray.tracking.swept import condition_fields, possible_values, swept_fields

MOST_CONDITIONS = 6
"""The most conditions with separate charts, because more charts cannot be compared."""


def condition_metrics(study: StudyDescription) -> list[str]:
    """Returns the additional names of the accuracy, one for each condition; empty for a single condition, or many.

    >>> condition_metrics(agc_sweep)                                                # doctest: +SKIP
    ['validation_top1 at batch_size 64', 'validation_top1 at batch_size 256']
    """
    values = {name: possible_values(study, name) for name in condition_fields(study)}
    if any(isinstance(value, list | dict) for each in values.values() for value in each):
        return []
    values = {name: list(dict.fromkeys(each)) for name, each in values.items()}
    if not 1 < math.prod(map(len, values.values())) <= MOST_CONDITIONS:
        return []
    return [
        condition_metric(study, dict(zip(values, combination, strict=True)))
        for combination in itertools.product(*values.values())
    ]


def condition_metric(study: StudyDescription, condition: Mapping[str, Any]) -> str:
    """Returns the name for one condition, {dotted name of a field: its value}, in characters that MLflow accepts."""
    words = stratum_label(condition, short_names(swept_fields(study)))
    allowed = re.sub(r"[^\w.: -]", " ", words)
    return f"{study['metric']} at {' '.join(allowed.split())}"
