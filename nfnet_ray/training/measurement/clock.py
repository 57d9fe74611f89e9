"""The time of a run, by phase."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")

Phase = Literal["startup", "warmup", "train", "data_wait", "eval", "checkpoint", "report", "lost", "paused"]
PHASES: tuple[Phase, ...] = (
    "startup", "warmup", "train", "data_wait", "eval", "checkpoint", "report", "lost", "paused"
)  # fmt: skip


class Waits(Protocol):
    """Measures how long a device with a queue waits for batches."""

    def begin(self) -> None:
        """Notes that the host begins to wait for a batch. The device may still be working on earlier steps."""

    def end(self) -> None:
        """Notes that the host has the batch, and that the work on it is in the device's queue."""

    def drain(self) -> None:
        """Waits until the device's queue is empty."""

    def take(self) -> float:
        """The seconds since the last call in which the device had no step to run. The device's queue must be empty."""


class Clock:
    """A stopwatch that is always in exactly one phase, so that the phases add up to the wall-clock time.

    The clock starts in ``startup``, which is everything before the first batch. ``warmup`` is a pass whose result is
    discarded: compilation, and the choice of the GPU's algorithms. ``train`` is forward, backward, clipping and update.
    ``data_wait`` is waiting for a batch. ``checkpoint`` is the time for which training waits for a checkpoint, and
    ``report`` the time for which it waits until its metrics are read.

    The seconds are saved in the checkpoint, so counting continues after a restart. The seconds between a checkpoint and
    the start of the attempt that resumes from it are ``lost``: work that is done again, and time in which nothing ran.
    If the run was asked to pause or stop, and saved the checkpoint for that reason, the seconds are ``paused`` instead.
    So over all attempts the phases add up to the time since the first attempt began, by the system's clock.

    A device with a queue continues to work while the host waits for the next batch. With :attr:`waits`, which measures
    on the device, each call of :meth:`recount` replaces the host's ``train`` and ``data_wait`` by those of the device.

    Args:
        started_at: a moment of ``time.perf_counter()``; None: now.
    """

    waits: Waits | None = None

    def __init__(self, started_at: float | None = None) -> None:
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase = "startup"
        self.started_at = time.perf_counter() if started_at is None else started_at
        """The moment from which the clock counts, in seconds of ``time.perf_counter()``."""
        self._since = self.started_at
        self._not_recounted = {"train": 0.0, "data_wait": 0.0}
        """The host's seconds since the last :meth:`recount`, by phase."""
        self.heartbeats = 0
        """The number of signs of life. It grows at least whenever a phase or a batch begins."""

    @property
    def phase(self) -> Phase:
        """The running phase."""
        return self._phase

    def enter(self, phase: Phase) -> None:
        """Ends the running phase and begins another."""
        self.heartbeats += 1
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        if self._phase in self._not_recounted:
            self._not_recounted[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def beat(self) -> None:
        """Counts a sign of life within a long phase."""
        self.heartbeats += 1

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """Yields the items. Waiting for an item counts as ``data_wait``, and the caller's work on it as ``train``.

        Waiting for the first item of an attempt still counts as ``startup``.
        """
        while True:
            if self._phase != "startup":
                self.enter("data_wait")
                if self.waits:
                    self.waits.begin()
            try:
                item = next(items)
            except StopIteration:
                return
            if self.waits:
                self.waits.end()
            self.enter("train")
            yield item

    def drain(self) -> None:
        """Waits for a device with a queue, so that the time of earlier steps is not counted in the next phase."""
        if self.waits:
            self.waits.drain()
            self.recount()

    def recount(self) -> None:
        """Counts the seconds that the device has waited since the last call as ``data_wait``, the rest as ``train``.

        Divides the host's seconds in these two phases anew. Call it only when the device's queue is empty.
        """
        if self.waits is None:
            return
        self.enter(self._phase)
        host = dict(self._not_recounted)
        waited = min(max(self.waits.take(), 0.0), sum(host.values()))
        self._seconds["data_wait"] += waited - host["data_wait"]
        self._seconds["train"] -= waited - host["data_wait"]
        self._not_recounted = dict.fromkeys(host, 0.0)

    def with_heartbeats(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items of a long phase, and counts a sign of life for each."""
        for item in items:
            self.heartbeats += 1
            yield item

    def seconds(self, phase: Phase) -> float:
        """The seconds spent in a phase so far, over all attempts, including the running phase."""
        running = time.perf_counter() - self._since if phase == self._phase else 0.0
        return self._seconds[phase] + running

    def metrics(self) -> dict[str, float]:
        """``{phase}_seconds`` of every phase, cumulative."""
        return {f"{phase}_seconds": self.seconds(phase) for phase in PHASES}

    def state(self, *, paused: bool = False) -> dict[str, float]:
        """The state to save in a checkpoint. ``paused`` says that the run pauses or stops here, as requested."""
        return {
            **{phase: self.seconds(phase) for phase in PHASES},
            "taken_at": time.time(),
            "is_pause": float(paused),
        }

    def resume(self, state: Mapping[str, float]) -> None:
        """Adds the seconds of the earlier attempts, and those between the last of them and this attempt."""
        for phase in PHASES:
            self._seconds[phase] += state.get(phase, 0.0)
        began = time.time() - (time.perf_counter() - self.started_at)
        between = max(0.0, began - state["taken_at"])  # two machines' clocks may differ
        self._seconds["paused" if state["is_pause"] else "lost"] += between
