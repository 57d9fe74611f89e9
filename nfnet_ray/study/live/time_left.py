"""Estimates how much longer a study takes, from the pace of its epochs and the trials that halving may still stop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from nfnet_ray.metric import METRIC
from nfnet_ray.study.cost.plan import (
    further_names,
    ladder_in_epochs,
    least_epochs,
    longest,
    makespan,
    next_rung,
    rerun_group,
)
from nfnet_ray.study.decisions import Group, groups
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import ENDED, TrialProgress
from nfnet_ray.wording import clock_time

# The phases of the clock that occur in each epoch (docs/time.md). Start-up and warm-up happen once in a trial, and lost
# or paused time has no predictive value.
_PHASES = ("train_seconds", "data_wait_seconds", "eval_seconds", "checkpoint_seconds", "report_seconds")
# A compromise between following a machine whose speed changes and averaging out single slow epochs. Of 8, 16, 32 and
# all epochs, 16 gave the best estimates in two studies on a machine whose load changed tenfold.
_RECENT_EPOCHS = 16
# When a trial ends, its place stays empty until Ray has started the next trial.
_PLACES_SECONDS = 30.0


class TimeLeft:
    """Estimates the remaining seconds of a study, from the first epoch that is reported to this process.

    The pace is that of the last epochs, in seconds per unit of work, without start-up. For each waiting trial, the mean
    start-up of earlier trials is added. The first trials are excluded from this mean, and so are trials whose workers
    were new according to the journal, because their start-up includes that of their workers' processes. The number of
    trials that run side by side is the highest of the last half minute.

    Args:
        work: {trial: arithmetic of one of its epochs}, in any unit.
    """

    def __init__(self, study: Study, state: StudyState, work: Mapping[str, float]) -> None:
        self._study, self._state, self._work = study, state, work
        self._mean_work = sum(work.values()) / max(1, len(work))
        self._regroup()
        self._known = {name: trial.epoch for name, trial in state.trials.items()}
        self._first: set[str] = set()
        self._epochs: deque[tuple[float, float]] = deque(maxlen=_RECENT_EPOCHS)
        self._startups: deque[float] = deque(maxlen=_RECENT_EPOCHS)
        self._running: deque[tuple[float, int]] = deque()
        self._running_now: set[str] = set()
        self._proposed = 0
        self._had = (state.has_contenders, state.has_winners)

    def observe(self, now: float, changed: Iterable[TrialProgress] | None = None) -> None:
        """Updates the estimate from the study's state; ``now`` is in seconds since any fixed time.

        ``changed`` are the trials that may have changed since the last call; None: all trials.
        """
        has = (self._state.has_contenders, self._state.has_winners)
        if (len(self._state.proposals), has) != (self._proposed, self._had):
            self._proposed, self._had = len(self._state.proposals), has
            self._study = self._study.grown(self._state)
            self._regroup()
        for trial in self._state.trials.values() if changed is None else changed:
            name = trial.name
            if trial.state != "running":
                self._running_now.discard(name)
            else:
                self._running_now.add(name)
                if not self._epochs:
                    self._first.add(name)
            before = self._known.get(name, 0)
            if trial.epoch > before:
                seconds = _seconds(trial, trial.epoch) - _seconds(trial, before)
                self._epochs.append((seconds, (trial.epoch - before) * self._work_of(name)))
                if not before and name not in self._first and trial.reused is not False:
                    self._startups.append(trial.epochs[trial.epoch].get("startup_seconds") or 0.0)
                self._known[name] = trial.epoch
        self._running.append((now, len(self._running_now)))
        while self._running[0][0] < now - _PLACES_SECONDS:
            self._running.popleft()

    def seconds(self, epochs_done: Callable[[TrialProgress], float]) -> tuple[float, float] | None:
        """Returns (least, most) seconds; None before the first epoch. ``epochs_done`` may return fractions of an epoch.

        The least assumes that early stopping ends as many trials as it can. If the number is not certain in advance,
        the most assumes that early stopping ends only those of the remaining trials that are currently behind.
        """
        work = sum(amount for _, amount in self._epochs)
        if not work:
            return None
        pace = sum(seconds for seconds, _ in self._epochs) / work
        startup = sum(self._startups) / len(self._startups) if self._startups else 0.0
        halving = self._study.halving
        may_continue = halving is not None and not halving.is_certain
        least, most = [], []
        for group in self._groups:
            # Among trials that have trained equally far, halving lets the better ones continue.
            rivals = sorted(map(self._progress_of, group.trials), key=_last_top1)
            done = [epochs_done(rival) for rival in rivals]
            ladder = ladder_in_epochs(group, _epoch_train_seconds(rivals) if group.in_seconds else None)
            epochs = group.end
            targets = least_epochs(done, [rival.state in ENDED for rival in rivals], ladder, epochs)
            for trial, behind_it, target in zip(rivals, done, targets, strict=True):
                if trial.state in ENDED:
                    continue
                begin = 0.0 if trial.state == "running" else startup
                is_behind = not may_continue or _is_behind(trial, rivals, ladder)
                furthest = next_rung(behind_it, ladder, epochs) if is_behind else epochs
                an_epoch = pace * self._work_of(trial.name)
                if trial.name not in self._possible:
                    least.append(begin + an_epoch * (target - behind_it))
                most.append(begin + an_epoch * (max(target, furthest) - behind_it))
        places = max(1, *(count for _, count in self._running))
        return makespan(least, places), makespan(most, places)

    def _regroup(self) -> None:
        certain, self._possible = further_names(self._study, self._state)
        further = Group((*certain, *self._possible), (), longest(self._study))
        self._groups = [*groups(self._study), further, rerun_group(self._study, self._state)]

    def _progress_of(self, name: str) -> TrialProgress:
        """Returns a trial's progress, even if the search has yet to propose the trial."""
        return self._state.trials.get(name) or TrialProgress(name)

    def _work_of(self, name: str) -> float:
        """Returns a trial's work per epoch; for a trial that was not planned, the mean of the planned trials."""
        return self._work.get(name, self._mean_work)

    def sentence(self, epochs_done: Callable[[TrialProgress], float]) -> str:
        """Formats the time left: ``1:10 to 2:25 left``, without halving ``about 2:25 left``; empty before an epoch."""
        seconds = self.seconds(epochs_done)
        if seconds is None:
            return ""
        least, most = map(clock_time, seconds)
        return f"about {most} left" if least == most else f"{least} to {most} left"


def _seconds(trial: TrialProgress, epoch: int) -> float:
    metrics = trial.epochs.get(epoch, {})
    return math.fsum(metrics.get(phase) or 0.0 for phase in _PHASES)


def _epoch_train_seconds(trials: Iterable[TrialProgress]) -> float:
    """Returns the mean training seconds of an epoch over trials; 0 before the first epoch."""
    seconds = [(trial.last("train_seconds") or 0.0) / trial.epoch for trial in trials if trial.epoch]
    return math.fsum(seconds) / len(seconds) if seconds else 0.0


def _last_top1(trial: TrialProgress) -> float:
    return trial.last(METRIC) or 0.0


def _is_behind(trial: TrialProgress, rivals: list[TrialProgress], ladder: Sequence[tuple[int, int]]) -> bool:
    """Whether a rung at the trial's last epoch would stop the trial, given its rivals' accuracies at that epoch."""
    kept = next((kept for rung, kept in ladder if rung >= trial.epoch), None)
    if not trial.epochs or kept is None:
        return False
    reached = [
        rival.epochs[trial.epoch].get(METRIC) or 0.0 for rival in rivals if trial.epoch in rival.epochs
    ]
    share = kept / len(rivals)
    return sum(top1 > _last_top1(trial) for top1 in reached) >= max(1.0, share * len(reached))
