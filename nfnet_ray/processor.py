"""The processor of this machine, and the number of cores that this process may use."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path


def processor_name() -> str:
    """The name of the processor, such as ``Intel(R) Xeon(R) Processor``, or its architecture if Linux has no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def available_cpus(group: Path = Path("/sys/fs/cgroup")) -> int:
    """The number of cores that this process may use, within the limit of its container (the control group)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # The file is missing, or says "max", if there is no limit. With more threads than the quota has cores, all threads
    # would be stopped for most of the time.
    with suppress(OSError, ValueError):
        quota, period = map(int, (group / "cpu.max").read_text().split())
        return max(1, min(cores, quota // period))
    return cores
