"""Decides which trials continue, which are given up, and which one trains next, from the journal alone.

A trial is trained in *legs*. A leg ends at a rung, where the trial pauses, or at the trial's end. No decision depends
on a clock or on the memory of this process, so a resumed study makes the decisions that the uninterrupted one would
have made. Rungs in seconds refer to the seconds of training that the journal records.

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
    """A part of a trial's training: from the trial's current epoch to the end of epoch ``until``, at the latest.

    Attributes:
        rung: the rung at which the trial pauses after the leg; None: the leg goes to the trial's end.
        until_seconds: the seconds of training after which the leg ends, at the end of the epoch in which they are
            reached.
        epochs_before: the epochs of the complete schedules that the trial has already trained.
        schedule_epochs: the length of the complete schedule that is trained; None: the Recipe's schedule is the only
            one.
    """

    trial: str
    until: int
    rung: float | None = None
    until_seconds: float | None = None
    epochs_before: int = 0
    schedule_epochs: int | None = None


@dataclass(frozen=True)
class Decision:
    """The decision on a trial that has reached a rung at the end of ``epoch``. ``reason`` is shown to people."""

    trial: str
    epoch: int
    rung: float
    verdict: Literal["promoted", "given up"]
    reason: str


@dataclass(frozen=True)
class Group:
    """A group of trials that compete with each other, in the order of the plan, and the rungs where they are compared.

    Attributes:
        ladder: (rung, number of trials that continue after this rung) for each rung.
        end: the number of epochs of a trial that is never given up, over all its schedules.
        schedules: the lengths of the complete schedules in epochs if they are stretched; else empty.
        in_seconds: whether the rungs are seconds of training.
    """

    trials: tuple[str, ...]
    ladder: tuple[tuple[float, int], ...]
    end: int
    schedules: tuple[int, ...] = ()
    in_seconds: bool = False

    def reached(self, trial: TrialProgress, rung: float) -> int | None:
        """Returns the epoch at whose end the trial reached a rung; None if the trial has not reached it (yet)."""
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
        """Returns the trial's next leg: to the first rung at which it was not promoted, or to the trial's end."""
        rung = next((rung for rung, _ in self.ladder if not self.is_past(trial, rung)), None)
        if self.in_seconds:
            return Leg(trial.name, self.end, rung, until_seconds=rung)
        until = self.end if rung is None else int(rung)
        if not self.schedules:
            return Leg(trial.name, until, rung)
        before, length = self.schedule_of(until)
        return Leg(trial.name, until, rung, epochs_before=before, schedule_epochs=length)

    def schedule_of(self, epoch: int) -> tuple[int, int]:
        """Returns (epochs before it, length) of the complete schedule to which an epoch belongs."""
        ends = list(itertools.accumulate(self.schedules))
        number = bisect_left(ends, epoch)
        return ends[number] - self.schedules[number], self.schedules[number]

    def where(self, rung: float, epoch: int) -> str:
        """Describes in words where a rung is, for a trial that reached it at the end of ``epoch``."""
        if self.in_seconds:
            return f"after {rung:.4g} s of training, at epoch {epoch}"
        if self.schedules:
            return f"after a schedule of {count(self.schedule_of(epoch)[1], 'epoch')}"
        return f"at epoch {epoch}"


class Decider:
    """Makes the decisions for one study.

    Args:
        validation_images: the number of images on which accuracies are measured, from which their noise is computed.
    """

    def __init__(self, study: Study, validation_images: int) -> None:
        self._study, self._images = study, validation_images
        self.groups = groups(study)
        self._group = {name: group for group in self.groups for name in group.trials}
        self._order = {trial.name: number for number, trial in enumerate(study.trials())}

    def decisions(
        self, state: StudyState, running: Collection[str], again: Collection[str]
    ) -> list[Decision]:
        """Returns the decisions that can be made now, on trials that are at a rung and not running.

        Args:
            running: trials of which a leg is running; decisions on them are made when the leg has ended.
            again: trials that failed in an earlier attempt and will be run again.
        """
        found = []
        for group in self.groups:
            for level, (rung, kept) in enumerate(group.ladder):
                at_rung = self._at_rung(group, rung, state, running, again)
                if not at_rung:  # true of most rungs most of the time; computing a standing takes long
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
        """Returns (trial, epoch at which it reached the rung) of the trials in a group that await a decision there."""
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
        """Returns the leg to train next; None if every trial has ended, is running, or waits for others at a rung.

        Trials with the furthest next rung come first: they take longest, so starting them late would prolong the study.
        """
        ready = self._ready(state, running, again)
        return min(ready, key=lambda ranked: ranked[0], default=(None, None))[1]

    def ready_legs(self, state: StudyState, running: Collection[str], again: Collection[str]) -> list[Leg]:
        """Returns all legs that can be trained now, in the order in which :meth:`next_leg` returns them."""
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
        """Whether a trial takes part in the comparisons, as the trials of the study's settings do."""
        return trial in self._group

    def leg(self, trial: TrialProgress) -> Leg:
        """Returns the next leg of a trial that has not ended."""
        return self._group[trial.name].leg(trial)

    def where(self, decision: Decision) -> str:
        """Describes in words where a decision was made."""
        return self._group[decision.trial].where(decision.rung, decision.epoch)

    def unpaused(
        self, state: StudyState, running: Collection[str], again: Collection[str]
    ) -> list[tuple[Leg, int]]:
        """Returns (leg, epoch) of trials that have reached their rung although the journal does not record the pause.

        The driver was stopped before it could record the pause, or the trial reached two rungs within one epoch.
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
        """Whether a trial has reached the rung at the end of its leg and waits for a decision."""
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
            # Li et al. 2020, algorithm 2, get_job: promote the best 1 / eta of the trials that are at the rung so far.
            # No trial is given up while others may still arrive.
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
        """Decides on a trial by the median of the trials that reported this rung before it, whatever became of them."""
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
    """The trials that have reached a rung, with their accuracies (fractions from 0 to 1, or ``OUT``).

    ``unknown`` is the number of trials that may still reach the rung.
    """

    accuracies: Mapping[str, float]
    unknown: int

    @functools.cached_property
    def sorted(self) -> list[float]:
        """The accuracies in ascending order."""
        return sorted(self.accuracies.values())

    def better_than(self, accuracy: float) -> int:
        """Returns the number of trials that are known to have a higher accuracy."""
        return len(self.sorted) - bisect_right(self.sorted, accuracy)

    def in_words(self, name: str, *, so_far: bool = False, at_worst: bool = False) -> str:
        """Describes a trial's rank, such as ``81.2%, 5th of 6``.

        While other trials may still reach the rung, the rank among those that have reached it is a bound: ``5th or
        lower of 6``. With ``at_worst`` all missing trials are assumed to be better: ``6th or higher of 6``. With
        ``so_far`` the missing trials are ignored: ``5th of the 5 so far``.
        """
        mine = self.accuracies[name]
        best, known = 1 + self.better_than(mine), len(self.accuracies)
        if so_far:
            return f"{mine:.1%}, {ordinal(best)} of the {known} so far"
        place = ordinal(best + self.unknown if at_worst else best)
        bound = f" or {'higher' if at_worst else 'lower'}" if self.unknown else ""
        return f"{mine:.1%}, {place}{bound} of {known + self.unknown}"


def groups(study: Study) -> list[Group]:
    """Returns the groups of trials that compete with each other, stratum by stratum.

    Without early stopping no trials compete, and there is one group for each number of epochs.

    A trial that a search has yet to propose is represented by a placeholder for its name, because its accuracy counts
    as unknown.
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
    """Raises RecipeError if a trial cannot train one of its complete schedules, e.g. if images cannot grow in it."""
    if study.halving is None or not study.halving.is_stretched:
        return
    recipes = {trial.name: trial.recipe for trial in study.trials()}
    for group in groups(study):
        for name, length in itertools.product(group.trials, group.schedules):
            if name in recipes:
                with_schedule_of(recipes[name], length)


def ends(study: Study) -> dict[str, int]:
    """Returns {trial: number of epochs that it trains if it is never given up, over all its schedules}."""
    return {name: group.end for group in groups(study) for name in group.trials}


def _dealt(names: Sequence[str], halving: Halving, study: Study) -> list[list[str]]:
    """Distributes a group's trials over brackets, most to the earliest one (Li et al. 2018, algorithm 1)."""
    brackets = halving.brackets(study.recipe.schedule)
    shares = [halving.eta**rungs / (rungs + 1) for rungs in range(brackets - 1, -1, -1)]
    dealt: list[list[str]] = [[] for _ in shares]
    for name in names:
        emptiest = min(range(brackets), key=lambda bracket: (len(dealt[bracket]) / shares[bracket], bracket))
        dealt[emptiest].append(name)
    return dealt


def most_epochs(study: Study) -> int:
    """Returns the largest number of epochs that a trial trains if it is never given up, over all its schedules."""
    if not study.has_budgets and (study.halving is None or not study.halving.is_stretched):
        return study.epochs
    return max(group.end for group in groups(study))


def noise(accuracy: float, images: int) -> float:
    """Returns the standard error of an accuracy (a fraction) that was measured on ``images`` images.

    .. math:: \\sqrt{p (1 - p) / n}

    Accuracies that differ by less than this count as equal. All trials are evaluated on the same images and share some
    of their errors, so the difference of two accuracies is less noisy than that of two independent measurements, by
    about this factor of :math:`\\sqrt 2`.
    """
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / images)


def _standing(group: Group, level: int, state: StudyState, again: Collection[str]) -> Standing:
    """Returns the standing at the rung of a level: who has reached it, and how many trials may still reach it."""
    accuracies: dict[str, float] = {}
    unknown = 0
    for name in group.trials:
        if name not in state.trials:  # the search has not proposed this trial yet
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
            # The trial has trained all its epochs in less time than the rung's, so its last accuracy counts at the
            # rung, too.
            accuracies[name] = _accuracy(trial, trial.epoch)
        elif takes_part:
            accuracies[name] = OUT
    return Standing(accuracies, unknown)


def _accuracy(trial: TrialProgress, epoch: int) -> float:
    value = trial.epochs[epoch].get(METRIC)
    return OUT if value is None or math.isnan(value) else value


def has_ended(trial: TrialProgress, again: Collection[str]) -> bool:
    """Whether a trial is not trained further in this attempt; ``again`` are failed trials that are run again."""
    return trial.state in ENDED_FOR_GOOD or (trial.state == "failed" and trial.name not in again)
