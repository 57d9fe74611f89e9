"""Computes the metrics of a whole study for its own run in MLflow."""

from __future__ import annotations

import math

from nfnet_ray.tracking.state import StudyState


def study_metrics(state: StudyState, metric: str) -> dict[str, float]:
    """Returns a study's own metrics in MLflow; ``best_…`` is missing while no trial has finished.

    Trials that an extension has left out are counted, as their time was paid for, but cannot be the best. The same
    holds for reruns of a winner, whose mean accuracy is ``confirmed_…``; with several winners it is that of the best
    one.
    """
    trials = state.trials.values()
    finished = [trial for trial in trials if trial.outcome == "finished"]
    outside = state.outside
    summary = {
        "trials_finished": float(len(finished)),
        "trials_ended": float(sum(trial.outcome is not None for trial in trials)),
        "total_train_seconds": sum(trial.last("train_seconds") or 0.0 for trial in trials),
        "accelerator_hours": state.accelerator_seconds / 3600,
    }
    if (idle := state.idle_time()) is not None:
        summary |= {"idle_accelerator_seconds": idle.seconds, "idle_share": idle.share}
    if (price := state.caps.get("price_per_hour")) is not None:
        summary["cost"] = summary["accelerator_hours"] * price
    final = {
        trial.name: value
        for trial in finished
        if trial.name not in outside and (value := trial.last(metric)) is not None
    }
    settings = [value for name, value in final.items() if name not in state.reruns]
    if settings:
        summary[f"best_{metric}"] = max(settings)
    confirmed: dict[str, list[float]] = {}
    for name in final.keys() & state.reruns.keys():
        confirmed.setdefault(str(state.reruns[name]["point"]), []).append(final[name])
    if confirmed:
        summary[f"confirmed_{metric}"] = max(math.fsum(each) / len(each) for each in confirmed.values())
    return summary
