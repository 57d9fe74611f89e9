"""The device: what it is, how fast its clock runs, what power it draws, and how long work takes on it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.record import hardware
from nfnet_ray.processor import available_cpus

LEAST_REPEATS = 3


@dataclass(frozen=True)
class Sensors:
    """What NVML reads; "" where there is none."""

    sm_clock_mhz: float | str = ""
    power_watts: float | str = ""


@dataclass(frozen=True)
class Timing:
    """Of ``n`` repeats: the median in seconds, and the interquartile range as a share of it.

    ``sensors`` were read while the device was still at work.
    """

    seconds: float
    n: int
    spread: float
    sensors: Sensors


class Machine:
    """The GPU if there is one, else the CPU with one thread.

    ``is_small``: tiny networks, whose numbers mean nothing; always on a CPU.
    """

    def __init__(self, device: torch.device | None = None, *, is_small: bool = False) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.is_gpu = self.device.type == "cuda"
        self.is_small = is_small or not self.is_gpu
        self.threads = min(8, available_cpus()) if self.is_gpu else 1
        self.nvml: Any = None
        self.nvml_handle: Any = None
        if self.is_gpu:
            with contextlib.suppress(Exception):  # without it the columns stay empty
                import pynvml

                pynvml.nvmlInit()
                uuid = str(torch.cuda.get_device_properties(self.device).uuid)
                self.nvml_handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
                self.nvml = pynvml

    def description(self) -> dict[str, str]:
        """The columns that are the same in all rows of a run."""
        driver = ""
        if self.nvml:
            with contextlib.suppress(Exception):
                version = self.nvml.nvmlSystemGetDriverVersion()
                driver = version.decode() if isinstance(version, bytes) else version
        return {
            "device": hardware(self.device, self.threads),
            "driver": driver,
            "torch": torch.__version__,
            "cudnn": str(torch.backends.cudnn.version()) if self.is_gpu else "",
        }

    def sensors(self) -> Sensors:
        """Clock and power now; the driver averages the power over a second or so."""
        if self.nvml is None:
            return Sensors()
        with contextlib.suppress(Exception):
            clock = self.nvml.nvmlDeviceGetClockInfo(self.nvml_handle, self.nvml.NVML_CLOCK_SM)
            return Sensors(clock, self.nvml.nvmlDeviceGetPowerUsage(self.nvml_handle) / 1000)
        return Sensors()

    def synchronise(self) -> None:
        """Waits until the device has nothing to do."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def forget_memory(self) -> None:
        """Gives unused memory back to the device, and forgets its peak."""
        gc.collect()  # networks are in circles of references
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> float:
        """The most that torch had allocated since the warm-ups of :meth:`time` or :meth:`forget_memory`; 0 on a CPU."""
        return float(torch.cuda.max_memory_allocated(self.device)) if self.is_gpu else 0.0

    def time(
        self, work: Callable[[], object], *, repeats: int, warm_ups: int = 3, at_most_seconds: float = 5.0
    ) -> Timing:
        """How long ``work`` takes on the device, the gaps between its kernels included.

        Fewer repeats than asked for, but at least three, where they would take longer than ``at_most_seconds``; always
        three of tiny networks.
        """
        if self.is_small:
            repeats, warm_ups = LEAST_REPEATS, 1
        for _ in range(warm_ups - 1):
            work()
        self.synchronise()
        start = time.perf_counter()
        work()
        self.synchronise()
        one = time.perf_counter() - start
        if not self.is_gpu:
            return summary([_seconds(work) for _ in range(repeats)], self.sensors())
        repeats = max(LEAST_REPEATS, min(repeats, int(at_most_seconds / one)))
        # Without the workspaces of all algorithms that cuDNN has tried in the warm-ups.
        torch.cuda.reset_peak_memory_stats(self.device)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        # Graphs are put into the queue in no time: before half of it is done, the device may just have begun.
        events[repeats // 2].synchronize()
        sensors = self.sensors()
        self.synchronise()
        return summary([a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(events)], sensors)


def summary(seconds: Sequence[float], sensors: Sensors) -> Timing:
    """Median and spread.

    >>> summary([1.0, 2.0, 2.0, 2.0, 9.0], Sensors())
    Timing(seconds=2.0, n=5, spread=0.0, sensors=Sensors(sm_clock_mhz='', power_watts=''))
    """
    quarter, median, three_quarters = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, len(seconds), (three_quarters - quarter) / median, sensors)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
