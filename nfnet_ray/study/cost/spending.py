"""Computes the paid time of a study from its journal, its price, and the caps that end the study.

*Paid time* is the time for which drivers were at work and the accelerator-hours that trials held meanwhile, in all
attempts. The time between two drivers is not paid for. Both are functions of the journal alone
(:class:`~nfnet_ray.tracking.state.StudyState`), so they survive any restart.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.tracking.descriptions import CapsDescription
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.wording import count

SECONDS_PER_HOUR = 3600.0
SECONDS_BETWEEN_LOOKS = 1.0
# The most paid time that is missing from the journal when a driver is killed.
SECONDS_BETWEEN_SIGNS = 60.0


@dataclass(frozen=True)
class PaidTime:
    """Paid time in hours: of drivers, and of accelerators (GPUs or, on machines without GPUs, workers)."""

    hours: float
    accelerator_hours: float

    @staticmethod
    def of(state: StudyState, now: float | None = None) -> PaidTime:
        """Returns the paid time in a journal up to ``now`` (Unix seconds), by default up to the last event."""
        if now is None:
            seconds = state.wall_seconds, state.accelerator_seconds
        else:
            seconds = state.wall_seconds_at(now), state.accelerator_seconds_at(now)
        return PaidTime(seconds[0] / SECONDS_PER_HOUR, seconds[1] / SECONDS_PER_HOUR)


@dataclass(frozen=True)
class Caps:
    """The caps on the cost of a study; None: no cap. ``price_per_hour`` is the price of one accelerator-hour.

    On machines without GPUs each worker counts as one accelerator. ``max_cost`` is in the currency of the price.
    """

    max_hours: float | None = None
    max_gpu_hours: float | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None

    @staticmethod
    def of(described: Mapping[str, Any]) -> Caps:
        """Returns the caps that a journal describes. Raises UserError for a cap in money without a price."""
        caps = Caps(**{name: described.get(name) for name in Caps.__dataclass_fields__})
        if caps.max_cost is not None and caps.price_per_hour is None:
            raise UserError(
                "--max-cost needs the price of an accelerator-hour: give --price-per-hour P "
                "(without GPUs it is the price of a worker-hour)"
            )
        return caps

    def cost(self, accelerator_hours: float) -> float | None:
        """Returns the price of accelerator-hours; None if it is unknown."""
        return None if self.price_per_hour is None else accelerator_hours * self.price_per_hour

    def bill(self, paid: PaidTime, accelerator: str) -> str:
        """Formats paid time, such as ``2.3 GPU-hours, 4.60 at 2 per GPU-hour``; without a price only the hours."""
        hours = _hours(paid.accelerator_hours, accelerator)
        cost = self.cost(paid.accelerator_hours)
        return hours if cost is None else f"{hours}, {money(cost)} at {self._price(accelerator)}"

    def _price(self, accelerator: str) -> str:
        return f"{self.price_per_hour:,.4g} per {accelerator}-hour"

    def reached(self, paid: PaidTime, accelerator: str) -> ReachedCap | None:
        """Returns the cap that is reached, or None. ``accelerator`` is the unit: ``GPU`` or ``worker``."""
        if self.max_hours is not None and paid.hours >= self.max_hours:
            return ReachedCap("max_hours", self.max_hours, _hours(self.max_hours))
        if self.max_gpu_hours is not None and paid.accelerator_hours >= self.max_gpu_hours:
            amount = _hours(self.max_gpu_hours, accelerator)
            return ReachedCap("max_gpu_hours", self.max_gpu_hours, amount)
        cost = self.cost(paid.accelerator_hours)
        if self.max_cost is not None and cost is not None and cost >= self.max_cost:
            amount = f"{money(self.max_cost)} at {self._price(accelerator)}"
            return ReachedCap("max_cost", self.max_cost, amount)
        return None

    def sentence(self, accelerator: str) -> str:
        """Describes the caps, such as ``It ends at the latest after 5 hours or 40 GPU-hours of paid time.``"""
        amounts, ends = [], []
        if self.max_hours is not None:
            amounts.append(_hours(self.max_hours))
        if self.max_gpu_hours is not None:
            amounts.append(_hours(self.max_gpu_hours, accelerator))
        if self.max_cost is not None:
            ends = [f"at a cost of {money(self.max_cost)} ({self._price(accelerator)})"]
        if amounts:
            ends.insert(0, f"after {' or '.join(amounts)} of paid time")
        return f"It ends at the latest {' or '.join(ends)}." if ends else ""


@dataclass(frozen=True)
class ReachedCap:
    """A cap that is reached: its name (as in :class:`Caps`), its value, and the value in words."""

    name: str
    value: float
    amount: str

    @property
    def flag(self) -> str:
        """The flag that sets the cap, such as ``--max-hours``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def reason(self) -> str:
        """The reason for the end of the study, such as ``its cap of 5 hours was reached``."""
        return f"its cap of {self.amount} was reached"

    @property
    def higher(self) -> float:
        """Twice the value, as an example of a higher cap."""
        return float(f"{2 * self.value:.4g}")


def merged(before: CapsDescription, given: Mapping[str, float | None]) -> CapsDescription:
    """Returns the caps of a study after new ones have been given; infinity removes a cap."""
    result: dict[str, Any] = dict(before)
    result.update(
        {name: None if value == math.inf else value for name, value in given.items() if value is not None}
    )
    return CapsDescription(**result)


def accelerator_word(gpus: float) -> str:
    """Returns the unit in which accelerator-hours are counted: ``GPU`` or, if workers have no GPUs, ``worker``."""
    return "GPU" if gpus else "worker"


def money(amount: float) -> str:
    """Formats an amount in the currency of the price.

    >>> money(3.14159), money(1234.5)
    ('3.14', '1,234.50')
    """
    return f"{amount:,.2f}" if amount >= 0.01 or not amount else f"{amount:.2g}"


def _hours(hours: float, accelerator: str = "") -> str:
    """Formats hours, such as ``5 hours`` or ``2.35 GPU-hours``."""
    return count(float(f"{hours:.3g}"), f"{accelerator}-hour" if accelerator else "hour")


class CapWatch:
    """A thread that checks every second whether a cap is reached, even within an epoch.

    The thread also writes a sign of life into the journal when nothing else happens, so that the paid time of a driver
    that is killed is known to within a minute.

    Args:
        stop: the event that is set when a cap is reached.
        say: called once before that, in the thread.
    """

    def __init__(
        self,
        recorder: Recorder,
        caps: Caps,
        accelerator: str,
        stop: threading.Event,
        say: Callable[[ReachedCap], None],
    ) -> None:
        self.reached: ReachedCap | None = None
        """The cap that has stopped the study; None if no cap has, or if the study was already being stopped."""
        self._recorder, self._caps, self._accelerator = recorder, caps, accelerator
        self._stop, self._say = stop, say
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cap-watch", daemon=True)

    def __enter__(self) -> CapWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_LOOKS):
            self._recorder.record_at_work(SECONDS_BETWEEN_SIGNS)
            if self._stop.is_set():
                continue
            paid = PaidTime.of(self._recorder.state, time.time())
            reached = self._caps.reached(paid, self._accelerator)
            if reached is not None:
                self.reached, self._recorder.why_interrupted = reached, reached.reason
                self._say(reached)
                self._stop.set()
