"""Which trials of a study continue, which are given up, and which one trains next: functions of the journal alone.

A trial is trained in *legs*. A leg ends at a rung, where the trial pauses, or at the trial's end. No decision depends
on a clock or on what this process remembers, so whoever resumes a study decides as it would have been decided. Where
rungs are in seconds, these are the seconds that the journal has.

A rung is an epoch or, where rungs are in time or money, seconds of the trial's training. With stretched schedules a
trial trains one complete schedule after the other, each from the initialisation, and epochs are counted over all of
them: schedules of 2, 6 and 8 epochs end at epochs 2, 8 and 16.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nfnet_ray.metric import METRIC
from nfnet_ray.study.halving import Halving, with_schedule_of
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED_FOR_GOOD, TrialProgress
from nfnet_ray.wording import count, ordinal

OUT = -math.inf
"""The accuracy of a trial that diverged or failed before it reached a rung."""


@dataclass(frozen=True)
class Leg:
    """A piece of a trial's training: from where the trial is to the end of epoch ``until``, at the latest.

    Attributes:
        rung: where the trial pauses after it; None: the leg goes to the trial's end.
        until_seconds: the seconds of training at which it ends: after the epoch in which the trial reaches them.
        epochs_before: the epochs of the complete schedules that the trial has behind it.
        schedule_epochs: the length of the complete schedule that is trained; None: the Recipe's own is the only one.
    """

    trial: str
    until: int
    rung: float | None = None
    until_seconds: float | None = None
    epochs_before: int = 0
    schedule_epochs: int | None = None


@dataclass(frozen=True)
class Decision:
    """The decision on a trial that has reached a rung at the end of ``epoch``. ``reason`` is for people."""

    trial: str
    epoch: int
    rung: float
    verdict: Literal["promoted", "given up"]
    reason: str


@dataclass(frozen=True)
class Group:
    """Trials that compete with each other, in the order of the plan, and the rungs at which they do.

    Attributes:
        ladder: (rung, number of trials that continue after it).
        end: the epochs of a trial that is never given up, over all its schedules.
        schedules: the lengths of the complete schedules, if they are stretched; else empty.
        in_seconds: whether the rungs are seconds of training.
    """

    trials: tuple[str, ...]
    ladder: tuple[tuple[float, int], ...]
    end: int
    schedules: tuple[int, ...] = ()
    in_seconds: bool = False

    def reached(self, trial: TrialProgress, rung: float) -> int | None:
        """The epoch at whose end the trial has reached a rung, None if it has not (yet)."""
        if not self.in_seconds:
            return int(rung) if rung in trial.epochs else None
        if rung in trial.paused:
            return trial.paused[rung]
        if (trial.last("train_seconds") or 0.0) < rung:
            return None
        return next(
            epoch for epoch, metrics in trial.epochs.items() if (metrics.get("train_seconds") or 0.0) >= rung
        )

    def is_past(self, trial: TrialProgress, rung: float) -> bool:
        """Whether the trial was promoted at a rung. Journals of earlier versions do not record promotions."""
        return rung in trial.promoted or (not self.in_seconds and trial.epoch > rung)

    def leg(self, trial: TrialProgress) -> Leg:
        """The trial's next leg: to the first rung at which it was not promoted, or to its end."""
        rung = next((rung for rung, _ in self.ladder if not self.is_past(trial, rung)), None)
        if self.in_seconds:
            return Leg(trial.name, self.end, rung, until_seconds=rung)
        until = self.end if rung is None else int(rung)
        if not self.schedules:
            return Leg(trial.name, until, rung)
        before, length = self.schedule_of(until)
        return Leg(trial.name, until, rung, epochs_before=before, schedule_epochs=length)

    def schedule_of(self, epoch: int) -> tuple[int, int]:
        """(epochs before it, length) of the complete schedule to which an epoch belongs."""
        ends = list(itertools.accumulate(self.schedules))
        number = bisect_left(ends, epoch)
        return ends[number] - self.schedules[number], self.schedules[number]

    def where(self, rung: float, epoch: int) -> str:
        """Where a rung is, in words, for a trial that reached it at the end of ``epoch``."""
        if self.in_seconds:
            return f"after {rung:.4g} s of training, at epoch {epoch}"
        if self.schedules:
            return f"after a schedule of {count(self.schedule_of(epoch)[1], 'epoch')}"
        return f"at epoch {epoch}"


class Decider:
    """Decides for one study.

    Args:
        validation_images: on how many images accuracies are measured, which says how noisy they are.
    """

    def __init__(self, study: Study, validation_images: int) -> None:
        self._study, self._images = study, validation_images
        self.groups = groups(study)
        self._group = {name: group for group in self.groups for name in group.trials}
        self._order = {trial.name: number for number, trial in enumerate(study.trials())}

    def decisions(
        self, state: StudyState, running: Collection[str], again: Collection[str]
    ) -> list[Decision]:
        """The decisions that the journal allows and does not have yet, of trials that are at a rung and not running.

        Args:
            running: trials of which a leg is running; they are decided on when it has ended.
            again: trials that failed in an earlier attempt and have yet to be run again.
        """
        found = []
        for group in self.groups:
            for level, (rung, kept) in enumerate(group.ladder):
                at_rung = self._at_rung(group, rung, state, running, again)
                if not at_rung:  # at most rungs most of the time; who stands where would be found for nobody
                    continue
                standing = _standing(group, level, state, again)
                for name, epoch in at_rung:
                    if name not in standing.accuracies:
                        continue
                    decision = self._decide(standing, name, rung, epoch, kept, state)
                    if decision is not None:
                        found.append(decision)
        return found

    def _at_rung(
        self,
        group: Group,
        rung: float,
        state: StudyState,
        running: Collection[str],
        again: Collection[str],
    ) -> list[tuple[str, int]]:
        """(trial, the epoch at which it reached the rung) of a group's trials that may have to be decided on there."""
        found = []
        for name in group.trials:
            trial = None if name in running else state.trials.get(name)
            if trial is None or has_ended(trial, again) or group.is_past(trial, rung):
                continue
            epoch = group.reached(trial, rung)
            if epoch is not None and epoch < group.end:
                found.append((name, epoch))
        return found

    def next_leg(self, state: StudyState, running: Collection[str], again: Collection[str]) -> Leg | None:
        """The leg to train next; None if every trial has ended, is running, or waits for the others at a rung.

        Trials that go furthest come first: they take longest, and a study ends with them.
        """
        ready = self._ready(state, running, again)
        return min(ready, key=lambda ranked: ranked[0], default=(None, None))[1]

    def ready_legs(self, state: StudyState, running: Collection[str], again: Collection[str]) -> list[Leg]:
        """All legs that can be trained now, in the order in which :meth:`next_leg` gives them."""
        return [leg for _, leg in sorted(self._ready(state, running, again), key=lambda ranked: ranked[0])]

    def _ready(
        self, state: StudyState, running: Collection[str], again: Collection[str]
    ) -> Iterator[tuple[tuple[float, int, int], Leg]]:
        for name, number in self._order.items():
            trial = state.trials[name]
            if name in running or has_ended(trial, again):
                continue
            leg = self.leg(trial)
            if self._waits_after(leg, trial):
                continue
            furthest = math.inf if leg.rung is None else leg.rung
            yield (-furthest, -min(trial.epoch, 1), number), leg

    def has(self, trial: str) -> bool:
        """Whether a trial is one of those that are compared: the trials of the study's settings."""
        return trial in self._group

    def leg(self, trial: TrialProgress) -> Leg:
        """The next leg of a trial that has not ended."""
        return self._group[trial.name].leg(trial)

    def where(self, decision: Decision) -> str:
        """Where a decision was made, in words."""
        return self._group[decision.trial].where(decision.rung, decision.epoch)

    def unpaused(
        self, state: StudyState, running: Collection[str], again: Collection[str]
    ) -> list[tuple[Leg, int]]:
        """(leg, epoch) of trials that have reached their rung while the journal does not say that they paused there.

        Their driver was stopped in between, or they reached the rung in the same epoch as the one before it.
        """
        found = []
        for name in self._order:
            trial = state.trials[name]
            if name in running or has_ended(trial, again):
                continue
            leg = self.leg(trial)
            if leg.rung not in trial.paused and self._waits_after(leg, trial):
                found.append((leg, trial.epoch))
        return found

    def _waits_after(self, leg: Leg, trial: TrialProgress) -> bool:
        """Whether a trial has come to the end of its leg, which is a rung, and waits for a decision."""
        group = self._group[leg.trial]
        return leg.rung is not None and trial.epoch < group.end and group.reached(trial, leg.rung) is not None

    def _decide(
        self, standing: Standing, name: str, rung: float, epoch: int, kept: int, state: StudyState
    ) -> Decision | None:
        halving = self._study.halving
        assert halving is not None
        if halving.rule == "median":
            return self._against_median(standing, name, epoch, halving, state)
        mine = standing.accuracies[name]
        if halving.rule == "asynchronous" and standing.unknown:
            # Li et al. 2020, algorithm 2, get_job: the best 1 / eta of those that are there. Nobody is given up yet.
            quota = math.floor(len(standing.accuracies) / halving.eta)
            if standing.better_than(mine) < quota:
                return Decision(name, epoch, rung, "promoted", standing.in_words(name, so_far=True))
            return None
        better = standing.better_than(mine + noise(mine, self._images))
        if better + standing.unknown < kept:
            reason = standing.in_words(name, at_worst=True)
            if standing.better_than(mine) + standing.unknown >= kept:
                reason += f", within noise of the {ordinal(kept)}"
            return Decision(name, epoch, rung, "promoted", reason)
        if better >= kept:
            threshold = standing.sorted[-kept]
            at_least = "has at least" if standing.unknown else "had"
            reason = f"{standing.in_words(name)}; the {ordinal(kept)} {at_least} {threshold:.1%}"
            return Decision(name, epoch, rung, "given up", reason)
        return None

    def _against_median(
        self, standing: Standing, name: str, rung: int, halving: Halving, state: StudyState
    ) -> Decision:
        """By the trials that reported this rung before it did, whatever has happened since."""
        before: list[float] = []
        for trial, top1 in state.reported_at(rung):
            if trial == name:
                break
            if trial in standing.accuracies:
                before.append(top1)
        mine = standing.accuracies[name]
        if len(before) < halving.finalists:
            reason = f"{mine:.1%}, one of the first {halving.finalists} to be there"
            return Decision(name, rung, rung, "promoted", reason)
        before.sort()
        middle = len(before) // 2
        median = before[middle] if len(before) % 2 else (before[middle - 1] + before[middle]) / 2
        words = f"{mine:.1%}; the median of the {len(before)} before it is {median:.1%}"
        return Decision(name, rung, rung, "promoted" if mine >= median else "given up", words)


@dataclass(frozen=True)
class Standing:
    """Who has reached a rung, and with which accuracy (a fraction from 0 to 1, or ``OUT``).

    ``unknown`` is the number of trials that may still reach it.
    """

    accuracies: Mapping[str, float]
    unknown: int

    @functools.cached_property
    def sorted(self) -> list[float]:
        """The accuracies, lowest first."""
        return sorted(self.accuracies.values())

    def better_than(self, accuracy: float) -> int:
        """The number of trials that are known to be better."""
        return len(self.sorted) - bisect_right(self.sorted, accuracy)

    def in_words(self, name: str, *, so_far: bool = False, at_worst: bool = False) -> str:
        """``81.2%, 5th of 6``.

        While not all are there it is ``5th or lower of 6``, by those that are; ``at_worst`` ``6th or higher of 6``, if
        all others are better; ``so_far`` ``5th of the 5 so far``.
        """
        mine = self.accuracies[name]
        best, known = 1 + self.better_than(mine), len(self.accuracies)
        if so_far:
            return f"{mine:.1%}, {ordinal(best)} of the {known} so far"
        place = ordinal(best + self.unknown if at_worst else best)
        bound = f" or {'higher' if at_worst else 'lower'}" if self.unknown else ""
        return f"{mine:.1%}, {place}{bound} of {known + self.unknown}"


def groups(study: Study) -> list[Group]:
    """The groups of trials that compete with each other, stratum by stratum.

    Without early stopping none competes, and there is a group for each number of epochs.

    A trial that a search has yet to propose has its place, under a stand-in for its name: nobody knows yet what it
    reaches.
    """
    if study.halving is None:
        by_end: dict[int, list[str]] = {}
        for trial in study.trials():
            by_end.setdefault(trial.recipe.schedule.epochs, []).append(trial.name)
        if to_come := study.names_to_come():
            by_end.setdefault(study.epochs, []).extend(name for _, name in to_come)
        return [Group(tuple(names), (), end) for end, names in by_end.items()]
    trials = [(trial.stratum, trial.name) for trial in study.trials()] + study.names_to_come()
    halving, schedule = study.halving, study.recipe.schedule
    strata: dict[str, list[str]] = {}
    for stratum, name in trials:
        strata.setdefault(stratum, []).append(name)
    found = []
    for names in strata.values():
        size = study.group_size or len(names)
        for first in range(0, len(names), size):
            for bracket, dealt in enumerate(_dealt(names[first : first + size], halving, study)):
                found.append(_group(dealt, halving.ladder(len(dealt), schedule, bracket), study, halving))
    return found


def _group(
    names: Sequence[str], ladder: Sequence[tuple[float, int]], study: Study, halving: Halving
) -> Group:
    if not halving.is_stretched:
        return Group(tuple(names), tuple(ladder), study.epochs, in_seconds=halving.in_seconds)
    schedules = (*(int(length) for length, _ in ladder), study.epochs)
    ends = itertools.accumulate(schedules)
    rungs = tuple((end, kept) for end, (_, kept) in zip(ends, ladder, strict=False))
    return Group(tuple(names), rungs, sum(schedules), schedules)


def check_schedules(study: Study) -> None:
    """Raises RecipeError if a trial cannot train one of its complete schedules, as when images cannot grow in it."""
    if study.halving is None or not study.halving.is_stretched:
        return
    recipes = {trial.name: trial.recipe for trial in study.trials()}
    for group in groups(study):
        for name, length in itertools.product(group.trials, group.schedules):
            if name in recipes:
                with_schedule_of(recipes[name], length)


def ends(study: Study) -> dict[str, int]:
    """{trial: the epochs that it trains if it is never given up, over all its schedules}."""
    return {name: group.end for group in groups(study) for name in group.trials}


def _dealt(names: Sequence[str], halving: Halving, study: Study) -> list[list[str]]:
    """One group's trials in brackets, most in the one that starts earliest (Li et al. 2018, algorithm 1)."""
    brackets = halving.brackets(study.recipe.schedule)
    shares = [halving.eta**rungs / (rungs + 1) for rungs in range(brackets - 1, -1, -1)]
    dealt: list[list[str]] = [[] for _ in shares]
    for name in names:
        emptiest = min(range(brackets), key=lambda bracket: (len(dealt[bracket]) / shares[bracket], bracket))
        dealt[emptiest].append(name)
    return dealt


def most_epochs(study: Study) -> int:
    """The epochs of a trial that is never given up, over all its schedules; the most where trials differ in that."""
    if not study.has_budgets and (study.halving is None or not study.halving.is_stretched):
        return study.epochs
    return max(group.end for group in groups(study))


def noise(accuracy: float, images: int) -> float:
    """The standard error of an accuracy (a fraction) that was measured on ``images`` images.

    .. math:: \\sqrt{p (1 - p) / n}

    Trials that are closer than this count as equal. They are measured on the same images and partly err on the same
    ones, so the difference of two is less noisy than that of independent measurements, by about this factor of
    :math:`\\sqrt 2`.
    """
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / images)


def _standing(group: Group, level: int, state: StudyState, again: Collection[str]) -> Standing:
    """Who has reached the rung of a level, and how many may still come."""
    accuracies: dict[str, float] = {}
    unknown = 0
    for name in group.trials:
        if name not in state.trials:  # it is yet to be proposed
            unknown += 1
            continue
        trial = state.trials[name]
        rung = group.ladder[level][0]
        takes_part = all(group.is_past(trial, below) for below, _ in group.ladder[:level])
        epoch = group.reached(trial, rung)
        if takes_part and epoch is not None:
            accuracies[name] = _accuracy(trial, epoch)
        elif not has_ended(trial, again):
            unknown += 1
        elif trial.state == "finished":
            # It has trained all its epochs in less time than the rung's, so it has that accuracy there too.
            accuracies[name] = _accuracy(trial, trial.epoch)
        elif takes_part:
            accuracies[name] = OUT
    return Standing(accuracies, unknown)


def _accuracy(trial: TrialProgress, epoch: int) -> float:
    value = trial.epochs[epoch].get(METRIC)
    return OUT if value is None or math.isnan(value) else value


def has_ended(trial: TrialProgress, again: Collection[str]) -> bool:
    """Whether a trial trains no more in this attempt; ``again`` are those that failed before and are run again."""
    return trial.state in ENDED_FOR_GOOD or (trial.state == "failed" and trial.name not in again)
