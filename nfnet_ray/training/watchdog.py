"""A worker that hangs: found by a deadline, its stacks written down, its process ended.

A GPU that never answers, a file system that never comes back, a library that waits for itself: no error is raised,
and the other workers wait for this one. So each worker has a thread that looks at its clock. Where that shows no
sign of life for too long, the thread writes down what all threads of the process are doing and ends the process,
and whoever started it starts it again. The workers that wait for the hanging one have stopped just as long ago, and
write theirs at the same time; each stays for a while before it ends, so that none is cut off by another's end.

Needs neither torch nor a network. If the interpreter itself is stuck, in a library that does not release its lock,
the thread cannot run; then faulthandler's, which needs no interpreter, writes to standard error and ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nfnet_ray.training.measurement.clock import Clock, Phase

SECONDS_OF_SILENCE = 600.0  # as long as an operation of NCCL may take by default
# Data that is decoded once, compilation: before the first step much may take long that is not hanging.
SLOW_PHASES: dict[Phase, float] = {"startup": 3.0, "warmup": 3.0}
SECONDS_TO_STAY = 10.0
EXIT_HUNG = 70  # EX_SOFTWARE of sysexits.h
_WAITS_FOR_OTHERS = (
    "torch/distributed/",
    "torch/nn/parallel/distributed.py",
    "torch/autograd/graph.py",  # the backward pass, in which gradients are averaged
)


@dataclass(frozen=True)
class Hang:
    """A hang that a worker's watchdog found. The worker to blame has the fewest ``heartbeats``."""

    phase: str
    heartbeats: int
    silent_seconds: float
    waits_for_others: bool
    stacks: str


class Watchdog:
    """Watches a clock from a thread. A context manager: it watches as long as it is entered.

    Args:
        clock: whose ``heartbeats`` have to grow.
        seconds: without a sign of life until the process is ended; three times as many before the first step.
        on_hang: called before the process ends, from its own thread, since it may write to what hangs.
        seconds_to_stay: between the writing and the end.
        end: ends the process.
    """

    def __init__(
        self,
        clock: Clock,
        seconds: float,
        on_hang: Callable[[Hang], None],
        *,
        seconds_to_stay: float = SECONDS_TO_STAY,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._clock, self._seconds, self._on_hang = clock, seconds, on_hang
        self._stay, self._end = seconds_to_stay, end
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        every = min(1.0, self._seconds / 10)
        heartbeats, since, looked_at = -1, 0.0, time.monotonic()
        try:
            while not self._over.wait(every):
                now = time.monotonic()
                # This thread stood still too: the machine slept, or somebody stopped the process.
                if now - looked_at > every + self._seconds / 2:
                    heartbeats = -1
                looked_at = now
                if heartbeats != self._clock.heartbeats:
                    heartbeats, since = self._clock.heartbeats, now
                    self._arm_the_last_resort()
                elif now - since > self._patience:
                    self._report(heartbeats, now - since)
                    return
        finally:
            faulthandler.cancel_dump_traceback_later()

    @property
    def _patience(self) -> float:
        return self._seconds * SLOW_PHASES.get(self._clock.phase, 1.0)

    def _arm_the_last_resort(self) -> None:
        with contextlib.suppress(ValueError, OSError, RuntimeError):  # a process without standard error
            faulthandler.dump_traceback_later(2 * self._patience + 2 * self._stay, exit=True, file=2)

    def _report(self, heartbeats: int, silent_seconds: float) -> None:
        ends_at = time.monotonic() + self._stay
        stacks = stacks_of_all_threads()
        hang = Hang(
            self._clock.phase,
            heartbeats,
            silent_seconds,
            waits_for_others=_waits_for_others(self._watched),
            stacks=f"no sign of life for {silent_seconds:.0f} s, in {self._clock.phase}; host "
            f"{socket.gethostname()}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n\n{stacks}",
        )
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(hang.stacks)
            sys.stderr.flush()
        telling = threading.Thread(target=self._on_hang, args=(hang,), daemon=True)
        telling.start()
        telling.join(self._stay)
        time.sleep(max(0.0, ends_at - time.monotonic()))
        self._end(EXIT_HUNG)


def stacks_of_all_threads() -> str:
    """What every thread of this process is doing, innermost call first."""
    with tempfile.TemporaryFile() as file:  # faulthandler needs a descriptor
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _waits_for_others(thread: int) -> bool:
    """Whether a thread is in a call that ends only when other workers make theirs."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if any(place in frame.f_code.co_filename for place in _WAITS_FOR_OTHERS):
            return True
        frame = frame.f_back
    return False
