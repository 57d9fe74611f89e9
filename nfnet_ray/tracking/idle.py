"""How long the accelerators of a study were idle, and why: a function of its journal alone.

A study has a number of *places*: trials that run at once. A place is idle while no trial holds it, and while the trial
that holds it has not begun to train. Imports nothing of the state, which feeds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nfnet_ray.wording import clock_time

_Activity = Literal["running", "ready", "undecided", "over"]


@dataclass(frozen=True)
class IdleTime:
    """Idle accelerator-seconds of a study, in all attempts, by what the places waited for.

    Attributes:
        starting: for trials that were ready: for Ray to start them, and for their first batch.
        deciding: for a decision: trials waited at a rung, or a search for the results of others.
        without_trial: for nothing: the last trials ran, and no other was left.
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
        """Idle seconds as a fraction of those that were available."""
        return self.seconds / self.available if self.available else 0.0

    def sentence(self, accelerator: str) -> str:
        """``12% of the GPU time was idle: 0:40 starting trials, 2:10 waiting for decisions``."""
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
    """What the places of a study do, told event by event. Times are Unix seconds.

    Every event but epochs and signs of life costs the same, however many trials there are.
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
        """A driver begins: on ``places`` places (None: its journal does not say) of some accelerators each.

        ``planned`` is how many trials there may be in the end.
        """
        self._places, self._accelerators, self._planned, self._since = places, accelerators, planned, now

    def plan(self, planned: int) -> None:
        """Take in how many trials there may be in the end, of a study that is extended."""
        self._planned = planned

    def pass_time(self, now: float) -> None:
        """Take in that nothing has changed up to ``now``."""
        if self._since is None or self._places is None:
            return
        for name, seconds in self._seconds_until(now).items():
            self._free[name] += seconds
        self._available += max(0.0, now - self._since) * self._places
        self._since = max(now, self._since)

    def end(self, now: float) -> None:
        """The driver has left, or was killed."""
        self.pass_time(now)
        self._since = None

    def note(self, trial: str, activity: _Activity, part: float = 1.0) -> None:
        """A trial runs now, is ready to start, waits for a decision, or is over.

        ``part`` is what a running one holds of a place: all of it, unless it is one of a cohort.
        """
        before = self._activities.get(trial)
        if before is not None:
            self._numbers[before[0]] -= before[1]
        self._activities[trial] = activity, part if activity == "running" else 1.0
        self._numbers[activity] += self._activities[trial][1]

    def idle_time(self, now: float, startup_seconds: float) -> IdleTime | None:
        """The idle time up to ``now``; None where the journal does not say how many places there are.

        ``startup_seconds`` are those of all trials until their first batch.
        """
        if self._places is None:
            return None
        pending, elapsed = self._seconds_until(now), 0.0
        if self._since is not None:
            elapsed = max(0.0, now - self._since) * self._places
        free = {name: self._free[name] + pending[name] for name in self._free}
        available = self._available + elapsed
        # The clocks of two machines may differ: no more than the time in which trials held their places.
        starting = free["starting"] + min(startup_seconds, max(0.0, available - sum(free.values())))
        each = self._accelerators
        return IdleTime(
            starting * each, free["deciding"] * each, free["without_trial"] * each, available * each
        )

    def _seconds_until(self, now: float) -> dict[str, float]:
        """Seconds of free places from the last event to ``now``, by what they wait for."""
        if self._since is None or self._places is None:
            return dict.fromkeys(self._free, 0.0)
        seconds, numbers = max(0.0, now - self._since), self._numbers
        # Parts of places add up to whole ones but for their last bits.
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
    """How many trials a study that its journal describes has in the end, with those that a search proposes; or 0."""
    search = study.get("search")
    return search["settings"] * len(study.get("seeds", ())) if search and "lag" in search else 0
