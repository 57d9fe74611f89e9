"""Divides the time and the energy of a cohort among its lanes.

A second of a cohort with four live lanes counts as a quarter of a second of each lane. So ``train_seconds`` of a lane
is the cost of its trial, as it is for a trial that has a device to itself, and the lanes' seconds add up to the elapsed
seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from nfnet_ray.training.measurement.clock import PHASES, Clock, Phase
from nfnet_ray.training.measurement.meter import EnergyCounter


class SharedClock:
    """The clock of a cohort, and the lanes among which its seconds are divided now.

    ``energy`` reads the energy that the device uses, if it can be measured. ``from_now`` says that the time up to now
    is not divided among these lanes, since it belongs to other lanes or to an attempt that ran out of memory. The lanes
    then begin in the phase ``startup``.
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
        """Divides the time from now on among these lanes. The first call includes the time since the clock started."""
        self.settle()
        self.settle_joules()
        self._lanes, self._has_begun = lanes, True

    def settle(self) -> None:
        """Adds to each lane its part of the seconds since the last call."""
        if not self._has_begun:
            return
        for phase in PHASES:
            seconds = self.clock.seconds(phase)
            for lane in self._lanes:
                lane.add(phase, (seconds - self._seconds[phase]) / len(self._lanes))
            self._seconds[phase] = seconds

    def settle_joules(self) -> None:
        """Adds to each lane its part of the energy since the last call. Separate, since the counter is slow to read."""
        if not self._has_begun:
            return
        joules = self._counted_joules()
        if joules is not None and self._joules is not None and joules >= self._joules:
            for lane in self._lanes:
                lane.joules += (joules - self._joules) / len(self._lanes)
        self._joules = joules

    def counts_energy(self) -> bool:
        """Whether the energy of the device can be measured."""
        return self._joules is not None

    def _counted_joules(self) -> float | None:
        return self._energy.joules() if self._energy else None


class LaneClock(Clock):
    """The clock of one lane. Its phase is the cohort's. Its seconds are its part of the cohort's, and earlier ones."""

    def __init__(self, shared: SharedClock) -> None:
        super().__init__(shared.started_at)
        self._shared = shared
        self.joules = 0.0
        """The lane's part of the energy, in joules."""

    def add(self, phase: Phase, seconds: float) -> None:
        """Adds ``seconds`` to a phase."""
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
        """The lane's part of the energy that the device has used, in joules; None if it cannot be measured."""
        self._shared.settle_joules()
        return self._lane.joules if self._shared.counts_energy() else None
