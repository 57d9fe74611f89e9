"""The summary of a study, for a row of a list and as JSON: state, best setting, cost, size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nfnet_ray.analysis import BestSetting, SettingResult, best_setting
from nfnet_ray.analysis.record import study_record
from nfnet_ray.errors import UserError
from nfnet_ray.study.cost.spending import PaidTime
from nfnet_ray.tracking.labels import without_absent
from nfnet_ray.wording import percent
from studies.managing.folders import StudyFolder, bytes_below


def best_of(folder: StudyFolder) -> BestSetting | None:
    """The best setting of a study; None where no trial has finished, or nothing can be said."""
    if folder.state is None or folder.started is None:
        return None
    if not folder.trial_states.get("finished"):  # most of the time is spent on the tables
        return None
    return best_setting(study_record(folder.state, folder.started, with_epochs=False))


def summary_document(folder: StudyFolder) -> dict[str, Any]:
    """A study as JSON. The keys are described in docs/managing.md, and stay."""
    state, problem = folder.state, folder.problem
    try:
        best = best_of(folder)
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        # A journal whose lines are sound, and say something that no version has written.
        best, problem = None, problem or f"its journal has values that are not understood ({error!r})"
    paid = PaidTime.of(state) if state else None
    idle = state.idle_time() if state and not folder.is_export else None
    return {
        "name": folder.name,
        "directory": str(folder.directory),
        "state": folder.condition,
        "problem": problem or None,
        "is_export": folder.is_export,
        "question": folder.started["study"]["question"] if folder.started else None,
        "started": folder.started["time"] if folder.started else None,
        "last_event": state.last_event_time if state else None,
        "paid_hours": paid and paid.hours,
        "accelerator_hours": paid and paid.accelerator_hours,
        "idle": idle
        and {
            "share": idle.share,
            "accelerator_hours": idle.seconds / 3600,
            "starting_hours": idle.starting / 3600,
            "deciding_hours": idle.deciding / 3600,
            "without_trial_hours": idle.without_trial / 3600,
        },
        "trials": folder.trial_states,
        "trials_ended": folder.ended_trials,
        "trials_planned": folder.planned_trials,
        "best": best and {**setting_document(best.best), "confirmed": confirmed_document(best)},
        "bytes": bytes_below(folder.directory),
        "notes": list(state.notes) if state else [],
        "tags": dict(state.tags) if state else {},
    }


def setting_document(result: SettingResult) -> dict[str, Any]:
    """The outcome of a setting as JSON; accuracies are fractions."""
    return {
        "setting": without_absent(result.point),
        "top1": result.top1,
        "low": result.low,
        "high": result.high,
        "seeds": len(result.seed_top1),
        "validation_images": result.validation_images,
    }


def confirmed_document(answer: BestSetting) -> dict[str, Any] | None:
    """The reruns of a winner as JSON; None where none has finished."""
    confirmation = answer.confirmation
    if confirmation is None or confirmation.result is None:
        return None
    described = setting_document(confirmation.result)
    del described["setting"]
    return {
        **described,
        "drop": confirmation.drop,
        "planned": confirmation.planned,
        "lost": confirmation.lost,
    }


def interval_text(best: Mapping[str, Any] | None) -> str:
    """``98.1% (96.0 to 99.1)``, of the reruns if the winner was confirmed; empty where there is no best setting."""
    if best is None:
        return ""
    best = best.get("confirmed") or best
    return f"{percent(best['top1'])} ({100 * best['low']:.1f} to {100 * best['high']:.1f})"


def age_text(seconds: float) -> str:
    """How long ago something was, in its largest unit: ``12 s``, ``5 min``, ``3 h``, ``12 d``.

    >>> age_text(12), age_text(3599), age_text(86_399), age_text(1e7), age_text(-5)
    ('12 s', '59 min', '23 h', '115 d', '0 s')
    """
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{math.floor(seconds / size):,} {unit}"
    return f"{math.floor(seconds)} s"


def hours_text(hours: float | None) -> str:
    """``0.02``, ``3.4``, ``128``; empty where it is not known."""
    if hours is None:
        return ""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"
