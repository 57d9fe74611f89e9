"""The state of a study, rebuilt from its journal: for display, resuming, analysis and MLflow.

This is the one place where the lines of a journal are added up. A :class:`StudyState` takes them one by one, whether
they have just happened or are read from a file.
"""

from __future__ import annotations

import copy
import math
from array import array
from collections.abc import Container, Iterable, Mapping, Reversible, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.descriptions import (
    CapsDescription,
    Hardware,
    StudyDescription,
    TrialPlan,
    Versions,
    accelerators,
)
from nfnet_ray.tracking.epoch_metrics import Metrics, brief, images_per_second, packed
from nfnet_ray.tracking.events import (
    EpochEnded,
    Event,
    StudyEnded,
    StudyExtended,
    StudyResumed,
    StudyStarted,
    TrialEnded,
    TrialOutcome,
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

ENDED_FOR_GOOD: tuple[TrialOutcome, ...] = ("finished", "stopped", "diverged")
"""States in which a resumed study leaves a trial alone; a failed or interrupted one is run again."""
ENDED: tuple[TrialOutcome, ...] = (*ENDED_FOR_GOOD, "failed")
"""States of trials that have ended, for good or until the study is resumed."""
LOST: tuple[TrialOutcome, ...] = ("diverged", "failed")
"""States in which a trial ended without an accuracy that counts."""


@dataclass(frozen=True)
class Session:
    """What one driver ran on. None where the journal, of an earlier version, does not say."""

    hardware: Hardware | None
    versions: Versions | None
    places: int | None


@dataclass
class TrialProgress:
    """How far one trial is.

    Attributes:
        state: ``running``, ``paused`` at a rung, or the state in which it ended; None before it has started.
        reason: why it ended like that or may continue, None where there is nothing to say.
        attempts: how often it has been started.
        epochs: {epoch: its metrics}; of an epoch that was reported again, the later ones.
        correct_images: {epoch: which images were correct, as text}, of the epochs at which it finished or paused.
        clipping: {epoch: what AGC clipped since the record before, as text}, of at most 32 epochs.
        conditions: {epoch: under which conditions it was trained from that epoch on, as text}.
        sessions: numbers of the drivers (:attr:`StudyState.sessions`) under which its epochs were trained.
        lanes: how many trials its latest start was of, as one program; 1 if it was started alone.
        reused: whether the workers of its latest start had trained another trial before; None where the journal does
            not say.
        outcome: the state in which it ended last, which it keeps when it is started again.
        paused: {rung: the epoch at which the trial paused there}; a rung is an epoch, or seconds of training.
        promoted: {rung: why the trial continues after it}.
        accelerator_seconds: for which it held accelerators (a worker without GPUs counts as one), in all attempts up
            to ``held_since``.
        accelerators: how many it holds now, 0 while it does not run.
        held_since: Unix seconds since when it has held them.
    """

    name: str
    state: TrialOutcome | str | None = None
    reason: str | None = None
    attempts: int = 0
    epochs: Mapping[int, Metrics] = field(default_factory=dict)
    correct_images: dict[int, str] = field(default_factory=dict)
    clipping: dict[int, str] = field(default_factory=dict)
    conditions: dict[int, str] = field(default_factory=dict)
    sessions: list[int] = field(default_factory=list)
    lanes: int = 1
    reused: bool | None = None
    outcome: TrialOutcome | None = None
    paused: dict[float, int] = field(default_factory=dict)
    promoted: dict[float, str] = field(default_factory=dict)
    accelerator_seconds: float = 0.0
    accelerators: float = 0.0
    held_since: float = 0.0

    def hold(self, accelerators: float, now: float) -> None:
        """Note that from ``now`` on (Unix seconds) it holds this number of accelerators."""
        self.accelerator_seconds = self.accelerator_seconds_at(now)
        self.accelerators, self.held_since = accelerators, now

    def accelerator_seconds_at(self, now: float) -> float:
        """Accelerator-seconds of all attempts up to ``now``, in Unix seconds."""
        return self.accelerator_seconds + self.accelerators * max(0.0, now - self.held_since)

    def add_epoch(self, event: EpochEnded) -> None:
        """Take in an epoch that has been reported, perhaps again."""
        epoch = event["epoch"]
        # That of an ended trial, which an extension may continue, cannot be changed.
        epochs = self.epochs if isinstance(self.epochs, dict) else dict(self.epochs)
        epochs[epoch] = packed(event["metrics"])
        self.epochs = epochs
        told = cast(Mapping[str, Any], event)
        for name, texts in self._texts.items():
            if told.get(name) is not None:
                texts[epoch] = told[name]
            else:  # an epoch that came out differently when it was trained again
                texts.pop(epoch, None)

    def forget_details(self) -> None:
        """Keep what a driver needs of a trial that has ended: texts and all metrics of its last epoch alone."""
        epoch = self.epoch
        self.epochs = brief(self.epochs)
        self.correct_images = {at: text for at, text in self.correct_images.items() if at == epoch}
        self.clipping = {at: text for at, text in self.clipping.items() if at == epoch}

    @property
    def epoch(self) -> int:
        """The last epoch that was reported, 0 before the first."""
        return next(reversed(cast(Reversible[int], self.epochs)), 0)  # they are reported in order

    def texts_of(self, epoch: int) -> dict[str, str]:
        """Those of :data:`nfnet_ray.tracking.events.EPOCH_TEXTS` that are known of an epoch."""
        return {name: texts[epoch] for name, texts in self._texts.items() if epoch in texts}

    @property
    def _texts(self) -> dict[str, dict[int, str]]:
        return {
            "correct_images": self.correct_images,
            "clipping": self.clipping,
            "conditions": self.conditions,
        }

    def last(self, metric: str) -> float | None:
        """A metric of the last epoch, None where there is none."""
        return self.epochs[self.epoch].get(metric) if self.epochs else None

    @property
    def images_per_second(self) -> float | None:
        """Training images of all its epochs per second of training, None before the first epoch."""
        number = self.epoch
        return images_per_second(number, self.epochs[number], self.epochs.get(number - 1)) if number else None


class StudyState:
    """The state of a study, built up from the events of its journal one by one.

    Attributes:
        started: the journal's first event, None before it; of a study that was extended, with what has changed.
        ended: the event of the driver that was the last to leave in good order; None while one is at work, or after
            it was killed.
        changed: {field: value} of the Recipe, as those who resumed the study have changed it.
        caps: what may be spent, and the price of an accelerator-hour, as they were given last.
        extensions: the commands that have extended the study, in that order.
        sessions: what each driver ran on, the first one and those that resumed the study.
        trials: {name: progress}, in the order of the plan; those that were proposed later follow, and then those that
            an extension has left out.
        plans: {name: plan} of the same trials, once the journal has begun.
        proposals: {name: number of its setting} of the trials that were proposed while the study ran, since it was
            started or last extended.
        further: {name: plan} of all further trials of contenders, which are in ``trials`` and not in ``plans``.
        repeating: the names of those that are part of the study now.
        dropped: {trial of a setting that is no contender: why}.
        has_contenders: whether the contenders have been chosen since a setting was trained, or the study extended,
            last.
        reruns: {name: plan} of all reruns of a winner, which are in ``trials`` and not in ``plans``.
        confirming: the names of those that confirm a winner now; others are of an earlier winner.
        has_winners: whether the winners have been chosen since a setting was trained, or the study extended, last.
        forms: {shape of a step: the choice of the form in which all trials of that shape are trained}.
        notes: what people have said about the study, in that order.
        tags: {key: value} that people have given it.
        last_event_time: Unix seconds of the latest event, 0 before the first.
        journal_bytes: how much of the journal :meth:`read` has taken in; 0 if it was not read, or only its last epochs.
        latest: the trial that the latest event but for signs of life is about; None if it is about the study.
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
        # First and last event of a driver that has not left in good order.
        self._session: tuple[float, float] | None = None
        # {epoch: (trials, their validation top-1)}, as they were first reported.
        self._reported: dict[int, tuple[list[str], array[float]]] = {}
        self._forgets = False
        self._places = Places()

    @staticmethod
    def read(directory: Path, *, last_epochs_only: bool = False) -> tuple[StudyState, StudyStarted]:
        """The state of the study whose results are in ``directory``, and how it was started.

        ``last_epochs_only`` takes a fraction of the time; trials then have not all of their epochs, but the last one.

        Raises:
            UserError: there is no journal, it is damaged, it does not begin with ``study_started``, or it has events
                that do not fit each other.
        """
        journal, state = directory / JOURNAL_FILE, StudyState()
        if not journal.exists():
            raise UserError(f"{directory}: no study is here; --resume and --extend take the name of one")
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

    @property
    def versions(self) -> list[str]:
        """The versions of nfnet_ray that have written the journal, as far as it says."""
        told = (session.versions for session in self.sessions)
        return [str(versions["nfnet_ray"]) for versions in told if versions and "nfnet_ray" in versions]

    def copy(self) -> StudyState:
        """The same state, on which events can be tried. The metrics of epochs are shared with it."""
        copied = copy.copy(self)
        copied.trials = {name: copy.copy(trial) for name, trial in self.trials.items()}
        for trial in copied.trials.values():
            trial.promoted = dict(trial.promoted)
            trial.paused = dict(trial.paused)
        copied._places = copy.deepcopy(self._places)
        copied.extensions = list(self.extensions)
        return copied

    def apply(self, event: Event) -> None:
        """Take in the next event of the journal. Kinds of events that this version does not know change nothing."""
        if event["event"] == "study_annotated":  # by a person, at any time: no driver was at work until then
            self.notes += event["notes"]
            self.tags |= event["tags"]
            return
        if event["event"] == "study_extended":  # a driver has just said that it resumes the study
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
                # New dictionaries: others may be walking through these, in the thread that draws the table.
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
        held = self.trials.get(str(event.get("trial")))
        if event["event"] != "at_work":  # it changes nothing, and comes from another thread
            self.latest = held
        if held is not None and held.state != "running" and held.accelerators:
            held.hold(0.0, self.last_event_time)
        if event["event"] not in ("epoch", "at_work"):
            self._watch_places(event, held, before)

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
                # Of what a cohort holds, each of its trials has an equal part.
                trial.hold(self._accelerators(event.get("workers")) / trial.lanes, self.last_event_time)
            case "trial_paused":
                trial.state = "paused"
                trial.paused[event.get("rung", event["epoch"])] = event["epoch"]
            case "trial_promoted":
                trial.promoted[event.get("rung", event["epoch"])] = event["reason"]
                trial.reason = promotion_in_words(event)
            case "epoch":
                if event["epoch"] not in trial.epochs:  # journals of earlier versions have some twice
                    top1 = event["metrics"].get(METRIC) or 0.0
                    names, values = self._reported.setdefault(event["epoch"], ([], array("d")))
                    names.append(trial.name)  # and not the event's own copy of it
                    values.append(top1)
                trial.add_epoch(event)
                if trial.sessions[-1:] != [len(self.sessions) - 1]:
                    trial.sessions = [*trial.sessions, len(self.sessions) - 1]
            case "trial_ended":
                trial.state, trial.reason = event["state"], event["reason"]
                trial.outcome = event["state"]
                if self._forgets and trial.state in ENDED_FOR_GOOD:
                    trial.forget_details()

    def _begin_session(self, event: StudyStarted | StudyResumed) -> None:
        """A driver begins."""
        self._wall_seconds_before = self.wall_seconds
        self._release(self._session[1] if self._session else event["time"])  # of a driver that was killed
        self._session = (event["time"], event["time"])
        told: Mapping[str, Any] = (
            event if event["event"] == "study_resumed" else cast(Mapping[str, Any], event).get("study", {})
        )
        session = Session(told.get("hardware"), told.get("versions"), told.get("places"))
        self.sessions = [*self.sessions, session]

    def _watch_places(self, event: Event, trial: TrialProgress | None, before: float) -> None:
        """Take in what the places do from now on; ``before`` is the time of the event before this one."""
        now = self.last_event_time
        if event["event"] in ("study_started", "study_resumed"):
            self._places.end(before)  # of a driver that was killed
            for known in self.members:
                self._places.note(known.name, _activity(known, resumed=True))
            described: Mapping[str, Any] = event if event["event"] == "study_resumed" else self._study
            self._places.begin(now, described.get("places"), self._accelerators(), self._planned_trials())
        elif event["event"] == "study_extended":
            for known in self.members:
                self._places.note(known.name, _activity(known))
        elif event["event"] == "study_ended":
            self._places.end(now)
        elif trial is not None:
            self._places.pass_time(now)
            self._places.note(trial.name, _activity(trial), 1 / trial.lanes)

    def idle_time(self, now: float | None = None) -> IdleTime | None:
        """For how long accelerators were idle up to ``now`` (Unix seconds), or else up to the last event.

        None of a journal of an earlier version, which does not say how many places there were.
        """
        startup = math.fsum(
            (trial.last("startup_seconds") or 0.0) + (trial.last("warmup_seconds") or 0.0)
            for trial in list(self.trials.values())
        )
        return self._places.idle_time(self.last_event_time if now is None else now, startup)

    def _extend(self, event: StudyExtended) -> None:
        """Takes in an extension. The same one twice is as good as once."""
        assert self.started is not None
        earlier = self._study["recipe"]
        self.started = with_extension(self.started, event)
        # Plans say what differs from the study's Recipe, which has changed.
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
            self._places.note(trial.name, "over" if is_over else _activity(trial, resumed=True))
        self._places.plan(self._planned_trials())
        if not self.extensions or self.extensions[-1] != event["command"]:
            self.extensions.append(event["command"])

    def _add_trials(self, added: Mapping[str, TrialPlan], now: Container[str]) -> None:
        """Takes in trials that the study has added: those that are part of it ``now``, and others that were before."""
        new = {name: TrialProgress(name) for name in added if name not in self.trials}
        self.trials = {**self.trials, **new}
        for name in added:
            is_part = name in now
            self._places.note(name, _activity(self.trials[name], resumed=True) if is_part else "over")
        self._places.plan(self._planned_trials())

    def _drop(self, dropped: Mapping[str, str]) -> None:
        """Takes in which settings are dropped, by the trials of their first seed; others are not any more."""
        for name in self.dropped:
            self.trials[name].reason = None
        self.dropped = dict(dropped)
        for name, why in dropped.items():
            self.trials[name].reason = why

    def _planned_trials(self) -> int:
        """How many trials there may be in the end, with those that a search proposes and the study adds."""
        planned = planned_trials(self._study)
        # Two contenders at least for each winner (nfnet_ray/study/contenders.py).
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

    def _accelerators(self, workers: int | None = None) -> float:
        """What ``workers`` of the study hold, by default those of a trial."""
        worker = self._study.get("worker", {})
        return accelerators(workers or worker.get("workers", 1), float(worker.get("gpus", 0)))

    @property
    def _study(self) -> Mapping[str, Any]:
        """The study as its first event describes it, as far as it does."""
        return cast(Mapping[str, Any], self.started).get("study", {}) if self.started else {}

    def _release(self, now: float) -> None:
        """Note that no trial holds anything any more."""
        for trial in self.trials.values():
            if trial.accelerators:
                trial.hold(0.0, now)

    @property
    def wall_seconds(self) -> float:
        """Time for which drivers were at work; of one that was killed, up to its last event."""
        first, last = self._session or (0.0, 0.0)
        return self._wall_seconds_before + (last - first)

    def wall_seconds_at(self, now: float) -> float:
        """The same up to ``now``, in Unix seconds, with a driver that is at work since the last event."""
        _, last = self._session or (0.0, now)
        return self.wall_seconds + max(0.0, now - last)

    def accelerator_seconds_at(self, now: float) -> float:
        """Accelerator-seconds of all trials and all their attempts up to ``now``, in Unix seconds.

        Without a driver at work, they end with its last event.
        """
        return math.fsum(trial.accelerator_seconds_at(now) for trial in list(self.trials.values()))

    @property
    def accelerator_seconds(self) -> float:
        """Accelerator-seconds up to the last event."""
        return self.accelerator_seconds_at(self._session[1] if self._session else 0.0)

    @property
    def outside(self) -> Set[str]:
        """Names of the trials that nobody trains any more, whose results stay as evidence.

        They are those that an extension has left out, with further seeds and reruns of settings that were contenders or
        winners before it.
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
        """Names of the trials that still have something to do."""
        return [trial.name for trial in self.members if trial.state not in ENDED_FOR_GOOD]

    def reported_at(self, epoch: int) -> list[tuple[str, float]]:
        """(trial, validation top-1) of an epoch in the order of their first reports, for the median rule."""
        return list(zip(*self._reported.get(epoch, ((), ())), strict=True))

    def forget_details(self) -> None:
        """From now on keep of trials that have ended what a driver needs, a few hundred bytes instead of 30 kB each.

        Decisions, the table, MLflow and the choice of winners need no more; the report reads the journal.
        """
        self._forgets = True
        for trial in self.trials.values():
            if trial.state in ENDED_FOR_GOOD:
                trial.forget_details()


def _with_values(plans: Mapping[str, TrialPlan], values: Mapping[str, Any]) -> dict[str, TrialPlan]:
    """The plans with values of the Recipe where they have none of their own."""
    return {name: {**plan, "recipe": {**values, **plan["recipe"]}} for name, plan in plans.items()}


def _activity(
    trial: TrialProgress, *, resumed: bool = False
) -> Literal["running", "ready", "undecided", "over"]:
    """What a trial does, or waits for; one that was interrupted or failed is run again when a study is ``resumed``."""
    if trial.state == "running" and not resumed:
        return "running"
    if trial.state == "paused":
        rung = next(reversed(trial.paused), trial.epoch)
        return "ready" if rung in trial.promoted else "undecided"
    if trial.state is None or (resumed and trial.state not in ENDED_FOR_GOOD):
        return "ready"
    return "over"


class JournalReader:
    """The state of a study after any line of its journal. From one line to a later one, only what is between is read.

    It forgets details of trials that have ended (:meth:`StudyState.forget_details`). Not thread-safe.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._begin()

    def _begin(self) -> None:
        self._state, self._end = StudyState(), 0
        self._state.forget_details()

    def state_at(self, end: int) -> StudyState:
        """The state after the line that ends at byte ``end``; valid until the next call.

        Raises UserError if the journal is damaged.
        """
        if end < self._end:  # an event that is written again
            self._begin()
        if end > self._end:
            for event, at in read_events(self._journal, self._end):
                self._state.apply(event)
                self._end = at
                if at >= end:
                    break
        return self._state
