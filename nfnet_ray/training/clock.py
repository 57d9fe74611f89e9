"""Where the seconds of a run went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

T = TypeVar("T")

Phase = Literal["startup", "train", "data_wait", "eval", "checkpoint", "report"]
PHASES: tuple[Phase, ...] = ("startup", "train", "data_wait", "eval", "checkpoint", "report")


class Clock:
    """A stopwatch that is always in exactly one phase, so that the phases add up to the wall-clock time.

    It starts in ``startup``: everything before the first step. ``train`` is forward, backward, clipping
    and update; waiting for a batch is ``data_wait``; ``report`` is waiting for whoever reads the metrics.
    The seconds are part of the checkpoint, so they go on counting after a restart. Time between a
    checkpoint and a failure is not in it: that work is done again. ``started_at`` is a moment of
    ``time.perf_counter()``, by default now.
    """

    def __init__(self, started_at: float | None = None) -> None:
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase = "startup"
        self._since = time.perf_counter() if started_at is None else started_at

    def enter(self, phase: Phase) -> None:
        """Ends the running phase and begins another."""
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """Yields the items: waiting for one is ``data_wait``, what the caller does with it is ``train``.

        Waiting for the very first item of a run is still ``startup``.
        """
        while True:
            if self._phase != "startup":
                self.enter("data_wait")
            try:
                item = next(items)
            except StopIteration:
                return
            self.enter("train")
            yield item

    def seconds(self, phase: Phase) -> float:
        """Seconds spent in a phase so far, over all attempts, the running phase included."""
        running = time.perf_counter() - self._since if phase == self._phase else 0.0
        return self._seconds[phase] + running

    def metrics(self) -> dict[str, float]:
        """``{phase}_seconds`` of every phase, cumulative."""
        return {f"{phase}_seconds": self.seconds(phase) for phase in PHASES}

    def state(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {phase: self.seconds(phase) for phase in PHASES}

    def resume(self, state: Mapping[str, float]) -> None:
        """Adds the seconds of the attempts before this one; start-up is each attempt's own."""
        for phase in PHASES:
            if phase != "startup":
                self._seconds[phase] += state.get(phase, 0.0)
