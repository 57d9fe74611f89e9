"""The watchdog of a worker: it ends the process of a worker that hangs, and writes down its stacks.

A worker may hang without an error: a GPU or a file system does not answer, or a library waits for itself. The other
workers then wait for this one. So each worker has a thread that looks at the worker's clock. If there has been no sign
of life for too long, the thread writes down the stacks of all threads and ends the process, which is then started
again. The watchdogs of the waiting workers write their stacks at the same time. Each process stays for a while before
it ends, so that none is ended by the end of another one first.

The watchdog needs neither torch nor a network. If a library hangs while it holds the interpreter's lock, the thread
cannot run. Then the thread of faulthandler, which needs no interpreter, writes to standard error and ends the process.
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
# How much more patient the watchdog is in these phases: decoding all data and compiling may take long.
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
    """A hang that a watchdog has found. Of several workers, the one with the fewest ``heartbeats`` is to blame."""

    phase: str
    heartbeats: int
    silent_seconds: float
    waits_for_others: bool
    stacks: str


class Watchdog:
    """Watches a clock from a thread. It is a context manager, and watches while it is entered.

    Args:
        clock: the clock, whose ``heartbeats`` have to grow.
        seconds: the time without a sign of life after which the process is ended; three times as long before the first
            step.
        on_hang: a function that is called before the process ends, in a separate thread, since it may hang as well.
        seconds_to_stay: the time between writing the stacks and the end.
        end: the function that ends the process.
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
                # This thread did not run either: the machine slept, or the process was stopped.
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
    """The stacks of all threads of this process, innermost call first."""
    with tempfile.TemporaryFile() as file:  # faulthandler needs a descriptor
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _waits_for_others(thread: int) -> bool:
    """Whether a thread is in a call that returns only when other workers make the same call."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if any(place in frame.f_code.co_filename for place in _WAITS_FOR_OTHERS):
            return True
        frame = frame.f_back
    return False
