"""A Ray on this machine: no signal that is meant for the driver ends it, and it does not outlive the driver.

Its processes are in the driver's process group and control group, so what tells the driver to end tells them too:
``timeout``, ``kill -- -GROUP``, systemd, Slurm, a terminal that is closed. Without Ray no worker could keep a
checkpoint, and the driver could not wait for it. Ray shields them from Ctrl-C by having them block SIGINT; here they
are started with SIGTERM and SIGHUP blocked in the same way, which every process inherits from the one that started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from nfnet_ray.cluster.connection import ray_internals, warden
from nfnet_ray.command_line.interruption import handlers_kept

_MEANT_FOR_THE_DRIVER = {signal.SIGTERM, signal.SIGHUP}
SECONDS_FOR_THE_WARDEN = 5.0


class LocalRay:
    """``start`` is ``ray.init``, ``end`` is ``ray.shutdown``; both for the main thread.

    The kernel kills what Ray started directly when the driver dies, however it dies, and workers end when their raylet
    does. Its two agents live for another minute; the process :mod:`~nfnet_ray.cluster.connection.warden` ends them.
    """

    def __init__(self) -> None:
        self._warden: subprocess.Popen[bytes] | None = None
        self._unset: list[str] = []

    def start(self, **options: Any) -> Any:
        """Returns what ``ray.init`` does. A signal to the driver is delivered when Ray is up."""
        import ray

        for name, value in ray_internals.LOCAL_SETTINGS.items():
            if name not in os.environ:
                os.environ[name] = value
                self._unset.append(name)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _MEANT_FOR_THE_DRIVER)
        try:
            if Path("/proc/self/stat").exists():
                command = [sys.executable, "-I", "-S", warden.__file__]
                self._warden = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            with handlers_kept(), ray_internals.without_attendants(), _without_strict_warnings():
                # "local", or else Ray would join a cluster that happens to be up on this machine.
                context = ray.init(address="local", **options)
            self._tell_warden()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return context

    def end(self) -> None:
        """Disconnects, and kills all of this Ray."""
        import ray

        # Ray would send its processes SIGTERM, which they block, and wait a second for each. Nothing in them is needed.
        for process in ray_internals.started_processes():
            process.terminate = process.kill
        self._tell_warden()
        ray.shutdown()
        while self._unset:
            del os.environ[self._unset.pop()]
        if self._warden is not None and self._warden.stdin is not None:
            self._warden.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._warden.wait(SECONDS_FOR_THE_WARDEN)

    def _tell_warden(self) -> None:
        """Names to it all processes of this Ray that there are now."""
        if self._warden is None or self._warden.stdin is None:
            return
        for process in _with_descendants({process.pid for process in ray_internals.started_processes()}):
            began = warden.start_time(process)
            if began is not None:
                self._warden.stdin.write(f"{process} {began}\n".encode())
        self._warden.stdin.flush()


@contextlib.contextmanager
def _without_strict_warnings() -> Generator[None]:
    """Within the block, processes start without PYTHONWARNINGS: with ``error`` Ray's own ones would not start."""
    before = os.environ.pop("PYTHONWARNINGS", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _with_descendants(processes: set[int]) -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path("/proc", entry, "stat").read_bytes()
            except OSError:  # it has ended
                continue
            parents[int(entry)] = int(stat.rpartition(b")")[2].split()[1])  # proc(5), field 4, ppid
    found = set(processes)
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found
