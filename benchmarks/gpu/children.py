"""Child processes with a time limit each: what they have measured is kept, however they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.gpu.rows import ERROR, OVER_ITS_LIMIT, Row, read_rows

SECONDS_BETWEEN_LOOKS = 0.05


def ready_path(rows: Path) -> Path:
    """The file that a child makes when it waits to be released."""
    return rows.with_suffix(".ready")


class Child:
    """A process of ``part`` that appends rows to a file in ``folder``.

    It is the first of its process group, and is in the session of this process: whoever ends the session ends it too.
    ``command`` is given the file with ``--rows``.
    """

    def __init__(
        self, part: str, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.part, self.name = part, name
        self.rows_path = folder / f"{name}.jsonl"
        self._errors_path = folder / f"{name}.stderr"
        with self._errors_path.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, "--rows", str(self.rows_path)],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                env={**os.environ, **environment},
                process_group=0,
            )

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def is_ready(self) -> bool:
        """Whether it waits to be released, or has ended without."""
        return ready_path(self.rows_path).exists() or self.is_over

    def release(self) -> None:
        """Lets a child continue that waits for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def pause(self) -> None:
        """Stops it where it is, with what it has started, until :meth:`resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it continue after :meth:`pause`."""
        self._signal(signal.SIGCONT)

    def finish(self, limit_seconds: float) -> list[Row]:
        """Waits for its end, but no longer than that. Its rows, and one more that says how it ended if not well."""
        deadline = time.monotonic() + limit_seconds
        while not self.is_over and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        is_over = self.is_over
        self.kill()
        rows, begun = read_rows(self.rows_path)
        case = begun or self.name
        if not is_over:
            last = f"{limit_seconds:.0f} s; its last line: {self._last_line()}"
            rows.append(
                {"part": self.part, "case": case, "quantity": OVER_ITS_LIMIT, "value": last, "unit": ""}
            )
        elif self._process.returncode:
            last = f"exit code {self._process.returncode}: {self._last_line()}"
            rows.append({"part": self.part, "case": case, "quantity": ERROR, "value": last, "unit": ""})
        return rows

    def kill(self) -> None:
        """Ends it and what it has started."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def errors(self) -> str:
        """What it wrote to stdout and stderr."""
        return self._errors_path.read_text(errors="replace")

    def _last_line(self) -> str:
        lines = [line.strip() for line in self.errors().splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Children:
    """All children of a run; at the end of the ``with`` none of them is left."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._started: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._started:
            child.kill()

    def start(self, part: str, name: str, command: Sequence[str]) -> Child:
        """Starts one; ``name`` is unique."""
        child = Child(part, name, command, self._folder, self._environment)
        self._started.append(child)
        return child


def wait_until_ready(children: Sequence[Child], limit_seconds: float) -> None:
    """Waits until each of them is ready or over, but no longer than that."""
    deadline = time.monotonic() + limit_seconds
    while not all(child.is_ready for child in children) and time.monotonic() < deadline:
        time.sleep(SECONDS_BETWEEN_LOOKS)
