"""Rebuilds the state of a study from its journal: for display, resuming, analysis and MLflow.

This is the only place where the lines of a journal are added up. A :class:`StudyState` applies the events one by one,
whether they have just happened or are read from a file.
"""

from __future__ import annotations

import copy
import math
from array import array
from collections.abc import Container, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.settings import did_you_mean
from nfnet_ray.tracking.descriptions import (
    CapsDescription,
    Hardware,
    StudyDescription,
    TrialPlan,
    Versions,
    accelerators,
)
from nfnet_ray.tracking.events import (
    EpochEnded,
    Event,
    StudyEnded,
    StudyExtended,
    StudyResumed,
    StudyStarted,
    TrialEnded,
    TrialPaused,
    TrialPromoted,
    TrialStarted,
    plans_of,
    promotion_in_words,
    with_extension,
)
from nfnet_ray.tracking.idle import IdleTime, Places, planned_trials
from nfnet_ray.tracking.journal import JOURNAL_FILE, not_understood, read_events, read_last_epochs
from nfnet_ray.tracking.swept import winner_fields
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD, TrialProgress, activity


@dataclass(frozen=True)
class Session:
    """The hardware, versions and places of one driver. None if the journal is of a version that did not record them."""

    hardware: Hardware | None
    versions: Versions | None
    places: int | None


class StudyState:
    """The state of a study, built up from the events of its journal one by one.

    Attributes:
        started: the journal's first event, with all extensions applied to it; None before the first event.
        ended: the last event of the latest driver if it ended in good order; None while a driver is at work, or after
            it was killed.
        changed: {field of the Recipe: value} of the fields that were changed when the study was resumed.
        caps: the latest caps on the spending, and the latest price of an accelerator-hour.
        extensions: the commands that have extended the study, in their order.
        sessions: one for each driver: the one that started the study, then those that resumed it.
        trials: {name: progress}, in the order of the plan, then those that were proposed later, then those that an
            extension has left out.
        plans: {name: plan} of the same trials, once the journal has begun.
        proposals: {name: number of its setting} of the trials that were proposed while the study ran, since it was
            started or last extended.
        further: {name: plan} of the further seeds of contenders; these trials are in ``trials`` and not in ``plans``.
        repeating: the names of the trials in ``further`` that are part of the study now.
        dropped: {trial of a setting that is not a contender: the reason}.
        has_contenders: whether the contenders have been chosen since a setting was trained, or the study extended,
            last.
        reruns: {name: plan} of all reruns of a winner, which are in ``trials`` and not in ``plans``.
        confirming: the names of the trials in ``reruns`` that confirm a winner now; the others reran earlier ones.
        has_winners: whether the winners have been chosen since a setting was trained, or the study extended, last.
        forms: {shape of a step: the form that was chosen for all trials with a step of this shape}.
        notes: the notes that people have added to the study, in chronological order.
        tags: the {key: value} tags that people have added.
        last_event_time: Unix seconds of the latest event, 0 before the first.
        journal_bytes: the end of the last line that :meth:`read` has read; 0 if it read none, or only last epochs.
        latest: the trial of the latest event that is not a sign of life; None if that event is about the study.
    """

    def __init__(self, trials: Iterable[str] = ()) -> None:
        self.started: StudyStarted | None = None
        self.ended: StudyEnded | None = None
        self.changed: dict[str, Any] = {}
        self.caps: CapsDescription = {}
        self.trials = {name: TrialProgress(name) for name in trials}
        self.notes: list[str] = []
        self.tags: dict[str, str] = {}
        self.plans: dict[str, TrialPlan] = {}
        self.proposals: dict[str, int] = {}
        self.further: dict[str, TrialPlan] = {}
        self.repeating: tuple[str, ...] = ()
        self.dropped: dict[str, str] = {}
        self.has_contenders = False
        self.reruns: dict[str, TrialPlan] = {}
        self.confirming: tuple[str, ...] = ()
        self.has_winners = False
        self.forms: dict[str, dict[str, Any]] = {}
        self.extensions: list[str] = []
        self.sessions: list[Session] = []
        self.last_event_time = 0.0
        self.journal_bytes = 0
        self.latest: TrialProgress | None = None
        self._wall_seconds_before = 0.0
        # Times of the first and the last event of a driver whose end has not been recorded.
        self._session: tuple[float, float] | None = None
        # {epoch: (trials, their validation top-1)}, as they were first reported.
        self._reported: dict[int, tuple[list[str], array[float]]] = {}
        self._forgets = False
        self._places = Places()

    @staticmethod
    def read(directory: Path, *, last_epochs_only: bool = False) -> tuple[StudyState, StudyStarted]:
        """Reads the state of the study whose results are in ``directory``. Returns the state and the first event.

        ``last_epochs_only`` takes a fraction of the time; trials then have their last epoch, but not all earlier ones.

        Raises:
            UserError: there is no journal, it is damaged, it does not begin with ``study_started``, or it has events
                that do not fit each other.
        """
        journal, state = directory / JOURNAL_FILE, StudyState()
        if not journal.exists():
            near = did_you_mean(directory.name, _studies_in(directory.parent), otherwise="")
            hint = near or "--resume and --extend take the name of one, and python -m studies list shows all"
            raise UserError(f"{directory}: no study is here; {hint}")
        try:
            if last_epochs_only:
                for event in read_last_epochs(journal):
                    state.apply(event)
            else:
                for event, end in read_events(journal):
                    state.apply(event)
                    state.journal_bytes = end
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if state.started is not None:
                raise not_understood(str(journal), state.versions, repr(error)) from error
        if state.started is None:
            raise UserError(
                f"{journal} does not say what the study is: its first line, study_started, is missing"
            )
        return state, state.started

    def copy(self) -> StudyState:
        """Returns a copy on which events can be tried. It shares the metrics of epochs with the original."""
        copied = copy.copy(self)
        copied.trials = {name: copy.copy(trial) for name, trial in self.trials.items()}
        for trial in copied.trials.values():
            trial.promoted = dict(trial.promoted)
            trial.paused = dict(trial.paused)
        copied._places = copy.deepcopy(self._places)
        copied.extensions = list(self.extensions)
        return copied

    def forget_details(self) -> None:
        """Keeps from now on only those details of ended trials that a driver needs.

        This takes a few hundred bytes for each trial instead of 30 kB. The details suffice for decisions, the table,
        MLflow and the choice of winners; the report reads the journal.
        """
        self._forgets = True
        for trial in self.trials.values():
            if trial.state in ENDED_FOR_GOOD:
                trial.forget_details()

    def apply(self, event: Event) -> None:
        """Applies the next event of the journal. Kinds of events that this version does not know change nothing."""
        # These two events do not show that a driver was at work. A person annotates a study at any time, and a driver
        # records the extension just after it has recorded that it resumes the study.
        if event["event"] == "study_annotated":
            self.notes += event["notes"]
            self.tags |= event["tags"]
            return
        if event["event"] == "study_extended":
            self._extend(event)
            return
        before = self.last_event_time
        self.last_event_time = event.get("time", self.last_event_time)
        if event["event"] in ("study_started", "study_resumed"):
            self._begin_session(event)
        elif self._session is not None:
            self._session = (self._session[0], max(self._session[1], event["time"]))
        match event["event"]:
            case "study_started":
                self.started = event
                self.notes = list(self._study.get("notes", ()))
                self.tags = dict(self._study.get("tags", {}))
                self.plans = {plan["name"]: plan for plan in plans_of(event)}
                self.trials = {name: TrialProgress(name) for name in self.plans}
                self.caps = self._study.get("caps", {}).copy()
            case "study_resumed":
                self.ended = None
                self.changed |= event.get("changed", {})
                self.caps.update(event.get("caps", {}))
            case "study_ended":
                self._release(self.last_event_time)
                self.ended = event
                self._wall_seconds_before, self._session = event["wall_seconds"], None
            case "trial_proposed":
                # New dictionaries, because the thread that draws the table may be iterating over these.
                name = event["trial"]
                self.plans = {**self.plans, name: plans_of(event)[0]}
                self.trials = {**self.trials, name: self.trials.get(name) or TrialProgress(name)}
                self.proposals = {**self.proposals, name: event["number"]}
            case "contenders_chosen":
                now = {plan["name"]: plan for plan in plans_of(event)}
                self.further = {**self.further, **now}
                self.repeating, self.has_contenders, self.has_winners = tuple(now), True, False
                self._drop(event["dropped"])
                self._add_trials(self.further, now)
            case "confirmation_planned":
                now = {plan["name"]: plan for plan in plans_of(event)}
                self.reruns = {**self.reruns, **now}
                self.confirming, self.has_winners = tuple(now), True
                self._add_trials(self.reruns, now)
            case "form_chosen":
                self.forms = {event["shape"]: event["choice"], **self.forms}
            case "trial_started" | "trial_paused" | "trial_promoted" | "epoch" | "trial_ended":
                self._apply_to_trial(self.trials[event["trial"]], event)
            case "at_work":
                pass  # only its time matters, which is recorded above
        trial = self.trials.get(str(event.get("trial")))
        if event["event"] != "at_work":  # it changes nothing, and comes from another thread
            self.latest = trial
        if trial is not None and trial.state != "running" and trial.accelerators:
            trial.hold(0.0, self.last_event_time)
        if event["event"] not in ("epoch", "at_work"):
            self._watch_places(event, trial, before)

    def _begin_session(self, event: StudyStarted | StudyResumed) -> None:
        """Records that a driver begins, with its hardware, versions and places."""
        self._wall_seconds_before = self.wall_seconds
        # A driver that was killed has recorded no end, so its trials count as holding accelerators until its last
        # event.
        self._release(self._session[1] if self._session else event["time"])
        self._session = (event["time"], event["time"])
        told: Mapping[str, Any] = (
            event if event["event"] == "study_resumed" else cast(Mapping[str, Any], event).get("study", {})
        )
        session = Session(told.get("hardware"), told.get("versions"), told.get("places"))
        self.sessions = [*self.sessions, session]

    def _extend(self, event: StudyExtended) -> None:
        """Applies an extension. Applying the same one twice makes no difference."""
        assert self.started is not None
        earlier = self._study["recipe"]
        self.started = with_extension(self.started, event)
        # A plan contains the differences from the study's Recipe. As the Recipe has changed, earlier plans need its
        # former values.
        recipe = self._study["recipe"]
        changed = {name: value for name, value in earlier.items() if recipe.get(name) != value}
        now = {plan["name"]: plan for plan in plans_of(event)}
        others = {name: plan for name, plan in self.plans.items() if name not in now}
        for name, plan in others.items():
            others[name] = {**plan, "recipe": {**changed, **plan["recipe"]}}
        self.plans = {**now, **others}
        self.further = _with_values({n: plan for n, plan in self.further.items() if n not in now}, changed)
        self.reruns = _with_values(self.reruns, changed)
        names = (*self.plans, *self.further, *self.reruns)
        self.trials = {name: self.trials.get(name) or TrialProgress(name) for name in names}
        self.proposals, self.repeating, self.confirming = {}, (), ()
        self.has_contenders = self.has_winners = False
        self._drop({})
        for name in event["reconsidered"]:
            trial = self.trials[name]
            if trial.state == "stopped":
                trial.state, trial.reason, trial.outcome = "paused", None, None
        outside = self.outside
        for trial in self.trials.values():
            is_over = trial.name in outside
            self._places.note(trial.name, "over" if is_over else activity(trial, resumed=True))
        self._places.plan(self._planned_trials())
        if not self.extensions or self.extensions[-1] != event["command"]:
            self.extensions.append(event["command"])

    def _add_trials(self, added: Mapping[str, TrialPlan], now: Container[str]) -> None:
        """Adds trials to the plan: those that belong to the study ``now``, and others that belonged to it before."""
        new = {name: TrialProgress(name) for name in added if name not in self.trials}
        self.trials = {**self.trials, **new}
        for name in added:
            is_part = name in now
            self._places.note(name, activity(self.trials[name], resumed=True) if is_part else "over")
        self._places.plan(self._planned_trials())

    def _drop(self, dropped: Mapping[str, str]) -> None:
        """Records which settings are dropped, by the trials of their first seed, in place of earlier ones."""
        for name in self.dropped:
            self.trials[name].reason = None
        self.dropped = dict(dropped)
        for name, why in dropped.items():
            self.trials[name].reason = why

    def _apply_to_trial(
        self,
        trial: TrialProgress,
        event: TrialStarted | TrialPaused | TrialPromoted | EpochEnded | TrialEnded,
    ) -> None:
        match event["event"]:
            case "trial_started":
                trial.state, trial.reason, trial.attempts = "running", None, event["attempt"]
                self.has_winners &= trial.name in self.reruns
                self.has_contenders &= trial.name in self.reruns or trial.name in self.further
                trial.reused = event.get("reused")
                trial.lanes = event.get("lanes", 1)
                # Each trial of a cohort has an equal share of the cohort's accelerators.
                trial.hold(self._accelerators(event.get("workers")) / trial.lanes, self.last_event_time)
            case "trial_paused":
                trial.state = "paused"
                trial.paused[event.get("rung", event["epoch"])] = event["epoch"]
            case "trial_promoted":
                trial.promoted[event.get("rung", event["epoch"])] = event["reason"]
                trial.reason = promotion_in_words(event)
            case "epoch":
                if event["epoch"] not in trial.epochs:  # journals of earlier versions repeat some epochs
                    top1 = event["metrics"].get(METRIC) or 0.0
                    names, values = self._reported.setdefault(event["epoch"], ([], array("d")))
                    names.append(trial.name)  # shares the trial's string instead of storing the event's copy
                    values.append(top1)
                trial.add_epoch(event)
                if trial.sessions[-1:] != [len(self.sessions) - 1]:
                    trial.sessions = [*trial.sessions, len(self.sessions) - 1]
            case "trial_ended":
                trial.state, trial.reason = event["state"], event["reason"]
                trial.outcome = event["state"]
                if self._forgets and trial.state in ENDED_FOR_GOOD:
                    trial.forget_details()

    def _release(self, now: float) -> None:
        """Records that from ``now`` on no trial holds an accelerator."""
        for trial in self.trials.values():
            if trial.accelerators:
                trial.hold(0.0, now)

    def _accelerators(self, workers: int | None = None) -> float:
        """Returns the number of accelerators that ``workers`` hold, by default all workers of a trial."""
        worker = self._study.get("worker", {})
        return accelerators(workers or worker.get("workers", 1), float(worker.get("gpus", 0)))

    def _watch_places(self, event: Event, trial: TrialProgress | None, before: float) -> None:
        """Records what the places do from this event on; ``before`` is the time of the previous event."""
        now = self.last_event_time
        if event["event"] in ("study_started", "study_resumed"):
            self._places.end(before)  # ends the session of a driver that was killed
            for known in self.members:
                self._places.note(known.name, activity(known, resumed=True))
            described: Mapping[str, Any] = event if event["event"] == "study_resumed" else self._study
            self._places.begin(now, described.get("places"), self._accelerators(), self._planned_trials())
        elif event["event"] == "study_extended":
            for known in self.members:
                self._places.note(known.name, activity(known))
        elif event["event"] == "study_ended":
            self._places.end(now)
        elif trial is not None:
            self._places.pass_time(now)
            self._places.note(trial.name, activity(trial), 1 / trial.lanes)

    def _planned_trials(self) -> int:
        """Returns the largest possible final number of trials, including trials that are yet to be added."""
        planned = planned_trials(self._study)
        # At least two contenders for each winner (nfnet_ray/study/contenders.py).
        further = 0 if self.has_contenders else 2 * len(self._study.get("more_seeds", ()))
        reruns = 0 if self.has_winners else self._study.get("confirm", 0)
        if not further + reruns:
            return planned
        fields, outside = winner_fields(cast(StudyDescription, self._study)), self.outside
        strata = {
            str([plan["point"].get(field) for field in fields])
            for plan in self.plans.values()
            if plan["name"] not in outside
        }
        return max(planned, len(self.trials)) + (further + reruns) * len(strata)

    @property
    def versions(self) -> list[str]:
        """The versions of nfnet_ray that have written the journal, as far as they are recorded."""
        told = (session.versions for session in self.sessions)
        return [str(versions["nfnet_ray"]) for versions in told if versions and "nfnet_ray" in versions]

    @property
    def outside(self) -> Set[str]:
        """Names of the trials that are no longer trained. Their results stay as evidence.

        These are the trials that an extension has left out, and the further seeds and reruns of former contenders and
        winners.
        """
        added = self.reruns.keys() | self.further.keys()
        return added.union(self._study.get("outside", ())) - {*self.confirming, *self.repeating}

    @property
    def members(self) -> list[TrialProgress]:
        """The trials of the study, without those that an extension has left out."""
        outside = self.outside
        trials = list(self.trials.values())
        return [trial for trial in trials if trial.name not in outside] if outside else trials

    @property
    def unfinished(self) -> list[str]:
        """Names of the trials that have not ended for good."""
        return [trial.name for trial in self.members if trial.state not in ENDED_FOR_GOOD]

    def reported_at(self, epoch: int) -> list[tuple[str, float]]:
        """Returns (trial, validation top-1) of an epoch in the order of the first reports, for the median rule."""
        return list(zip(*self._reported.get(epoch, ((), ())), strict=True))

    @property
    def wall_seconds(self) -> float:
        """Seconds for which drivers were at work. A driver that was killed counts up to its last event."""
        first, last = self._session or (0.0, 0.0)
        return self._wall_seconds_before + (last - first)

    def wall_seconds_at(self, now: float) -> float:
        """Returns the wall seconds up to ``now`` (Unix seconds), if the driver has worked since the last event."""
        _, last = self._session or (0.0, now)
        return self.wall_seconds + max(0.0, now - last)

    @property
    def accelerator_seconds(self) -> float:
        """Accelerator-seconds up to the last event."""
        return self.accelerator_seconds_at(self._session[1] if self._session else 0.0)

    def accelerator_seconds_at(self, now: float) -> float:
        """Returns the accelerator-seconds of all trials in all attempts up to ``now``, in Unix seconds.

        Without a driver at work, they end with the last event of the latest driver.
        """
        return math.fsum(trial.accelerator_seconds_at(now) for trial in list(self.trials.values()))

    def idle_time(self, now: float | None = None) -> IdleTime | None:
        """Returns the idle time of accelerators up to ``now`` (Unix seconds), by default up to the last event.

        None for a journal of an earlier version, which does not contain the number of places.
        """
        startup = math.fsum(
            (trial.last("startup_seconds") or 0.0) + (trial.last("warmup_seconds") or 0.0)
            for trial in list(self.trials.values())
        )
        return self._places.idle_time(self.last_event_time if now is None else now, startup)

    @property
    def _study(self) -> Mapping[str, Any]:
        """The description of the study in its first event; empty before that event."""
        return cast(Mapping[str, Any], self.started).get("study", {}) if self.started else {}


def _with_values(plans: Mapping[str, TrialPlan], values: Mapping[str, Any]) -> dict[str, TrialPlan]:
    """Returns the plans with these values of the Recipe where a plan does not have its own."""
    return {name: {**plan, "recipe": {**values, **plan["recipe"]}} for name, plan in plans.items()}


def _studies_in(storage: Path) -> list[str]:
    return sorted(journal.parent.name for journal in storage.glob(f"*/{JOURNAL_FILE}"))
