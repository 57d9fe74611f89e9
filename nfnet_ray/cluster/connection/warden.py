"""Kills the processes of a local Ray whose driver is gone; :mod:`~nfnet_ray.cluster.connection.local_ray` runs it.

It reads lines ``PROCESS_ID START_TIME`` from its standard input, whose other end only the driver holds. When that is
closed, however the driver ended, it kills those of the processes that still have that start time. It imports nothing
but the standard library, so that it starts in milliseconds and needs little memory while a run lasts.
"""

from __future__ import annotations

import os
import signal
import sys


def start_time(process: int) -> str | None:
    """When a process began, in ticks of the kernel: unique together with its id. None if there is no such process."""
    try:
        with open(f"/proc/{process}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[19].decode()  # proc(5), field 22, starttime; the first two are cut off


def main() -> None:
    """Waits for the end of the driver, then kills."""
    for process, began in [line.split() for line in sys.stdin]:
        if start_time(int(process)) == began:
            os.kill(int(process), signal.SIGKILL)


if __name__ == "__main__":
    main()
