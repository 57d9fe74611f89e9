"""The documentation site is built without a dead link, and needs nothing from elsewhere. About six seconds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.deadlines import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]


def build(repository: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs."""
    [command] = re.findall(r"\$\(python\) (-m sphinx .*)", (REPOSITORY / "Makefile").read_text())
    assert command.endswith(" . build/docs")
    options = [*command.split()[:-1], str(site), "--doctree-dir", f"{site}.trees"]
    return subprocess.run(
        [sys.executable, *options], cwd=repository, capture_output=True, text=True, timeout=HANG_SECONDS
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("docs") / "site"
    built = build(REPOSITORY, site)
    assert (built.returncode, built.stderr) == (0, "")
    return site


class Loaded(HTMLParser):
    """The addresses that a page loads by itself: scripts, style sheets, fonts, images, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") not in {"index", "search", "next", "prev"}:
            self.addresses.append(values.get("href") or "")
        elif tag in {"script", "img", "iframe", "source"} and values.get("src"):
            self.addresses.append(values["src"] or "")


def test_every_document_is_a_page_that_the_navigation_leads_to(site: Path) -> None:
    navigation = (site / "README.html").read_text().partition('<div class="sidebar-tree">')[2]
    documents = [
        path.relative_to(REPOSITORY)
        for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
        if path.name != "README.md"
    ]
    assert len(documents) > 35
    assert [str(path) for path in documents if f'href="{path.with_suffix(".html")}"' not in navigation] == []


def test_a_page_loads_only_what_lies_next_to_it(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        missing = [
            address for address in loaded.addresses if not (page.parent / address.partition("?")[0]).exists()
        ]
        assert missing == [], page
    sheets = [sheet.read_text() for sheet in site.rglob("*.css")]
    assert sheets
    assert [
        address for sheet in sheets for address in re.findall(r"(?:url\(|@import\s)[^;)]*//", sheet)
    ] == []


def test_the_front_page_leads_to_the_readme(site: Path) -> None:
    assert "url=README.html" in (site / "index.html").read_text()


def test_a_dead_link_or_anchor_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(REPOSITORY / "docs" / "conf.py", tmp_path / "docs")
    (tmp_path / "README.md").write_text(
        "# A\n\n[a](docs/gone.md), [b](docs/there.md#gone), [c](#gone-too), [d](docs/there.md#it-is)\n\n"
        "## Documentation\n\n* [There](docs/there.md)\n"
    )
    (tmp_path / "docs" / "there.md").write_text("# There\n\n## It is\n")
    (tmp_path / "docs" / "alone.md").write_text("# No page leads here\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    warnings = [line.rpartition("WARNING: ")[2] for line in built.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 4, built.stderr
    assert {
        part for part in ("gone.md", "'docs/there'", "'gone-too'") for line in warnings if part in line
    } == {
        "gone.md",
        "'docs/there'",
        "'gone-too'",
    }
