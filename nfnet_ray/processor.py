"""The processor of this machine, and how much of it there is for this process."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path


def processor_name() -> str:
    """Its name, such as ``Intel(R) Xeon(R) Processor``; the architecture where Linux does not say it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def available_cpus(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, within the limit of this container, whose control group it is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # None, or "max" without a limit. More threads than the quota has cores would all be stopped for most of the time.
    with suppress(OSError, ValueError):
        quota, period = map(int, (group / "cpu.max").read_text().split())
        return max(1, min(cores, quota // period))
    return cores
