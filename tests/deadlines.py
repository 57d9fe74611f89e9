"""How long a test waits for something before it takes it for hung."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_SECONDS = 900.0
"""Many times what anything here takes, on a machine that several other programs keep busy: no test measures speed."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Returns once the condition holds; fails after :data:`HANG_SECONDS`, naming ``what`` it waited for."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {HANG_SECONDS:.0f} s for {what}"
        time.sleep(0.05)
