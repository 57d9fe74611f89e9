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
    """Returns the event of a study that starts now."""
    return {"event": "study_started", "time": time.time(), "study": study, "trials": list(trials)}


class StudyResumed(TypedDict):
    """A driver resumes a study.

    ``changed`` has the fields of the Recipe, and ``caps`` the caps and the price, that were changed by the command.
    ``places`` is the number of trials that run at once from now on, on this ``hardware`` and with these ``versions``;
    journals of earlier versions lack these three.
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
    """Returns the event of a driver that resumes a study now."""
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
    """A study is extended by values, seeds or epochs. All results so far stay in the journal.

    ``study`` has the entries of the :class:`StudyDescription` that replace earlier ones. ``trials`` has all trials of
    the extended study: earlier ones under their names, and new ones.
    """

    event: Literal["study_extended"]
    time: float
    command: str
    study: dict[str, Any]
    trials: list[TrialPlan]
    left_out: list[str]
    """Trials that no longer belong to the study; their results stay as evidence."""
    taken_back: list[str]
    """Trials that an earlier extension had left out."""
    reconsidered: list[str]
    """Trials that had been given up and wait at their rung again, to be compared with the new trials."""


def study_extended(
    command: str,
    study: Mapping[str, Any],
    trials: Sequence[TrialPlan],
    *,
    left_out: Sequence[str],
    taken_back: Sequence[str],
) -> StudyExtended:
    """Returns the event of a study that is extended now, without trials to reconsider."""
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
    """Returns the first event of a study, changed as if the study had begun in its extended form."""
    study = cast(StudyDescription, {**started["study"], **extended["study"]})
    return {**started, "study": study, "trials": extended["trials"]}


class StudyAnnotated(TypedDict):
    """Notes and tags are added to a study, or a tag is changed. This may happen after ``study_ended``."""

    event: Literal["study_annotated"]
    time: float
    notes: list[str]
    tags: dict[str, str]


def study_annotated(notes: Sequence[str], tags: Mapping[str, str]) -> StudyAnnotated:
    """Returns the event of notes and tags that are added now."""
    return {"event": "study_annotated", "time": time.time(), "notes": list(notes), "tags": dict(tags)}


class TrialProposed(TypedDict):
    """A trial is added to the plan: its point was chosen while the study ran, from the results of earlier trials.

    ``number`` counts the settings of the study from 0; the trials of a setting with several seeds share it. ``after``
    has the trials whose results the searcher used.
    """

    event: Literal["trial_proposed"]
    time: float
    trial: str
    point: Values
    recipe: Values
    number: int
    after: list[str]


def trial_proposed(plan: TrialPlan, number: int, after: Sequence[str]) -> TrialProposed:
    """Returns the event of a trial that is proposed now."""
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
    """All settings have been compared with their first seed, and further seeds of the contenders are planned.

    ``trials`` has all further trials from now on, including those that an earlier event of this kind has planned.
    """

    event: Literal["contenders_chosen"]
    time: float
    trials: list[TrialPlan]
    dropped: dict[str, str]
    """{trial of a setting that is not a contender: the reason, for people}."""
    left_out: list[str]
    """Trials of an earlier event of this kind that no longer belong to the study."""


def contenders_chosen(
    trials: Sequence[TrialPlan], dropped: Mapping[str, str], left_out: Sequence[str] = ()
) -> ContendersChosen:
    """Returns the event of contenders that are chosen now."""
    return {
        "event": "contenders_chosen",
        "time": time.time(),
        "trials": list(trials),
        "dropped": dict(dropped),
        "left_out": list(left_out),
    }


class ConfirmationPlanned(TypedDict):
    """All settings have been compared, and reruns of the winner of each stratum with fresh seeds are planned.

    ``trials`` has all reruns that confirm a winner from now on, including those that an earlier event of this kind has
    planned. The reruns in ``left_out`` are those of an earlier winner; their results stay as evidence.
    """

    event: Literal["confirmation_planned"]
    time: float
    trials: list[TrialPlan]
    left_out: list[str]


def confirmation_planned(trials: Sequence[TrialPlan], left_out: Sequence[str] = ()) -> ConfirmationPlanned:
    """Returns the event of reruns that are planned now."""
    return {
        "event": "confirmation_planned",
        "time": time.time(),
        "trials": list(trials),
        "left_out": list(left_out),
    }


def plans_of(event: Event) -> list[TrialPlan]:
    """Returns the trials that an event adds to a study, including reruns of a winner."""
    if event["event"] in ("study_started", "study_extended", "contenders_chosen", "confirmation_planned"):
        return event["trials"]
    if event["event"] == "trial_proposed":
        return [{"name": event["trial"], "point": event["point"], "recipe": event["recipe"]}]
    return []


class AtWork(TypedDict):
    """The driver is alive although nothing else has happened for a minute; its time so far counts as paid."""

    event: Literal["at_work"]
    time: float


def at_work() -> AtWork:
    """Returns the event of a driver that is at work now."""
    return {"event": "at_work", "time": time.time()}


class TrialStarted(TypedDict):
    """A trial begins, or begins again: ``attempt`` counts from 1.

    A trial that continues after a pause is in the same attempt. With several workers, or in a training run, the event
    also has the number of workers, the optimiser step, and the reason for the end of the previous attempt. In a study
    ``slot`` counts the worker groups from 1, and ``reused`` says whether the group's processes have trained another leg
    before. ``lanes`` is the number of trials that are trained as one program from now on, if the trial belongs to a
    cohort.
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
    """Returns the event of a trial that starts now, alone or as one of ``lanes`` trials."""
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
    """Returns the event of a training run whose workers start at ``step``; ``after`` says why they had ended before."""
    event = trial_started(trial, attempt)
    return {**event, "workers": workers, "step": step, "after": after}


class FormChosen(TypedDict):
    """A trial has timed the forms of a step of this ``shape``. All trials of that shape are trained in the chosen form.

    ``choice`` has the values of a :class:`nfnet_ray.training.form.forms.Choice`. The first event of a shape is
    decisive.
    """

    event: Literal["form_chosen"]
    time: float
    trial: str
    shape: str
    choice: dict[str, Any]


def form_chosen(trial: str, shape: str, choice: Mapping[str, Any]) -> FormChosen:
    """Returns the event of a form that is chosen now."""
    return {
        "event": "form_chosen",
        "time": time.time(),
        "trial": trial,
        "shape": shape,
        "choice": dict(choice),
    }


class TrialPaused(TypedDict):
    """A trial has reached a rung: it keeps a checkpoint and waits until it is promoted or given up.

    ``rung`` is the rung in seconds of training. It is missing if rungs are in epochs; the rung is then ``epoch``.
    """

    event: Literal["trial_paused"]
    time: float
    trial: str
    epoch: int
    rung: NotRequired[float]


def trial_paused(trial: str, epoch: int, rung: float | None = None) -> TrialPaused:
    """Returns the event of a trial that pauses now."""
    event: TrialPaused = {"event": "trial_paused", "time": time.time(), "trial": trial, "epoch": epoch}
    if rung is not None:
        event["rung"] = rung
    return event


class TrialPromoted(TypedDict):
    """A trial continues after the rung at ``epoch``, for this ``reason``. A trial that is given up ends as ``stopped``.

    ``rung`` is the rung in seconds of training, if rungs are in seconds. ``where`` describes the rung in words if it is
    not just an epoch.
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
    """Returns the event of a trial that is promoted now."""
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
    """Formats a promotion, such as ``promoted at epoch 2: 81.2%, 1st of 6``."""
    return f"promoted {event.get('where') or 'at epoch {}'.format(event['epoch'])}: {event['reason']}"


class EpochEnded(TypedDict):
    """The measurements of one epoch. A later event of the same trial and epoch replaces an earlier one.

    ``validation_top1`` is a fraction from 0 to 1; ``train_seconds`` is cumulative over the trial. ``correct_images`` is
    the text of a :class:`nfnet_ray.correct_images.CorrectImages` for epochs at which a trial finished or paused.
    ``clipping`` is the text of a :class:`nfnet_ray.clipping.Clipping` of the steps since the previous record; at most
    32 epochs of a training have one. ``conditions`` is JSON, written by
    :func:`nfnet_ray.training.measurement.conditions.conditions_text`, for the first epoch of a trial that a process
    finishes; it applies from that epoch on. ``system`` contains the load of the trial's nodes since the previous
    record: {host: {name of one of MLflow's system metrics: value}}, at most every ten seconds. No decision depends on
    it, and :class:`~nfnet_ray.tracking.state.StudyState` does not keep it.

    If a trial trains several complete schedules one after the other, ``epoch`` counts the epochs of all of them. The
    metrics then have ``schedule_epochs``, the length of the epoch's schedule, and ``schedule_epoch``, the epoch's
    number within it.
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
"""The texts that an epoch may have besides its metrics, and that the state keeps."""
SYSTEM: Literal["system"] = "system"
"""The name of the text, in JSON, with which a worker reports the system metrics of its nodes."""


def epoch_ended(
    trial: str, epoch: int, metrics: Mapping[str, float | None], texts: Mapping[str, str] | None = None
) -> EpochEnded:
    """Returns the event of an epoch that is reported now, with the ``texts`` that the worker reports with it."""
    event: EpochEnded = {
        "event": "epoch",
        "time": time.time(),
        "trial": trial,
        "epoch": epoch,
        "metrics": dict(metrics),
    }
    # Inserted before the texts: read_last_epochs leaves out lines that end with an object, and lines with texts are
    # needed.
    if texts and SYSTEM in texts:
        event["system"] = json.loads(texts[SYSTEM])
    for name in EPOCH_TEXTS:
        if texts and name in texts:
            event[name] = texts[name]
    return event


class TrialEnded(TypedDict):
    """A trial has ended after ``epochs`` epochs. An interrupted trial may start again."""

    event: Literal["trial_ended"]
    time: float
    trial: str
    state: TrialOutcome
    reason: str | None
    epochs: int


def trial_ended(trial: str, state: TrialOutcome, reason: str | None, epochs: int) -> TrialEnded:
    """Returns the event of a trial that ends now."""
    return {
        "event": "trial_ended",
        "time": time.time(),
        "trial": trial,
        "state": state,
        "reason": reason,
        "epochs": epochs,
    }


class StudyEnded(TypedDict):
    """The driver has ended in good order; ``wall_seconds`` is the time of all drivers at work.

    ``reason`` says which cap was reached, if the study ended early for that.
    """

    event: Literal["study_ended"]
    time: float
    state: StudyOutcome
    wall_seconds: float
    reason: NotRequired[str]


def study_ended(state: StudyOutcome, wall_seconds: float, reason: str | None = None) -> StudyEnded:
    """Returns the event of a driver that ends now."""
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
    """Returns a unique name of a study, even among studies of the same name: name and start in UTC milliseconds."""
    return f"{started['study']['name']}-{round(started['time'] * 1000)}"
