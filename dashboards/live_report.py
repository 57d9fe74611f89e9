"""The report of a running study, rewritten by a thread whose failures never reach the study."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dashboards.report import write_report

logger = logging.getLogger(__name__)

# A report of 1,000 trials takes seconds of the driver's time: at most a tenth of the time is spent on reports.
SECONDS_BETWEEN_REPORTS = 60.0
_LARGEST_SHARE = 0.1
# How long to wait at the end for a report that is being written, on a storage that may no longer answer.
_CLOSING_SECONDS = 30.0


class LiveReport:
    """Writes the report soon after the first :meth:`wake`, and after later ones at most once a minute.

    A report that cannot be written is tried again with the next one. Use it as a context; once that is left, nobody
    writes any more.
    """

    def __init__(
        self,
        directory: Path,
        write: Callable[[Path], object] = write_report,
        seconds_between: float = SECONDS_BETWEEN_REPORTS,
    ) -> None:
        self._directory, self._write, self._seconds_between = directory, write, seconds_between
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
        """Says that the study has something new. Returns at once."""
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
            except Exception:  # whatever it is, the study continues, and writes a report at its end
                logger.debug("no report of %s", self._directory, exc_info=True)
            seconds = time.monotonic() - began
            self._closed.wait(max(self._seconds_between, seconds / _LARGEST_SHARE))
