"""The memory that a process may still allocate."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def free_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """The bytes that can be allocated on this machine, within the limit of its container (the control group).

    Memory that caches files counts as free: a pod that has read a data set caches as much of it as its limit allows. If
    the system does not say what is free (macOS), all memory counts.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration), Path("/proc/meminfo").open() as lines:
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # none, or "max"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = sum(int(parts.get(name, 0)) for name in ("active_file", "inactive_file"))
        return max(0, min(free, limit - used + cached))
    return free
