"""The processor of this machine."""

from __future__ import annotations

import platform
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
