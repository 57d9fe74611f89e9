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
        """The host begins to wait for a batch; the device may still be at work."""

    def end(self) -> None:
        """The host has the batch, and the device has it in its queue."""

    def drain(self) -> None:
        """Waits until the device's queue is empty."""

    def take(self) -> float:
        """Seconds in which the device had no step to do, since the last call; its queue has to be empty."""


class Clock:
    """A stopwatch that is always in exactly one phase, so that the phases add up to the wall-clock time.

    It starts in ``startup``: everything before the first batch. ``warmup`` is a pass whose result is thrown away:
    compilation, and the choice of the GPU's algorithms. ``train`` is forward, backward, clipping and update;
    waiting for a batch is ``data_wait``; ``checkpoint`` is what training waits for one; ``report`` is waiting
    for whoever reads the metrics.

    The seconds are part of the checkpoint, so counting continues after a restart. The seconds between a checkpoint
    and the start of the attempt that resumes from it are ``lost``: work that is done again, and the time in which
    nothing ran. If the run was asked to stop, and the checkpoint is the one that it kept then, they are
    ``paused``. So over all attempts the phases add up to the time since the first one began, by the system's clock.

    A device with a queue works on while the host waits for the next batch. With :attr:`waits`, which look at the
    device, ``train`` and ``data_wait`` are those of the device as soon as :meth:`recount` is called.

    Args:
        started_at: a moment of ``time.perf_counter()``, by default now.
    """

    waits: Waits | None = None

    def __init__(self, started_at: float | None = None) -> None:
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase = "startup"
        self.started_at = time.perf_counter() if started_at is None else started_at
        """The moment from which it counts."""
        self._since = self.started_at
        self._not_recounted = {"train": 0.0, "data_wait": 0.0}
        """Of the host, since the last :meth:`recount`."""
        self.heartbeats = 0
        """Signs of life: it grows whenever a phase or a batch begins."""

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
        """Gives a sign of life within a phase that lasts."""
        self.heartbeats += 1

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """Yields the items: waiting for one is ``data_wait``, what the caller does with it is ``train``.

        Waiting for the very first item of an attempt is still ``startup``.
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
        """Waits for a device with a queue, so that what is counted next is no time of the steps before."""
        if self.waits:
            self.waits.drain()
            self.recount()

    def recount(self) -> None:
        """Counts as ``data_wait`` what the device waited since the last call, and as ``train`` the rest of both.

        For when the device's queue has just been found empty, as it was at the last call.
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
        """Yields the items of a phase that lasts, each a sign of life."""
        for item in items:
            self.heartbeats += 1
            yield item

    def seconds(self, phase: Phase) -> float:
        """Seconds spent in a phase so far, over all attempts, the running phase included."""
        running = time.perf_counter() - self._since if phase == self._phase else 0.0
        return self._seconds[phase] + running

    def metrics(self) -> dict[str, float]:
        """``{phase}_seconds`` of every phase, cumulative."""
        return {f"{phase}_seconds": self.seconds(phase) for phase in PHASES}

    def state(self, *, paused: bool = False) -> dict[str, float]:
        """The state to save in a checkpoint. ``paused``: the run ends here, as it was asked to."""
        return {
            **{phase: self.seconds(phase) for phase in PHASES},
            "taken_at": time.time(),
            "is_pause": float(paused),
        }

    def resume(self, state: Mapping[str, float]) -> None:
        """Adds the seconds of the attempts before this one, and those between them and this one."""
        for phase in PHASES:
            self._seconds[phase] += state.get(phase, 0.0)
        began = time.time() - (time.perf_counter() - self.started_at)
        between = max(0.0, began - state["taken_at"])  # two machines' clocks may differ
        self._seconds["paused" if state["is_pause"] else "lost"] += between
