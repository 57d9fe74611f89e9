"""Which trials of a study continue, which are given up, and which one trains next: functions of the journal alone.

A trial is trained in *legs*. A leg ends at a rung, where the trial pauses, or at the trial's end. No decision depends
on a clock or on what this process remembers, so whoever resumes a study decides as it would have been decided.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nfnet_ray.metric import METRIC
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.state import ENDED_FOR_GOOD, StudyState, TrialProgress
from nfnet_ray.wording import ordinal

OUT = -math.inf
"""The accuracy of a trial that diverged or failed before it reached a rung."""


@dataclass(frozen=True)
class Leg:
    """What a place trains next: a trial, from where it is to the end of epoch ``until``."""

    trial: str
    until: int


@dataclass(frozen=True)
class Decision:
    """What happens to a trial that has reached a rung. ``reason`` is for people."""

    trial: str
    epoch: int
    verdict: Literal["promoted", "given up"]
    reason: str


@dataclass(frozen=True)
class Group:
    """Trials that compete with each other, in the order of the plan, and the rungs at which they do."""

    trials: tuple[str, ...]
    ladder: tuple[tuple[int, int], ...]
    """(epoch, number of trials that continue), as :meth:`Halving.ladder` has it."""


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
                standing = _standing(group, level, state, again)
                for name in standing.accuracies:
                    trial = state.trials[name]
                    if name in running or _has_ended(trial, again):
                        continue
                    if rung not in trial.epochs or _is_past(trial, rung):
                        continue
                    decision = self._decide(standing, name, rung, kept, state)
                    if decision is not None:
                        found.append(decision)
        return found

    def next_leg(self, state: StudyState, running: Collection[str], again: Collection[str]) -> Leg | None:
        """The leg to train next; None if every trial has ended, is running, or waits for the others at a rung.

        Trials that go furthest come first: they take longest, and a study ends with them.
        """
        best: tuple[int, int, int] | None = None
        leg = None
        for name, number in self._order.items():
            trial = state.trials[name]
            if name in running or _has_ended(trial, again):
                continue
            until = self.target(name, trial)
            if self._waits_at(until, trial):
                continue
            rank = (-until, -min(trial.epoch, 1), number)
            if best is None or rank < best:
                best, leg = rank, Leg(name, until)
        return leg

    def target(self, name: str, trial: TrialProgress) -> int:
        """The epoch at which the trial's next leg ends: the first rung at which it was not promoted, or the last."""
        ladder = self._group[name].ladder
        return next((rung for rung, _ in ladder if not _is_past(trial, rung)), self._study.epochs)

    def unpaused(self, state: StudyState, again: Collection[str]) -> dict[str, int]:
        """{trial: rung} of those that have reached their rung while the journal does not say that they paused there.

        Their driver was stopped in between. Only for a driver that has started no leg yet.
        """
        return {
            name: until
            for name in self._order
            if not _has_ended(trial := state.trials[name], again)
            and self._waits_at(until := self.target(name, trial), trial)
            and trial.state != "paused"
        }

    def _waits_at(self, until: int, trial: TrialProgress) -> bool:
        """Whether a trial has come to the end of its leg, which is a rung, and waits for a decision."""
        return trial.epoch >= until and until < self._study.epochs

    def _decide(
        self, standing: Standing, name: str, rung: int, kept: int, state: StudyState
    ) -> Decision | None:
        halving = self._study.halving
        assert halving is not None
        if halving.rule == "median":
            return self._against_median(standing, name, rung, halving, state)
        mine = standing.accuracies[name]
        if halving.rule == "asynchronous" and standing.unknown:
            # Li et al. 2020, algorithm 2, get_job: the best 1 / eta of those that are there. Nobody is given up yet.
            quota = math.floor(len(standing.accuracies) / halving.eta)
            if standing.better_than(mine) < quota:
                return Decision(name, rung, "promoted", standing.in_words(name, so_far=True))
            return None
        better = standing.better_than(mine + noise(mine, self._images))
        if better + standing.unknown < kept:
            reason = standing.in_words(name)
            if standing.better_than(mine) >= kept:
                reason += f", within noise of the {ordinal(kept)}"
            return Decision(name, rung, "promoted", reason)
        if better >= kept:
            threshold = standing.sorted[-kept]
            at_least = "has at least" if standing.unknown else "had"
            return Decision(
                name,
                rung,
                "given up",
                f"{standing.in_words(name)}; the {ordinal(kept)} {at_least} {threshold:.1%}",
            )
        return None

    def _against_median(
        self, standing: Standing, name: str, rung: int, halving: Halving, state: StudyState
    ) -> Decision:
        """By the trials that reported this rung before it did, whatever has happened since."""
        before: list[float] = []
        for trial, epoch, top1 in state.reported_epochs():
            if trial == name and epoch == rung:
                break
            if epoch == rung and trial in standing.accuracies:
                before.append(top1)
        mine = standing.accuracies[name]
        if len(before) < halving.finalists:
            return Decision(
                name, rung, "promoted", f"{mine:.1%}, one of the first {halving.finalists} to be there"
            )
        before.sort()
        middle = len(before) // 2
        median = before[middle] if len(before) % 2 else (before[middle - 1] + before[middle]) / 2
        words = f"{mine:.1%}; the median of the {len(before)} before it is {median:.1%}"
        return Decision(name, rung, "promoted" if mine >= median else "given up", words)


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

    def in_words(self, name: str, *, so_far: bool = False) -> str:
        """``81.2%, 5th of 6``; while not all are there, ``5th or lower of 6``, or ``5th of the 6 so far``."""
        mine = self.accuracies[name]
        place, known = ordinal(1 + self.better_than(mine)), len(self.accuracies)
        if so_far:
            return f"{mine:.1%}, {place} of the {known} so far"
        return f"{mine:.1%}, {place}{' or lower' if self.unknown else ''} of {known + self.unknown}"


def groups(study: Study) -> list[Group]:
    """The groups of trials that compete with each other, stratum by stratum; without early stopping there is one.

    A trial that a search has yet to propose has its place, under a stand-in for its name: nobody knows yet what it
    reaches.
    """
    trials = [(trial.stratum, trial.name) for trial in study.trials()] + study.names_to_come()
    if study.halving is None:
        return [Group(tuple(name for _, name in trials), ())]
    halving, schedule = study.halving, study.recipe.schedule
    strata: dict[str, list[str]] = {}
    for stratum, name in trials:
        strata.setdefault(stratum, []).append(name)
    found = []
    for names in strata.values():
        size = study.cohort or len(names)
        for first in range(0, len(names), size):
            for bracket, dealt in enumerate(_dealt(names[first : first + size], halving, study)):
                ladder = halving.ladder(len(dealt), schedule, bracket)
                found.append(Group(tuple(dealt), tuple(ladder)))
    return found


def _dealt(names: Sequence[str], halving: Halving, study: Study) -> list[list[str]]:
    """The trials of a cohort in brackets, most in the one that starts earliest (Li et al. 2018, algorithm 1)."""
    brackets = halving.brackets(study.recipe.schedule)
    shares = [halving.eta**rungs / (rungs + 1) for rungs in range(brackets - 1, -1, -1)]
    dealt: list[list[str]] = [[] for _ in shares]
    for name in names:
        emptiest = min(range(brackets), key=lambda bracket: (len(dealt[bracket]) / shares[bracket], bracket))
        dealt[emptiest].append(name)
    return dealt


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
        takes_part = all(_is_past(trial, below) for below, _ in group.ladder[:level])
        if takes_part and rung in trial.epochs:
            accuracies[name] = _accuracy(trial, rung)
        elif not _has_ended(trial, again):
            unknown += 1
        elif takes_part:
            accuracies[name] = OUT
    return Standing(accuracies, unknown)


def _accuracy(trial: TrialProgress, epoch: int) -> float:
    value = trial.epochs[epoch].get(METRIC)
    return OUT if value is None or math.isnan(value) else value


def _is_past(trial: TrialProgress, rung: int) -> bool:
    """Whether a trial was promoted at a rung. Journals of earlier versions do not say so of a trial that continued."""
    return rung in trial.promoted or trial.epoch > rung


def _has_ended(trial: TrialProgress, again: Collection[str]) -> bool:
    return trial.state in ENDED_FOR_GOOD or (trial.state == "failed" and trial.name not in again)
