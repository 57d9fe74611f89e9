"""Ends what is left of a Ray whose driver is gone: a program that :mod:`~nfnet_ray.cluster.connection.own_ray` starts.

It reads lines ``PROCESS_ID START_TIME`` from its standard input, whose other end the driver holds and nobody else. When
that is closed, in whatever way the driver ended, it kills the processes that are still the same ones. Imports nothing
but the standard library: it starts in milliseconds and takes few of the machine's bytes for as long as a run lasts.
"""

from __future__ import annotations

import os
import signal
import sys


def start_time(process: int) -> str | None:
    """When a process began, in the kernel's ticks: with its id it names a process for good. None: there is none."""
    try:
        with open(f"/proc/{process}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[19].decode()  # proc(5), field 22, starttime; the first two are cut off


def main() -> None:
    """Waits for the end of the driver."""
    for process, began in [line.split() for line in sys.stdin]:
        if start_time(int(process)) == began:
            os.kill(int(process), signal.SIGKILL)


if __name__ == "__main__":
    main()
