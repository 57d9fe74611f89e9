"""Debian's Chromium, driven by Selenium through Debian's chromedriver."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from tests.deadlines import HANG_SECONDS

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-color-profile=srgb"),
)


def missing() -> str | None:
    """Why no page can be shown on this machine; None: one can."""
    programs = ["chromium", "chromedriver"]
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        return f"no {' and no '.join(absent)} on this machine: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium in this environment: deploy/install.sh dev"
    return None


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 900) -> Generator[WebDriver]:
    """A browser with a window of this size in pixels, a profile of its own, and a record of its console."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        for option in (*_OPTIONS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(option)
        # Selenium looks for a driver of its own, over the network, where none is named.
        driver = Chrome(options, Service(shutil.which("chromedriver")))
        try:
            driver.set_page_load_timeout(HANG_SECONDS)
            driver.set_script_timeout(HANG_SECONDS)
            yield driver
        finally:
            driver.quit()


def emulate(driver: WebDriver, media: str = "screen", scheme: str = "light") -> None:
    """Show the page on ``media`` to a reader who prefers a ``light`` or ``dark`` scheme; its scripts have been told."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    # A change of media is an event of the next frame, which comes before that frame's callbacks.
    driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    )


def resize(driver: WebDriver, width: int, height: int = 900) -> None:
    """Lay the page out ``width`` pixels wide; a window cannot be as narrow as a phone."""
    size: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
