"""What a Tune trial reports, as the plain dictionaries that Tune takes; its last report is a ``FinalReport``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nfnet_ray.metric import METRIC

LANE = "lane"
"""Key of the name of the reported trial, if several trials are trained as one program."""
TEXTS = "texts"
"""Key of the texts of an epoch, such as which images were correct."""
METRICS = "metrics"
"""Key of all metrics of an epoch. The metric that a scheduler compares is next to it as well."""

SAID = "said"
"""Key of a sentence for the person who watches the study."""
FORM_SHAPE, FORM = "form_shape", "form"
"""Keys of the report of a form that a trial has chosen; its values are text, so that Tune keeps no statistics."""


def epoch_result(metrics: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The report of an epoch, as Tune is given it.

    Its metrics are pairs and not a dictionary, because Tune keeps averages and extremes of each number in a dictionary
    for as long as the study lasts. For 24 metrics that took 77 kB of the driver's memory in each leg of a
    trial; as pairs they take 14 kB.
    """
    result = {"epoch": metrics["epoch"], METRIC: metrics[METRIC], METRICS: tuple(metrics.items())}
    return {**result, TEXTS: dict(texts)} if texts else result


def form_result(shape: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """The report of the form that a trial has chosen, as Tune is given it."""
    return {FORM_SHAPE: shape, FORM: json.dumps(choice)}


def form_in(result: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The shape and the choice in a report to Tune; None if it is another kind of report."""
    return (result[FORM_SHAPE], json.loads(result[FORM])) if FORM in result else None


def said_result(text: str) -> dict[str, Any]:
    """The report of a line that a person should read, as Tune is given it."""
    return {SAID: text}


def of_lane(lane: str | None, result: dict[str, Any]) -> dict[str, Any]:
    """A report to Tune with the name of its trial, if that is one of several that are trained as one program."""
    return result if lane is None else {**result, LANE: lane}


def metrics_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics in the report of an epoch."""
    return dict(result[METRICS])


def with_epochs_of_trial(
    metrics: Mapping[str, Any], epochs_before: int, schedule_epochs: int | None
) -> dict[str, Any]:
    """The metrics of an epoch, with the epoch counted over all schedules that the trial has trained.

    ``schedule_epochs`` is the length of the schedule if the trial trains several, one after the other; it has trained
    ``epochs_before`` epochs with the ones before.
    """
    if schedule_epochs is None:
        return dict(metrics)
    own = {"schedule_epoch": metrics["epoch"], "schedule_epochs": schedule_epochs}
    return {**metrics, **own, "epoch": metrics["epoch"] + epochs_before}
