"""Chromium, as the one who reads our pages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deadlines import HANG_SECONDS

_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1400,1200"),
)


def page_after_scripts(url: str, profile: Path, virtual_seconds: int = 10) -> str:
    """The HTML of a page once its scripts have run; skips the test where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine, which would show the page")
    command = [
        *(browser, *_OPTIONS, f"--user-data-dir={profile}"),
        *(f"--virtual-time-budget={1000 * virtual_seconds}", "--dump-dom", url),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    return done.stdout
