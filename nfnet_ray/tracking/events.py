"""The events of a journal, which :mod:`nfnet_ray.tracking.journal` writes and reads, in this order::

study_started  (study_resumed)  (study_extended)  (trial_proposed)  trial_started  (form_chosen)  epoch  …
trial_paused  trial_promoted  …  trial_started  epoch  …  trial_ended  …  (contenders_chosen  …)
(confirmation_planned  …)  study_ended
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

from nfnet_ray.tracking.descriptions import (
    CapsDescription,
    Hardware,
    StudyDescription,
    TrialPlan,
    Values,
    Versions,
)

TrialOutcome = Literal["finished", "stopped", "diverged", "failed", "interrupted"]
StudyOutcome = Literal["finished", "interrupted"]


class StudyStarted(TypedDict):
    """The first line of a journal. Times are Unix seconds, here and below."""

    event: Literal["study_started"]
    time: float
    study: StudyDescription
    trials: list[TrialPlan]


def study_started(study: StudyDescription, trials: Sequence[TrialPlan]) -> StudyStarted:
    """The event of a study that starts now."""
    return {"event": "study_started", "time": time.time(), "study": study, "trials": list(trials)}


class StudyResumed(TypedDict):
    """A driver resumes a study.

    ``changed`` are the fields of the Recipe, and ``caps`` the caps and the price, that it was told to change;
    ``places`` is how many trials run at once from now on, on what ``hardware`` and with which ``versions``, which
    journals of earlier versions do not say.
    """

    event: Literal["study_resumed"]
    time: float
    changed: NotRequired[Values]
    caps: NotRequired[CapsDescription]
    places: NotRequired[int]
    hardware: NotRequired[Hardware]
    versions: NotRequired[Versions]


def study_resumed(
    changed: Mapping[str, Any],
    caps: CapsDescription | None = None,
    places: int | None = None,
    hardware: Hardware | None = None,
    versions: Versions | None = None,
) -> StudyResumed:
    """The event of a driver that resumes a study now."""
    event: StudyResumed = {"event": "study_resumed", "time": time.time()}
    if changed:
        event["changed"] = dict(changed)
    if caps:
        event["caps"] = caps
    if places is not None:
        event["places"] = places
    if hardware is not None:
        event["hardware"] = hardware
    if versions is not None:
        event["versions"] = versions
    return event


class StudyExtended(TypedDict):
    """A study gets other values, seeds or epochs. Whatever it has trained stays in the journal.

    ``study`` has the entries of the :class:`StudyDescription` that replace earlier ones, and ``trials`` all trials that
    the study has from now on: earlier ones under their names, and new ones.
    """

    event: Literal["study_extended"]
    time: float
    command: str
    study: dict[str, Any]
    trials: list[TrialPlan]
    left_out: list[str]
    """Trials that are not part of the study any more; their results stay as evidence."""
    taken_back: list[str]
    """Trials that an earlier extension had left out."""
    reconsidered: list[str]
    """Trials that were given up, and are at their rung again to be compared with the new ones."""


def study_extended(
    command: str,
    study: Mapping[str, Any],
    trials: Sequence[TrialPlan],
    *,
    left_out: Sequence[str],
    taken_back: Sequence[str],
) -> StudyExtended:
    """The event of a study that is extended now, which reconsiders no trial."""
    return {
        "event": "study_extended",
        "time": time.time(),
        "command": command,
        "study": dict(study),
        "trials": list(trials),
        "left_out": list(left_out),
        "taken_back": list(taken_back),
        "reconsidered": [],
    }


def with_extension(started: StudyStarted, extended: StudyExtended) -> StudyStarted:
    """The first event of a study as it would be if the study had begun as it is after an extension."""
    study = cast(StudyDescription, {**started["study"], **extended["study"]})
    return {**started, "study": study, "trials": extended["trials"]}


class StudyAnnotated(TypedDict):
    """Somebody added notes and tags to a study, or changed a tag. It may come after ``study_ended``."""

    event: Literal["study_annotated"]
    time: float
    notes: list[str]
    tags: dict[str, str]


def study_annotated(notes: Sequence[str], tags: Mapping[str, str]) -> StudyAnnotated:
    """The event of notes and tags that are added now."""
    return {"event": "study_annotated", "time": time.time(), "notes": list(notes), "tags": dict(tags)}


class TrialProposed(TypedDict):
    """A trial that the plan did not have: its point was chosen while the study ran, by what earlier trials gave.

    ``number`` counts the settings of the study from 0; the trials of a setting with several seeds share it. ``after``
    are the trials whose results the searcher was told.
    """

    event: Literal["trial_proposed"]
    time: float
    trial: str
    point: Values
    recipe: Values
    number: int
    after: list[str]


def trial_proposed(plan: TrialPlan, number: int, after: Sequence[str]) -> TrialProposed:
    """The event of a trial that is proposed now."""
    return {
        "event": "trial_proposed",
        "time": time.time(),
        "trial": plan["name"],
        "point": plan["point"],
        "recipe": plan["recipe"],
        "number": number,
        "after": list(after),
    }


class ContendersChosen(TypedDict):
    """All settings have been compared with their first seed, and the contenders are given further ones.

    ``trials`` are all of these trials from now on, with those that an earlier event of this kind has planned already.
    """

    event: Literal["contenders_chosen"]
    time: float
    trials: list[TrialPlan]
    dropped: dict[str, str]
    """{trial of a setting that is no contender: why, for people}."""
    left_out: list[str]
    """Trials of an earlier event of this kind that are not part of the study any more."""


def contenders_chosen(
    trials: Sequence[TrialPlan], dropped: Mapping[str, str], left_out: Sequence[str] = ()
) -> ContendersChosen:
    """The event of contenders that are chosen now."""
    return {
        "event": "contenders_chosen",
        "time": time.time(),
        "trials": list(trials),
        "dropped": dict(dropped),
        "left_out": list(left_out),
    }


class ConfirmationPlanned(TypedDict):
    """All settings have been compared, and the winner of each stratum is rerun with fresh seeds.

    ``trials`` are all reruns that confirm a winner from now on, with those that an earlier event of this kind has
    planned already. The reruns in ``left_out`` are those of an earlier winner; their results stay as evidence.
    """

    event: Literal["confirmation_planned"]
    time: float
    trials: list[TrialPlan]
    left_out: list[str]


def confirmation_planned(trials: Sequence[TrialPlan], left_out: Sequence[str] = ()) -> ConfirmationPlanned:
    """The event of reruns that are planned now."""
    return {
        "event": "confirmation_planned",
        "time": time.time(),
        "trials": list(trials),
        "left_out": list(left_out),
    }


def plans_of(event: Event) -> list[TrialPlan]:
    """The trials that an event adds to a study; reruns of a winner are among them."""
    if event["event"] in ("study_started", "study_extended", "contenders_chosen", "confirmation_planned"):
        return event["trials"]
    if event["event"] == "trial_proposed":
        return [{"name": event["trial"], "point": event["point"], "recipe": event["recipe"]}]
    return []


class AtWork(TypedDict):
    """The driver is alive, though nothing else has happened for a minute: its time up to here was paid for."""

    event: Literal["at_work"]
    time: float


def at_work() -> AtWork:
    """The event of a driver that is at work now."""
    return {"event": "at_work", "time": time.time()}


class TrialStarted(TypedDict):
    """A trial began, or began again: ``attempt`` counts from 1.

    A trial that was paused and continues is in the same attempt. With several workers, or in a training run, there are
    also the number of workers, the optimiser step, and why the attempt before ended. In a study ``slot`` counts the
    worker groups from 1, and ``reused`` says whether the group's processes have trained another leg before. ``lanes``
    is the number of trials that are trained as one program from now on, if it is one of a cohort.
    """

    event: Literal["trial_started"]
    time: float
    trial: str
    attempt: int
    workers: NotRequired[int]
    step: NotRequired[int]
    after: NotRequired[str | None]
    slot: NotRequired[int]
    reused: NotRequired[bool]
    lanes: NotRequired[int]


def trial_started(trial: str, attempt: int, lanes: int = 1) -> TrialStarted:
    """The event of a trial that starts now, alone or as one of ``lanes``."""
    event: TrialStarted = {
        "event": "trial_started",
        "time": time.time(),
        "trial": trial,
        "attempt": attempt,
    }
    if lanes > 1:
        event["lanes"] = lanes
    return event


def workers_started(trial: str, attempt: int, workers: int, step: int, after: str | None) -> TrialStarted:
    """The same of a training run, whose workers start at ``step``; ``after`` says why they had ended before."""
    event = trial_started(trial, attempt)
    return {**event, "workers": workers, "step": step, "after": after}


class FormChosen(TypedDict):
    """A trial has timed the forms of a step of this ``shape``: all trials of that shape are trained in the one chosen.

    ``choice`` are the values of a :class:`nfnet_ray.training.form.forms.Choice`. The first event of a shape holds.
    """

    event: Literal["form_chosen"]
    time: float
    trial: str
    shape: str
    choice: dict[str, Any]


def form_chosen(trial: str, shape: str, choice: Mapping[str, Any]) -> FormChosen:
    """The event of a form that is chosen now."""
    return {
        "event": "form_chosen",
        "time": time.time(),
        "trial": trial,
        "shape": shape,
        "choice": dict(choice),
    }


class TrialPaused(TypedDict):
    """A trial has reached a rung: it keeps a checkpoint, and waits until it is promoted or given up.

    ``rung`` is the rung in seconds of training; where rungs are in epochs it is ``epoch``.
    """

    event: Literal["trial_paused"]
    time: float
    trial: str
    epoch: int
    rung: NotRequired[float]


def trial_paused(trial: str, epoch: int, rung: float | None = None) -> TrialPaused:
    """The event of a trial that pauses now."""
    event: TrialPaused = {"event": "trial_paused", "time": time.time(), "trial": trial, "epoch": epoch}
    if rung is not None:
        event["rung"] = rung
    return event


class TrialPromoted(TypedDict):
    """A trial continues after the rung at ``epoch``, for this ``reason``. One that is given up ends as ``stopped``.

    ``rung`` is the rung in seconds of training, where rungs are in seconds. ``where`` says in words where the rung is,
    if it is more than an epoch.
    """

    event: Literal["trial_promoted"]
    time: float
    trial: str
    epoch: int
    reason: str
    rung: NotRequired[float]
    where: NotRequired[str]


def trial_promoted(
    trial: str, epoch: int, reason: str, rung: float | None, where: str | None
) -> TrialPromoted:
    """The event of a trial that is promoted now."""
    event: TrialPromoted = {
        "event": "trial_promoted",
        "time": time.time(),
        "trial": trial,
        "epoch": epoch,
        "reason": reason,
    }
    if rung is not None:
        event["rung"] = rung
    if where is not None:
        event["where"] = where
    return event


def promotion_in_words(event: TrialPromoted) -> str:
    """``promoted at epoch 2: 81.2%, 1st of 6``."""
    return f"promoted {event.get('where') or 'at epoch {}'.format(event['epoch'])}: {event['reason']}"


class EpochEnded(TypedDict):
    """The measurements of one epoch. A later event of the same trial and epoch replaces an earlier one.

    ``validation_top1`` is a fraction from 0 to 1; ``train_seconds`` is cumulative over the trial. ``correct_images`` is
    the text of a :class:`nfnet_ray.correct_images.CorrectImages`; it is there for the epochs at which a trial finished
    or paused. ``clipping`` is the text of a :class:`nfnet_ray.clipping.Clipping` of the steps since the record before;
    at most 32 epochs of a training have one. ``conditions`` is JSON, as
    :func:`nfnet_ray.training.measurement.conditions.conditions_text` writes it; it is there for the first epoch that a
    process has finished of a trial, and holds from that epoch on. ``system`` says how busy the trial's nodes were since
    the epoch that had it before: {host: {name of one of MLflow's system metrics: value}}, every ten seconds at most.
    Nothing is decided by it, and :class:`~nfnet_ray.tracking.state.StudyState` does not keep it.

    Where a trial trains several complete schedules one after the other, ``epoch`` counts the epochs of all of them, and
    the metrics have ``schedule_epochs``, the length of the one that it belongs to, and ``schedule_epoch``, its number
    in that one.
    """

    event: Literal["epoch"]
    time: float
    trial: str
    epoch: int
    metrics: dict[str, float | None]
    system: NotRequired[dict[str, dict[str, float]]]
    correct_images: NotRequired[str]
    clipping: NotRequired[str]
    conditions: NotRequired[str]


EPOCH_TEXTS: tuple[Literal["correct_images", "clipping", "conditions"], ...] = (
    "correct_images",
    "clipping",
    "conditions",
)
"""What may be known of an epoch besides its metrics, and is kept."""
SYSTEM: Literal["system"] = "system"
"""The text with which a worker reports the system metrics of its nodes, as JSON."""


def epoch_ended(
    trial: str, epoch: int, metrics: Mapping[str, float | None], texts: Mapping[str, str] | None = None
) -> EpochEnded:
    """The event of an epoch that is reported now. ``texts`` are those that the worker reports with it."""
    event: EpochEnded = {
        "event": "epoch",
        "time": time.time(),
        "trial": trial,
        "epoch": epoch,
        "metrics": dict(metrics),
    }
    # In front: a line that ends with it is one that read_last_epochs may leave out.
    if texts and SYSTEM in texts:
        event["system"] = json.loads(texts[SYSTEM])
    for name in EPOCH_TEXTS:
        if texts and name in texts:
            event[name] = texts[name]
    return event


class TrialEnded(TypedDict):
    """How a trial ended after ``epochs`` epochs. An interrupted one may start again."""

    event: Literal["trial_ended"]
    time: float
    trial: str
    state: TrialOutcome
    reason: str | None
    epochs: int


def trial_ended(trial: str, state: TrialOutcome, reason: str | None, epochs: int) -> TrialEnded:
    """The event of a trial that ends now."""
    return {
        "event": "trial_ended",
        "time": time.time(),
        "trial": trial,
        "state": state,
        "reason": reason,
        "epochs": epochs,
    }


class StudyEnded(TypedDict):
    """The driver has left in good order; ``wall_seconds`` is the time of all drivers at work.

    ``reason`` says why it left early, if a cap was reached.
    """

    event: Literal["study_ended"]
    time: float
    state: StudyOutcome
    wall_seconds: float
    reason: NotRequired[str]


def study_ended(state: StudyOutcome, wall_seconds: float, reason: str | None = None) -> StudyEnded:
    """The event of a driver that leaves now."""
    event: StudyEnded = {
        "event": "study_ended",
        "time": time.time(),
        "state": state,
        "wall_seconds": wall_seconds,
    }
    if reason is not None:
        event["reason"] = reason
    return event


Event = (
    StudyStarted
    | StudyResumed
    | StudyExtended
    | StudyAnnotated
    | TrialProposed
    | ContendersChosen
    | ConfirmationPlanned
    | TrialStarted
    | FormChosen
    | TrialPaused
    | TrialPromoted
    | EpochEnded
    | TrialEnded
    | AtWork
    | StudyEnded
)


def study_id(started: StudyStarted) -> str:
    """A name that no other study has, even one of the same name elsewhere: name and start in UTC milliseconds."""
    return f"{started['study']['name']}-{round(started['time'] * 1000)}"
