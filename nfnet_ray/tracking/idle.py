"""Computes how long the accelerators of a study were idle, and why, from its journal alone.

A study has a number of *places* for trials that run at once. A place is idle while no trial holds it, and while its
trial has not begun to train. This module imports nothing of the state, which feeds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nfnet_ray.wording import clock_time

_Activity = Literal["running", "ready", "undecided", "over"]


@dataclass(frozen=True)
class IdleTime:
    """The idle accelerator-seconds of a study, in all attempts, by what the places waited for.

    Attributes:
        starting: waiting for ready trials: for Ray to start them, and for their first batch.
        deciding: waiting for a decision: trials at a rung, or a search that needs the results of others.
        without_trial: waiting for nothing: the last trials ran, and no other trial was left.
        available: accelerator-seconds of all places while a driver was at work.
    """

    starting: float
    deciding: float
    without_trial: float
    available: float

    @property
    def seconds(self) -> float:
        """All idle accelerator-seconds."""
        return self.starting + self.deciding + self.without_trial

    @property
    def share(self) -> float:
        """Idle seconds as a fraction of the available ones."""
        return self.seconds / self.available if self.available else 0.0

    def sentence(self, accelerator: str) -> str:
        """Formats the idle time: ``12% of the GPU time was idle: 0:40 starting trials, 2:10 waiting for decisions``."""
        parts = [
            f"{clock_time(seconds)} {what}"
            for seconds, what in (
                (self.starting, "starting trials"),
                (self.deciding, "waiting for decisions"),
                (self.without_trial, "with no trial left"),
            )
            if round(seconds)
        ]
        why = f": {', '.join(parts)}" if parts else ""
        return f"{self.share:.0%} of the {accelerator} time was idle{why}"


class Places:
    """Tracks the places of a study, event by event. Times are Unix seconds.

    The cost of an event, except epochs and signs of life, does not depend on the number of trials.
    """

    def __init__(self) -> None:
        self._places: int | None = None
        self._accelerators = 1.0
        self._since: float | None = None
        self._activities: dict[str, tuple[_Activity, float]] = {}
        self._numbers = {"running": 0.0, "ready": 0.0, "undecided": 0.0, "over": 0.0}
        self._planned = 0
        self._free = {"starting": 0.0, "deciding": 0.0, "without_trial": 0.0}
        self._available = 0.0

    def begin(self, now: float, places: int | None, accelerators: float, planned: int) -> None:
        """Records that a driver begins, with ``places`` places (None: not in its journal) of some accelerators each.

        ``planned`` is the largest possible number of trials in the end.
        """
        self._places, self._accelerators, self._planned, self._since = places, accelerators, planned, now

    def plan(self, planned: int) -> None:
        """Updates the largest possible number of trials in the end, when a study is extended."""
        self._planned = planned

    def pass_time(self, now: float) -> None:
        """Records that nothing has changed up to ``now``."""
        if self._since is None or self._places is None:
            return
        for name, seconds in self._seconds_until(now).items():
            self._free[name] += seconds
        self._available += max(0.0, now - self._since) * self._places
        self._since = max(now, self._since)

    def end(self, now: float) -> None:
        """Records that the driver has ended, or was killed."""
        self.pass_time(now)
        self._since = None

    def note(self, trial: str, activity: _Activity, part: float = 1.0) -> None:
        """Records that a trial runs now, is ready to start, waits for a decision, or is over.

        ``part`` is the share of a place that a running trial holds: 1, unless the trial belongs to a cohort.
        """
        before = self._activities.get(trial)
        if before is not None:
            self._numbers[before[0]] -= before[1]
        self._activities[trial] = activity, part if activity == "running" else 1.0
        self._numbers[activity] += self._activities[trial][1]

    def idle_time(self, now: float, startup_seconds: float) -> IdleTime | None:
        """Returns the idle time up to ``now``; None if the journal does not contain the number of places.

        ``startup_seconds`` is the total time of all trials until their first batch.
        """
        if self._places is None:
            return None
        pending, elapsed = self._seconds_until(now), 0.0
        if self._since is not None:
            elapsed = max(0.0, now - self._since) * self._places
        free = {name: self._free[name] + pending[name] for name in self._free}
        available = self._available + elapsed
        # Limited to the time in which trials held their places, because the clocks of two machines may differ.
        starting = free["starting"] + min(startup_seconds, max(0.0, available - sum(free.values())))
        each = self._accelerators
        return IdleTime(
            starting * each, free["deciding"] * each, free["without_trial"] * each, available * each
        )

    def _seconds_until(self, now: float) -> dict[str, float]:
        """Returns the seconds of free places from the last event to ``now``, by what they wait for."""
        if self._since is None or self._places is None:
            return dict.fromkeys(self._free, 0.0)
        seconds, numbers = max(0.0, now - self._since), self._numbers
        # Shares of places add up to whole places except for rounding errors.
        free = max(0.0, self._places - round(numbers["running"], 9))
        starting = min(free, numbers["ready"])
        undecided = numbers["undecided"] + max(0, self._planned - len(self._activities))
        deciding = min(free - starting, undecided)
        return {
            "starting": starting * seconds,
            "deciding": deciding * seconds,
            "without_trial": (free - starting - deciding) * seconds,
        }


def planned_trials(study: Mapping[str, Any]) -> int:
    """Returns the final number of trials in a study that proposes trials, from its description; 0 for other studies."""
    search = study.get("search")
    return search["settings"] * len(study.get("seeds", ())) if search and "lag" in search else 0
