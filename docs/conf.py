"""Sphinx's settings for the documentation site: ``make docs``.

The source folder is the repository, so that a link in README.md leads to the same file on GitHub and on the site. The
navigation is README.md's section "Documentation"; nothing is listed twice.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

from sphinx.application import Sphinx

REPOSITORY = Path(__file__).resolve().parents[1]
NAVIGATION = "## Documentation\n"  # the heading in README.md, up to the next one of its level

project = "nfnet_ray"
html_title = "nfnet_ray"
copyright = "the authors of nfnet_ray, Apache-2.0"
root_doc = "README"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
include_patterns = [
    "docs/notebook.ipynb",
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/methods/*.md",
    "tests/README.md",
]
include_patterns += ["tests/fixtures/README.md", "studies/results/README.md"]
# Folders without documents are not searched: .venv alone has 80,000 files.
exclude_patterns = [
    folder.name
    for folder in REPOSITORY.iterdir()
    if folder.is_dir() and folder.name not in {"docs", "tests", "studies"}
]
nitpicky = True
highlight_language = "none"  # of blocks without a language: commands and what they print
myst_heading_anchors = 4  # GitHub's anchors: a link to one that is missing fails the build

html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_domain_indices = False
html_use_index = False


def pages_of(text: str) -> dict[str, list[str]]:
    """The documents that a Markdown text links to, in its order, below the heading (###) that each is under."""
    pages: dict[str, list[str]] = {}
    caption = ""
    for line in text.splitlines():
        if line.startswith("### "):
            caption = line.removeprefix("### ")
        for page in re.findall(r"\]\(([\w./]+)\.(?:md|ipynb)\)", line):
            if page not in itertools.chain.from_iterable(pages.values()):
                pages.setdefault(caption, []).append(page)
    return pages


def toctrees(text: str) -> str:
    """The hidden tables of contents from which Sphinx makes the navigation."""
    return "\n\n".join(
        "\n".join(["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), *pages, "```"])
        for caption, pages in pages_of(text).items()
    )


def of_notebook(text: str) -> str:
    """A notebook with its outputs as Markdown; nothing is run."""
    parts = []
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append("".join(cell["source"]))
            continue
        parts.append(f"```python\n{''.join(cell['source'])}\n```")
        for output in cell["outputs"]:
            data = output.get("data") or {"text/plain": output.get("text", "")}
            kind = next(kind for kind in ("image/svg+xml", "text/html", "text/plain") if kind in data)
            fence = "```text" if kind == "text/plain" else "```{raw} html"
            parts.append(f"{fence}\n{''.join(data[kind])}\n```")
    return "\n\n".join(parts)


def add_navigation(_: Sphinx, page: str, source: list[str]) -> None:
    [text] = source
    if page == "docs/notebook":
        text = of_notebook(text)
    if page == "README":
        section = text.partition(NAVIGATION)[2].partition("\n## ")[0]
        text += f"\n\n{toctrees(section)}\n"
    elif page == "docs/methods/README":
        text += f"\n\n{toctrees(text)}\n"
    # GitHub draws these; here they are text, as a script that draws them would have to come from elsewhere.
    source[0] = text.replace("```mermaid\n", "```text\n")


def add_front_page(app: Sphinx, failure: Exception | None) -> None:
    """index.html leads to README.html."""
    if failure is None:
        redirect = (
            '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=README.html">'
        )
        (Path(app.outdir) / "index.html").write_text(
            f'{redirect}<title>nfnet_ray</title><a href="README.html">nfnet_ray</a>\n', encoding="utf-8"
        )


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
    app.connect("build-finished", add_front_page)
