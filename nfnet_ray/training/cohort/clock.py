"""The time and the energy of a cohort, shared out: what all lanes do together counts in each as its part.

A second of a cohort of four live lanes is a quarter of a second of each. So ``train_seconds`` of a lane is what a trial
cost, as it is for a trial that has a device to itself, and the lanes' seconds add up to those that passed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from nfnet_ray.training.measurement.clock import PHASES, Clock, Phase
from nfnet_ray.training.measurement.meter import EnergyCounter


class SharedClock:
    """The clock of a cohort, and among which lanes its seconds are divided now.

    ``energy`` counts what the device uses, if that can be known. ``from_now``: what the clock has counted up to now is
    not of these lanes, or of an attempt that left nothing; they start up.
    """

    def __init__(self, clock: Clock, energy: EnergyCounter | None = None, *, from_now: bool = False) -> None:
        self.clock, self.started_at = clock, clock.started_at
        self._energy = energy
        self._lanes: Sequence[LaneClock] = ()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        if from_now:
            clock.enter("startup")
            self.started_at = time.perf_counter()
            self._seconds = {phase: clock.seconds(phase) for phase in PHASES}
        self._joules = self._counted_joules()
        self._has_begun = False

    def divide_among(self, lanes: Sequence[LaneClock]) -> None:
        """Divides what passes from now on among these lanes; among the first ones all since it started."""
        self.settle()
        self.settle_joules()
        self._lanes, self._has_begun = lanes, True

    def settle(self) -> None:
        """Gives each lane its part of the seconds that have passed."""
        if not self._has_begun:
            return
        for phase in PHASES:
            seconds = self.clock.seconds(phase)
            for lane in self._lanes:
                lane.add(phase, (seconds - self._seconds[phase]) / len(self._lanes))
            self._seconds[phase] = seconds

    def settle_joules(self) -> None:
        """Gives each lane its part of the energy that was used; to read the counter takes the driver's time."""
        if not self._has_begun:
            return
        joules = self._counted_joules()
        if joules is not None and self._joules is not None and joules >= self._joules:
            for lane in self._lanes:
                lane.joules += (joules - self._joules) / len(self._lanes)
        self._joules = joules

    def counts_energy(self) -> bool:
        """Whether the energy of the device can be known."""
        return self._joules is not None

    def _counted_joules(self) -> float | None:
        return self._energy.joules() if self._energy else None


class LaneClock(Clock):
    """The clock of one lane: its phase is the cohort's, its seconds are its part of them and those of its past."""

    def __init__(self, shared: SharedClock) -> None:
        super().__init__(shared.started_at)
        self._shared = shared
        self.joules = 0.0
        """Its part of the energy."""

    def add(self, phase: Phase, seconds: float) -> None:
        """Counts seconds that have passed."""
        self._seconds[phase] += seconds

    @property
    def phase(self) -> Phase:
        return self._shared.clock.phase

    def enter(self, phase: Phase) -> None:
        self._shared.clock.enter(phase)

    def beat(self) -> None:
        self._shared.clock.beat()

    def seconds(self, phase: Phase) -> float:
        self._shared.settle()
        return self._seconds[phase]


class LaneEnergy:
    """The :class:`EnergyCounter` of one lane."""

    def __init__(self, shared: SharedClock, lane: LaneClock) -> None:
        self._shared, self._lane = shared, lane

    def joules(self) -> float | None:
        """Its part of what the device has used."""
        self._shared.settle_joules()
        return self._lane.joules if self._shared.counts_energy() else None
