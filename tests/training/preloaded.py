"""Programs in processes of their own that need not import torch: each is forked from one that has done so.

The imports of a training take a process 3 s of a core, and most such programs less than one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.deadlines import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = """\
import json, os, sys, traceback
import torch.distributed
import nfnet_ray.training

def become(request):
    code = 1
    try:
        streams = ((os.devnull, os.O_RDONLY), (request["stdout"], os.O_WRONLY), (request["stderr"], os.O_WRONLY))
        for descriptor, (path, mode) in enumerate(streams):
            os.dup2(os.open(path, mode), descriptor)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv[1:] = request["arguments"]
        exec(compile(request["program"], "<string>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
        code = code if isinstance(code, int) else int(code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        become(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class _Server:
    """Is started for the first program, and ends with the process that runs the tests."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, request: dict[str, object]) -> int:
        """The exit code of a program."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            atexit.register(self.end)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        """It reads the end of its input."""
        if self._process:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate(timeout=HANG_SECONDS)


_SERVER = _Server()


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -c program arguments`` from the repository's root, and waits for it."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in ("stdout", "stderr")}
        for path in paths.values():
            path.touch()
        streams = {name: str(path) for name, path in paths.items()}
        request = {"program": program, "arguments": arguments, "environment": dict(os.environ), **streams}
        code = _SERVER.run(request)
        said = {name: path.read_text() for name, path in paths.items()}
    return subprocess.CompletedProcess([program, *arguments], code, **said)
