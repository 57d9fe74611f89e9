"""Running a study as a person does: its command line, in a folder of its own."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from nfnet_ray.command_line.interruption import handlers_kept
from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.state import StudyState
from tests.deadlines import HANG_SECONDS, wait_until
from tests.preloaded import STUDY_MODULES, PreloadedProgram, start_program

REPOSITORY = Path(__file__).resolve().parents[2]
STUDY = REPOSITORY / "studies" / "agc_sweep.py"

# A network, and runs of it, so short that what is around them is what takes the time.
QUICK = [
    "--set", "model.overrides.width=[16, 16, 32, 32]",
    "--set", "model.overrides.depth=[1, 1, 1, 1]",
    "--set", "model.overrides.group_width=[8, 8, 16, 16]",
    "--set", "batch_size=48",
]  # fmt: skip

# A driver sets it when its cluster asks for tokens, as those of the tests do, and Ray reads it when it is imported.
SHOWS_TOKEN = {"RAY_AUTH_MODE": "token"}

# On a cluster with two cores. Trials of two cores would have two threads, which take twice the time of a core for
# networks of this size.
ONE_AT_A_TIME = ["--cpus-per-worker", "1", "--gpus-per-worker", "0", "--trials-at-once", "1"]


def one_at_a_time(data: Path) -> list[str]:
    """Flags of three-epoch trials, one after another."""
    return ["--data", str(data), "--epochs", "3", *QUICK, *ONE_AT_A_TIME]


class Workplace:
    """A folder from which studies are run, and the journals that they leave in its ``runs``.

    With ``database`` a copy of it is there already, which the first study would otherwise have to create. With
    ``is_recorded=False`` studies are not recorded in MLflow, which takes each driver two seconds of a core.
    """

    def __init__(
        self, folder: Path, study: Path = STUDY, *, database: Path | None = None, is_recorded: bool = True
    ) -> None:
        self.folder, self.study = folder, study
        self._variables = {} if is_recorded else {"MLFLOW_TRACKING_URI": "none"}
        if database is not None:
            (folder / "runs").mkdir()
            shutil.copy(database, folder / "runs" / "mlflow.db")

    def start(self, *arguments: str | Path, **environment: str) -> PreloadedProgram:
        return start_program(
            STUDY_MODULES,
            str(self.study),
            *map(str, arguments),
            folder=self.folder,
            environment=os.environ | self._variables | environment,
            at_import=SHOWS_TOKEN if "--address" in arguments else {},
        )

    def run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a study to its end, in a process that need not import what all studies import."""
        return self._ended(self.start(*arguments, **environment))

    def run_as_typed(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Like :meth:`run`, in a new process: what a shell does with the command."""
        process = subprocess.Popen(
            [sys.executable, str(self.study), *map(str, arguments)],
            cwd=self.folder,
            env=os.environ | self._variables | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self._ended(process)

    @staticmethod
    def _ended(process: PreloadedProgram | subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        try:
            out, err = process.communicate(timeout=HANG_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"no end after {HANG_SECONDS} s\n{out}\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run_here(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Like :meth:`run`, in this process, which has imported everything: for what ends before Ray is needed."""
        out, err = io.StringIO(), io.StringIO()
        command = [str(self.study), *map(str, arguments)]
        with (
            handlers_kept(),
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, self._variables),
            mock.patch.object(sys, "argv", command),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as left,
        ):
            runpy.run_path(str(self.study), run_name="__main__")
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(command, left.value.code, out.getvalue(), err.getvalue())

    def events(self, study: str) -> list[Event]:
        return [event for event, _ in read_events(self.folder / "runs" / study / JOURNAL_FILE)]

    def progress(self, study: str) -> StudyState:
        return StudyState.read(self.folder / "runs" / study)[0]

    def wait_for(self, process: PreloadedProgram, study: str, condition: Callable[[Event], bool]) -> None:
        """Returns once an event of the journal meets the condition, which a running process has to write."""

        def is_there() -> bool:
            assert process.poll() is None, process.communicate()
            return any(condition(event) for event in self.events(study))

        wait_until(is_there, "the event")

    def interrupt_after(
        self, process: PreloadedProgram, study: str, condition: Callable[[Event], bool]
    ) -> str:
        """Sends Ctrl-C once an event of the journal meets the condition; what was printed."""
        self.wait_for(process, study, condition)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_SECONDS)
        return out + err
