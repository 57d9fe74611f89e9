"""How much longer a study takes: from what its epochs have taken so far, and what halving may still stop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

from nfnet_ray.metric import METRIC
from nfnet_ray.study.plan import least_epochs, next_rung
from nfnet_ray.study.study import Halving, Study
from nfnet_ray.tracking.state import StudyState, TrialProgress
from nfnet_ray.wording import clock_time

ENDED = ("finished", "stopped", "diverged", "failed")
# The phases of the clock that each epoch has (docs/time.md). Start-up and warm-up come once in a trial, and what was
# lost or paused says nothing of what is to come.
_PHASES = ("train_seconds", "data_wait_seconds", "eval_seconds", "checkpoint_seconds", "report_seconds")
# Few enough to follow a machine that becomes faster or slower, and enough that one slow epoch is no matter: of 8, 16,
# 32 and all epochs 16 came nearest to the truth in two studies on a machine whose load changed tenfold.
_RECENT_EPOCHS = 16
# A trial that ends leaves its slot empty until Ray has started the next one.
_SLOTS_SECONDS = 30.0


class TimeLeft:
    """Seconds that a study still takes, once an epoch has been reported to this process.

    The pace is that of the last epochs, in seconds for each unit of work. Start-up is not part of it; a trial that
    waits is given the start-up of those that came after the first ones, which start their workers' processes. As many
    trials run side by side as did in the last half minute.

    Args:
        work: {trial: arithmetic of one of its epochs}, in any unit.
    """

    def __init__(self, study: Study, progress: StudyState, work: Mapping[str, float]) -> None:
        self._study, self._progress, self._work = study, progress, work
        self._strata: dict[str, list[str]] = {}
        for trial in study.trials():
            self._strata.setdefault(trial.stratum, []).append(trial.name)
        self._known = {name: trial.epoch for name, trial in progress.trials.items()}
        self._first: set[str] = set()
        self._epochs: deque[tuple[float, float]] = deque(maxlen=_RECENT_EPOCHS)
        self._startups: deque[float] = deque(maxlen=_RECENT_EPOCHS)
        self._running: deque[tuple[float, int]] = deque()

    def observe(self, now: float) -> None:
        """Takes in what has changed in the progress; ``now`` is in seconds since any fixed time."""
        for name, trial in self._progress.trials.items():
            if trial.state == "running" and not self._epochs:
                self._first.add(name)
            before = self._known[name]
            if trial.epoch > before:
                seconds = _seconds(trial, trial.epoch) - _seconds(trial, before)
                self._epochs.append((seconds, (trial.epoch - before) * self._work[name]))
                if not before and name not in self._first:
                    self._startups.append(trial.epochs[trial.epoch].get("startup_seconds") or 0.0)
                self._known[name] = trial.epoch
        self._running.append((now, sum(trial.state == "running" for trial in self._progress.trials.values())))
        while self._running[0][0] < now - _SLOTS_SECONDS:
            self._running.popleft()

    def seconds(self, epochs_done: Callable[[TrialProgress], float]) -> tuple[float, float] | None:
        """(least, most), or None before an epoch is done. ``epochs_done`` may count fractions of an epoch.

        Least: if halving stops all that it may, as a plan says it. Most: if of the trials that are left it stops
        none but those that are behind their rivals now.
        """
        work = sum(amount for _, amount in self._epochs)
        if not work:
            return None
        pace = sum(seconds for seconds, _ in self._epochs) / work
        startup = sum(self._startups) / len(self._startups) if self._startups else 0.0
        halving, epochs = self._study.halving, self._study.epochs
        least, most = [], []
        for names in self._strata.values():
            # Of those that are equally far, halving lets the better ones through.
            rivals = sorted((self._progress.trials[name] for name in names), key=_last_top1)
            done = [epochs_done(rival) for rival in rivals]
            targets = least_epochs(done, [rival.state in ENDED for rival in rivals], halving, epochs)
            for trial, behind_it, target in zip(rivals, done, targets, strict=True):
                if trial.state in ENDED:
                    continue
                begin = 0.0 if trial.state == "running" else startup
                is_behind = halving is not None and _is_behind(trial, rivals, halving)
                furthest = next_rung(behind_it, halving, epochs) if is_behind else epochs
                an_epoch = pace * self._work[trial.name]
                least.append(begin + an_epoch * (target - behind_it))
                most.append(begin + an_epoch * (max(target, furthest) - behind_it))
        slots = max(1, *(count for _, count in self._running))
        return _makespan(least, slots), _makespan(most, slots)

    def sentence(self, epochs_done: Callable[[TrialProgress], float]) -> str:
        """``1:10 to 2:25 left``, ``about 2:25 left`` where nothing is stopped early; empty before an epoch is done."""
        seconds = self.seconds(epochs_done)
        if seconds is None:
            return ""
        least, most = map(clock_time, seconds)
        return f"about {most} left" if least == most else f"{least} to {most} left"


def _seconds(trial: TrialProgress, epoch: int) -> float:
    metrics = trial.epochs.get(epoch, {})
    return math.fsum(metrics.get(phase) or 0.0 for phase in _PHASES)


def _last_top1(trial: TrialProgress) -> float:
    return trial.last(METRIC) or 0.0


def _is_behind(trial: TrialProgress, rivals: list[TrialProgress], halving: Halving) -> bool:
    """Whether a rung at the trial's last epoch would stop it, by what its rivals had reached at that epoch."""
    if not trial.epochs:
        return False
    reached = sorted(
        rival.epochs[trial.epoch].get(METRIC) or 0.0 for rival in rivals if trial.epoch in rival.epochs
    )
    # The quantile that Ray's ASHA compares with, linear between two trials.
    place = (1 - 1 / halving.reduction_factor) * (len(reached) - 1)
    low, high = reached[math.floor(place)], reached[math.ceil(place)]
    return _last_top1(trial) < low + (high - low) * (place - math.floor(place))


def _makespan(seconds: list[float], slots: int) -> float:
    """Of that many jobs side by side: no less than the longest of them."""
    return max(sum(seconds) / slots, max(seconds, default=0.0))
