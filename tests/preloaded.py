"""Programs in processes of their own, each forked from one that has imported what such a program imports.

A study's driver takes 3 s of a core to import Ray before it does anything, and a training 2 to 3 s for torch, which is
most of what either takes in a test. How a program starts from nothing is tested where a test says so: with
:mod:`subprocess`, in tests/e2e/test_study.py for a study.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

from nfnet_ray.cluster.connection.ray_internals import SETTINGS
from tests.deadlines import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[1]

TRAINING_MODULES = ("torch.distributed", "nfnet_ray.training")
STUDY_MODULES = (
    "ray.train",
    "ray.tune",
    "ray.dag.compiled_dag_node",
    "nfnet_ray.cluster.driver",
    "studies.running.flags",
    "studies.running.run",
    "mlflow.store.tracking.sqlalchemy_store",
    "alembic.command",
    "nfnet_ray.tracking.delivery.writer",
    "dashboards.report",
    "plotly.offline",
)
"""What a study's driver imports, some of it only at its end."""
DATA_PARALLEL_MODULES = ("ray.train.torch", *STUDY_MODULES)
"""What it imports where trials have several workers."""


class PreloadedProgram:
    """A program that runs or has run; as far as it goes, like :class:`subprocess.Popen`."""

    def __init__(self, args: list[str], status: IO[bytes], output: IO[str], errors: IO[str]) -> None:
        self.args = args
        self.returncode: int | None = None
        self._status, self._output, self._errors = status, output, errors
        self.pid = int(status.readline())

    def poll(self) -> int | None:
        """The exit code; None as long as it runs."""
        return self._ended(within_seconds=0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises TimeoutExpired after ``timeout`` seconds."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; all that it wrote to standard output and to standard error."""
        self.wait(timeout)
        return self._said(self._output), self._said(self._errors)

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, within_seconds: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if selector.select(within_seconds):
                    line = self._status.readline()
                    assert line, "the process that forks programs has ended"
                    self.returncode = int(line)
                    self._status.close()
        return self.returncode

    @staticmethod
    def _said(file: IO[str]) -> str:
        file.seek(0)
        return file.read()


class _Server:
    """Is started for the first program, and ends with the process that runs the tests."""

    def __init__(self, modules: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = f"from tests.preloading import serve; serve({theirs.fileno()}, {list(modules)})"
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env=SETTINGS | dict(environment),  # as a driver sets them before it imports Ray
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def start(self, request: dict[str, object], output: IO[str], errors: IO[str]) -> IO[bytes]:
        """What the program's process id and exit code can be read from."""
        reading, writing = os.pipe()
        descriptors = [output.fileno(), errors.fileno(), writing]
        socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
        os.close(writing)
        return os.fdopen(reading, "rb", buffering=0)


_servers: dict[object, _Server] = {}


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that libraries read when they are imported, or may."""
    read_later = {"RAY_ADDRESS", "RAY_TMPDIR"}
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(("RAY_", "OMP_", "TUNE_")) and name not in read_later
    }


def start_program(
    modules: tuple[str, ...],
    *arguments: str,
    folder: Path = REPOSITORY,
    environment: Mapping[str, str] | None = None,
    at_import: Mapping[str, str] = MappingProxyType({}),
    log: IO[str] | None = None,
    is_new_session: bool = False,
) -> PreloadedProgram:
    """Starts ``python ARGUMENTS`` in a process that has imported ``modules``; its output and errors go to a ``log``.

    ``at_import`` are variables that the program sets itself before it imports them.
    """
    variables = dict(os.environ if environment is None else environment)
    key = (modules, *sorted(_read_at_import(variables | dict(at_import)).items()))
    server = _servers.get(key) or _servers.setdefault(key, _Server(modules, variables | dict(at_import)))
    # Files and not pipes: a program never waits for somebody to read them.
    output, errors = (log or tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
    request = {
        "arguments": arguments,
        "environment": variables,
        "folder": str(folder),
        "is_new_session": is_new_session,
    }
    status = server.start(request, output, errors)
    return PreloadedProgram([sys.executable, *arguments], status, output, errors)


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -c program arguments`` of a training from the repository's root, and waits for it."""
    process = start_program(TRAINING_MODULES, "-c", program, *arguments)
    out, err = process.communicate(HANG_SECONDS)
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)
