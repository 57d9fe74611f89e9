"""How help texts are laid out: prose filled to the width of the terminal, examples and tables as they are."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import textwrap
from pathlib import Path

from nfnet_ray.printable import display_path

_WIDEST = 100
"""Columns. Longer lines are hard to read, however wide the terminal is."""
_NARROWEST = 40
_ITEM = re.compile(r"[*-] ")
_MARKUP = re.compile(r":[a-z]+:`~?([^`]+)`|``([^`]+)``|(?<![\w*])\*(\w[^*\n]*)\*(?![\w*])")
"""The markup of docstrings (references, code, emphasis), which a terminal does not show."""


def help_width() -> int:
    """Columns of a help text."""
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns - 2))


def filled(text: str, width: int, indent: str = "", *, hanging: str | None = None) -> str:
    """A paragraph in lines of at most ``width`` columns, in which no word, path or flag is cut in two.

    ``indent`` comes before the first line, and ``hanging`` before the others, which is the same by default.
    """
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs and list items, and leaves lines that are indented, such as examples, as they are.

    A default that is a list is shown as a person types it, and a path as short as it is here.
    """

    def __init__(
        self, prog: str, indent_increment: int = 2, max_help_position: int = 24, width: int | None = None
    ) -> None:
        super().__init__(prog, indent_increment, max_help_position, width or help_width())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = re.split(r"\n[ \t]*\n", without_markup(text.strip("\n")))
        return "\n\n".join(_filled_block(block, width, indent) for block in blocks)

    def _expand_help(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        if isinstance(action.default, list | tuple):
            shown.default = " ".join(map(str, action.default))
        elif isinstance(action.default, Path):
            shown.default = display_path(action.default) if action.default.is_absolute() else action.default
        return super()._expand_help(shown)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return filled(text, width).splitlines()


def without_markup(text: str) -> str:
    """A docstring as a terminal shows it.

    >>> without_markup("*Writing*: :class:`~nfnet_ray.recipe.Recipe` and ``--plan``, 2 * 3 * 4")
    'Writing: nfnet_ray.recipe.Recipe and --plan, 2 * 3 * 4'
    """
    return _MARKUP.sub(lambda match: match[1] or match[2] or match[3], text)


def _filled_block(block: str, width: int, indent: str) -> str:
    """Lines between two empty ones: paragraphs, items whose further lines are indented, and lines to be left alone."""
    parts: list[tuple[str, str]] = []  # (what hangs before further lines, or "verbatim"; text)
    for line in block.rstrip().splitlines():
        kind, text = parts[-1] if parts else ("", "")
        if _ITEM.match(line):
            parts.append(("item", line))
        elif line.startswith(" ") and kind != "item":
            parts.append(("verbatim", line))
        elif parts and kind != "verbatim":
            parts[-1] = (kind, f"{text} {line}")
        else:
            parts.append(("prose", line))
    hanging = {"item": f"{indent}  ", "prose": indent}
    return "\n".join(
        f"{indent}{text}" if kind == "verbatim" else filled(text, width, indent, hanging=hanging[kind])
        for kind, text in parts
    )
