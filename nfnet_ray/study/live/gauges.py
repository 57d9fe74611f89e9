"""Computes the numbers that a running study exports to a monitoring system, from its state and the time.

The driver already knows all these numbers, so they cost no step and no worker anything. A trial has gauges while it
runs and for a minute after it has paused or ended. The number of gauges is therefore bounded by the number of trials
that train at once, plus those of the last minute, however many trials a study has.
:mod:`nfnet_ray.cluster.gauge_export` passes them to Ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nfnet_ray.metric import METRIC
from nfnet_ray.study.cost.spending import SECONDS_PER_HOUR
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED, TrialProgress

SECONDS_AFTER_THE_END = 60.0
"""How long a trial that has paused or ended keeps its gauges. Without this delay, its last epoch could be missed by
Prometheus, which reads the gauges every 15 to 30 s by the defaults of Ray and its operator."""

STATES = ("waiting", "running", "paused", *ENDED, "interrupted")
"""The states of a trial; ``waiting``: it has not been started."""


class Gauge(NamedTuple):
    """The meaning of a gauge, and the labels that distinguish its values."""

    meaning: str
    labels: tuple[str, ...]


_STUDY, _TRIAL = ("study",), ("study", "trial")

GAUGES: Mapping[str, Gauge] = {
    "nfnet_trials": Gauge("Trials of the study in a state", (*_STUDY, "state")),
    "nfnet_driver_heartbeat_timestamp_seconds": Gauge(
        "Unix time at which the driver last said that its study is running or that it has ended it",
        (*_STUDY, "status"),
    ),
    "nfnet_places": Gauge("Trials that the study runs at once", _STUDY),
    "nfnet_images_per_second": Gauge(
        "Training images per second of training time, of all running trials together", _STUDY
    ),
    "nfnet_idle_accelerator_seconds": Gauge(
        "Accelerator-seconds without training in all attempts, by what the places waited for",
        (*_STUDY, "waiting_for"),
    ),
    "nfnet_available_accelerator_seconds": Gauge(
        "Accelerator-seconds of all places of the study while drivers were at work", _STUDY
    ),
    "nfnet_paid_accelerator_seconds": Gauge(
        "Accelerator-seconds for which trials held accelerators, in all attempts", _STUDY
    ),
    "nfnet_cost": Gauge("Price of these accelerator-seconds, in the currency of --price-per-hour", _STUDY),
    "nfnet_lost_seconds": Gauge("Seconds that failures have cost, of all trials together", _STUDY),
    "nfnet_mlflow_backlog_events": Gauge("Events of the journal that MLflow has not received", _STUDY),
    "nfnet_trial_epoch": Gauge("Epochs that the trial has trained", _TRIAL),
    "nfnet_trial_images_per_second": Gauge(
        "Training images per second of training time, in the trial's last epoch", _TRIAL
    ),
    "nfnet_trial_data_wait_share": Gauge(
        "Seconds of waiting for data, as a fraction of those of training and waiting, in the trial's last epoch",
        _TRIAL,
    ),
    "nfnet_trial_clipped_share": Gauge(
        "Fraction of the units whose gradients AGC clipped, in the trial's last epoch", _TRIAL
    ),
    "nfnet_trial_train_loss": Gauge("Mean training loss of the trial's last epoch", _TRIAL),
    "nfnet_trial_validation_top1": Gauge(
        "Fraction of the validation images that are classified correctly after the trial's last epoch", _TRIAL
    ),
}
"""{name: gauge}. Names contain the units; a share is a fraction of 1. In Prometheus, Ray puts ``ray_`` before a
name."""

_METRICS = {
    "nfnet_trial_images_per_second": "images_per_second",
    "nfnet_trial_clipped_share": "agc_clipped_fraction",
    "nfnet_trial_train_loss": "train_loss",
    "nfnet_trial_validation_top1": METRIC,
}


class Sample(NamedTuple):
    """The value of a gauge for given labels."""

    gauge: str
    labels: Mapping[str, str]
    value: float


def samples(study: str, state: StudyState, now: float, backlog: int) -> Iterator[Sample]:
    """Yields the gauges of a study at ``now`` (Unix seconds); ``backlog`` events have not reached MLflow.

    Values that are unknown, infinite or NaN are left out.
    """
    for name, labels, value in _all_samples(state, now, backlog):
        if value is not None and math.isfinite(value):
            yield Sample(name, {"study": study, **labels}, value)


def _all_samples(
    state: StudyState, now: float, backlog: int
) -> Iterator[tuple[str, Mapping[str, str], float | None]]:
    trials = state.members
    states = Counter(trial.state or "waiting" for trial in trials)
    if state.started is not None:
        # A driver that is killed leaves a "running" heartbeat without an "ended" one after it, which an alert looks
        # for.
        status = "running" if state.ended is None else "ended"
        yield "nfnet_driver_heartbeat_timestamp_seconds", {"status": status}, now
    for name in STATES:
        yield "nfnet_trials", {"state": name}, float(states[name])
    speeds = [trial.last("images_per_second") or 0.0 for trial in trials if trial.state == "running"]
    yield "nfnet_images_per_second", {}, math.fsum(speeds)
    yield "nfnet_places", {}, state.sessions[-1].places if state.sessions else None
    if (idle := state.idle_time(now)) is not None:
        for what, seconds in (
            ("start", idle.starting),
            ("decision", idle.deciding),
            ("nothing", idle.without_trial),
        ):
            yield "nfnet_idle_accelerator_seconds", {"waiting_for": what}, seconds
        yield "nfnet_available_accelerator_seconds", {}, idle.available
    paid, price = state.accelerator_seconds_at(now), state.caps.get("price_per_hour")
    yield "nfnet_paid_accelerator_seconds", {}, paid
    yield "nfnet_cost", {}, None if price is None else paid / SECONDS_PER_HOUR * price
    yield "nfnet_lost_seconds", {}, math.fsum(trial.last("lost_seconds") or 0.0 for trial in trials)
    yield "nfnet_mlflow_backlog_events", {}, float(backlog)
    for trial in trials:
        is_shown = trial.state == "running" or now - trial.held_since <= SECONDS_AFTER_THE_END
        if is_shown and trial.epochs:
            labels = {"trial": trial.name}
            yield "nfnet_trial_epoch", labels, float(trial.epoch)
            yield "nfnet_trial_data_wait_share", labels, _data_wait_share(trial)
            for gauge, metric in _METRICS.items():
                yield gauge, labels, trial.last(metric)


def _data_wait_share(trial: TrialProgress) -> float | None:
    """Returns the share of its last epoch for which a trial waited for data; None if the clock did not run."""
    last, before = trial.epochs[trial.epoch], trial.epochs.get(trial.epoch - 1, {})
    waited, trained = (
        (last.get(name) or 0.0) - (before.get(name) or 0.0) for name in ("data_wait_seconds", "train_seconds")
    )
    return waited / (waited + trained) if waited + trained > 0 else None
