"""The documents are wrapped, and every file of ours that they name or link to exists. Takes less than a second."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.quick import draw_rooms

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(path for top in ("docs", "deploy", "tests") for path in (REPOSITORY / top).rglob("*.md")),
    ]
)
LONGEST_LINE = 120  # so that a diff shows the sentence that changed
# Files of other projects that the method cards name.
OF_OTHERS = {
    "models/nfnet/checkpoints.py",
    "models/official/efficientnet/README.md",
    "efficientnet/utils.py",
    "efficientnetv2/README.md",
}

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY))
)


def long_lines(text: str) -> list[int]:
    """Numbers of the lines that should be wrapped: too long, and neither of a table, of code nor one long link."""
    lines = text.splitlines()
    found = []
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        if block.type == "inline" and block.map and not lines[block.map[0]].lstrip().startswith("|"):
            found += [
                number
                for number, line in enumerate(lines[slice(*block.map)], block.map[0] + 1)
                if len(line) > LONGEST_LINE and len(line.split()) > 2
            ]
    return found


@each_document
def test_text_is_wrapped(document: Path) -> None:
    assert long_lines(document.read_text()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short\n\n" + "word " * 30, [3]),
        ("* short\n* " + "word " * 30, [2]),
        ("| a |\n| --- |\n| " + "word " * 30 + "|", []),
        ("```\n" + "word " * 30 + "\n```", []),
        ("    " + "word " * 30, []),
        ("[a](https://" + "x" * 120 + ")", []),
    ],
)
def test_a_long_line_is_found(text: str, expected: list[int]) -> None:
    assert long_lines(text) == expected


def test_picture_of_the_rooms_is_that_of_the_imports() -> None:
    """If not: python -m tests.quick.draw_rooms."""
    document = draw_rooms.DOCUMENT.read_text()
    assert draw_rooms.redrawn(document) == document


def test_an_arrow_that_others_make_superfluous_is_not_drawn() -> None:
    imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert draw_rooms.without_detours(imports) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}


def folders_of_the_tree(text: str) -> set[str]:
    """The folders that a drawn tree lists; two spaces are a level, so ``a/`` and ``  b/`` below it are a and a/b."""
    above: list[str] = []
    found = set()
    for spaces, name in re.findall(r"^( *)([\w.-]+)/(?:\s|$)", text, re.MULTILINE):
        above[len(spaces) // 2 :] = [name]
        found.add("/".join(above))
    return found


def test_a_tree_is_read() -> None:
    assert folders_of_the_tree("a/   one\n  b.py  two\n  c/\n    d/  three\n  e/\nf/") == {
        *("a", "a/c", "a/c/d", "a/e", "f")
    }


def test_tree_of_the_architecture_lists_every_package() -> None:
    packages = {
        str(path.parent.relative_to(REPOSITORY))
        for top in ("nfnet_ray", "studies", "data_prep", "dashboards", "benchmarks")
        for path in (REPOSITORY / top).rglob("__init__.py")
    }
    listed = folders_of_the_tree(draw_rooms.DOCUMENT.read_text().split("```")[1])
    assert packages - listed == set()
    assert [folder for folder in sorted(listed) if not (REPOSITORY / folder).is_dir()] == []


@each_document
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    files = [target for target in targets if "://" not in target]
    assert [file for file in files if not (document.parent / file).exists()] == []


@each_document
def test_files_named_in_the_text_exist(document: Path) -> None:
    """`training/loop.py` is the end of some file's path; what has no folder in it may be another project's."""
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|c|sh|toml|yaml|csv|md))`", document.read_text()))
    missing = {
        name
        for name in named - OF_OTHERS
        if not any(REPOSITORY.glob(name)) and not any(REPOSITORY.glob(f"[a-z]*/**/{name}"))
    }
    assert missing == set()
