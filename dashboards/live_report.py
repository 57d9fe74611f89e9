"""Rewrites the report of a running study in a thread whose failures never reach the study.

A report of 1,000 trials takes seconds and hundreds of megabytes, so another process writes the report of a long
journal.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dashboards.report import write_report
from nfnet_ray.tracking.journal import JOURNAL_FILE

logger = logging.getLogger(__name__)

# At most a tenth of the time is spent on reports.
SECONDS_BETWEEN_REPORTS = 60.0
_LARGEST_SHARE = 0.1
# The length of a journal from which another process writes the report (a hundred trials of a hundred epochs have 7 MB).
# The process takes seconds to import what it needs, but does not burden the driver's interpreter and memory.
LONG_JOURNAL_BYTES = 4_000_000
_NICENESS = 10
_SECONDS_BETWEEN_LOOKS = 0.2
# The longest wait at the end for a report that is being written, on a storage that may no longer answer.
_CLOSING_SECONDS = 30.0


class LiveReport:
    """Writes the report soon after the first :meth:`wake`, and after later ones at most once a minute.

    A report that cannot be written is retried with the next one. Used as a context manager; after its exit nothing is
    written.
    """

    def __init__(
        self,
        directory: Path,
        write: Callable[[Path], object] | None = None,
        seconds_between: float = SECONDS_BETWEEN_REPORTS,
    ) -> None:
        self._directory, self._seconds_between = directory, seconds_between
        self._write = write or self._write_here_or_apart
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-report", daemon=True)

    def __enter__(self) -> LiveReport:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._wake.set()
        self._thread.join(_CLOSING_SECONDS)

    def wake(self) -> None:
        """Signals that the study has changed. Returns at once."""
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._closed.is_set():
                return
            self._wake.clear()
            began = time.monotonic()
            try:
                self._write(self._directory)
            except Exception:  # whatever the error, the study continues, and writes a report at its end
                logger.debug("no report of %s", self._directory, exc_info=True)
            seconds = time.monotonic() - began
            self._closed.wait(max(self._seconds_between, seconds / _LARGEST_SHARE))

    def _write_here_or_apart(self, directory: Path) -> None:
        if (directory / JOURNAL_FILE).stat().st_size < LONG_JOURNAL_BYTES:
            write_report(directory)
        else:
            self._write_apart(directory)

    def _write_apart(self, directory: Path) -> None:
        """Makes a process of low priority write the report; the process ends with the context."""
        command = [sys.executable, "-m", "dashboards.report", str(directory.resolve())]
        nothing = subprocess.DEVNULL
        # In a separate session, so that Ctrl-C does not reach it.
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
        )
        try:
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
            while process.poll() is None and not self._closed.wait(_SECONDS_BETWEEN_LOOKS):
                pass
        finally:
            process.kill()
            process.wait()
