"""``python -m benchmarks.gpu`` with parts that are forked: none of its ten processes imports torch anew.

    python -m tests.training.forked_gpu_benchmark [ARGUMENT …]

Each process still runs the command line that it was to be started with, from the first line of the program on.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import IO

import torch
import torch._dynamo

from benchmarks.gpu import children

PROGRAM = "benchmarks.gpu"
MODULES = ("roof", "correctness", "step", "captured", "cohort", "observed", "convolutions", "cifar")


class Forked:
    """A process as :class:`subprocess.Popen` starts it for :class:`benchmarks.gpu.children.Child`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str],
        process_group: int,
    ) -> None:
        assert list(command[:3]) == [sys.executable, "-m", PROGRAM]
        assert (stdin, process_group) == (subprocess.PIPE, 0)
        reading, writing = os.pipe()
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.close(writing)
            for source, target in ((reading, 0), (stdout.fileno(), 1), (stderr.fileno(), 2)):
                os.dup2(source, target)
            _run(command[3:], env)
        os.setpgid(self.pid, self.pid)
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")

    def poll(self) -> int | None:
        """The exit code, None as long as it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        """The exit code."""
        return self._wait(0)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """In the new process: becomes the program, and ends with its exit code."""
    code: object = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a process that was started
        os.environ.clear()
        os.environ.update(environment)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (as long as the process lives)
        sys.argv[1:] = arguments
        runpy.run_module(PROGRAM, run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(f"{PROGRAM}.{module}")
    children.subprocess = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE)  # type: ignore[assignment]
    runpy.run_module(PROGRAM, run_name="__main__")
