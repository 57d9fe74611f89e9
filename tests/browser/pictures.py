"""Makes the pictures of docs/gallery.md and README.md, in docs/pictures: ``python -m tests.browser.pictures``.

They show the reports of two studies under ``runs``, which have to be there first:

    python studies/agc_sweep.py --name agc_sweep
    python studies/efficientnet_baselines.py --name efficientnet_baselines

With ``--storage`` the studies are those of another folder.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dashboards.report import write_report
from tests.browser.chromium import chromium, emulate, missing, resize
from tests.deadlines import HANG_SECONDS

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY / "docs" / "pictures"
BYTES_AT_MOST = 100_000  # the repository stays small: there are five of them
COLORS = 160  # of a palette
MARGIN = 20  # pixels


@dataclass(frozen=True)
class Picture:
    """A part of a report: from the beginning of the first heading's section to the end of the last one's."""

    name: str
    study: str
    first: str
    last: str
    width: int = 1280
    scheme: str = "light"


GALLERY = (
    Picture("answer", "agc_sweep", "", "Accuracy of every setting"),
    Picture("curves", "agc_sweep", "Accuracy against training time", "Accuracy against training time"),
    Picture("clipping", "agc_sweep", "What AGC clips", "What AGC clips", scheme="dark"),
    Picture("trials", "agc_sweep", "All 14 trials", "All 14 trials"),
    Picture("families", "efficientnet_baselines", "", "Accuracy against training time", width=1000),
)

# The box of a picture in pixels of the page: its top and bottom.
_BOX = """
const sections = [...document.querySelectorAll("main > section")];
const of = heading => sections.find(each => each.querySelector("h2")?.innerText === heading);
const [first, last] = arguments;
const top = first ? of(first).getBoundingClientRect().top : 0;
return [top + scrollY, of(last).getBoundingClientRect().bottom + scrollY];
"""


def photograph(driver: WebDriver, picture: Picture) -> bytes:
    """A PNG of the picture on the page that is open."""
    emulate(driver, scheme=picture.scheme)
    resize(driver, picture.width)
    driver.execute_script("drawAll()")
    top, bottom = driver.execute_script(_BOX, picture.first, picture.last)
    resize(driver, picture.width, round(bottom) + 2 * MARGIN)
    whole = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    part = whole.crop((0, max(0, round(top) - MARGIN), picture.width, round(bottom) + MARGIN))
    file = io.BytesIO()
    with_palette(part).save(file, "PNG", optimize=True)
    return file.getvalue()


def with_palette(picture: Image.Image) -> Image.Image:
    """The picture in its most frequent greys and its most frequent other colours, which are rare and thin.

    A method that averages colours would change those of curves.
    """
    found = sorted(picture.getcolors(picture.width * picture.height) or [], reverse=True)
    greys = [color for _, color in found if max(color) - min(color) < 12]
    others = [color for _, color in found if max(color) - min(color) >= 12]
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        [channel for color in (*greys[: COLORS // 2], *others[: COLORS // 2]) for channel in color]
    )
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def main(arguments: Sequence[str] | None = None) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    parser = argparse.ArgumentParser(
        prog="python -m tests.browser.pictures", description="Make the gallery's pictures."
    )
    parser.add_argument("--storage", type=Path, default=REPOSITORY / "runs", help="the folder of the studies")
    options = parser.parse_args(arguments)
    if missing():
        parser.error(str(missing()))
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as driver:
        for study in dict.fromkeys(picture.study for picture in GALLERY):
            driver.get(write_report(options.storage / study, Path(folder) / f"{study}.html").as_uri())
            WebDriverWait(driver, HANG_SECONDS).until(
                lambda page: page.execute_script("return charts.every(chart => chart.drawn)")
            )
            for picture in GALLERY:
                if picture.study == study:
                    png = photograph(driver, picture)
                    print(f"docs/pictures/{picture.name}.png: {len(png):,} bytes")
                    if len(png) > BYTES_AT_MOST:
                        parser.error(f"a picture has at most {BYTES_AT_MOST:,} bytes")
                    (PICTURES / f"{picture.name}.png").write_bytes(png)


if __name__ == "__main__":
    main()
