"""Printing for people: literally, wrapped between words, and redrawn only where a terminal can do that."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from nfnet_ray.printable import printable

LOG_WIDTH = 160
"""Columns of a table in a log file, where there is no terminal with a width: enough for a whole row."""


def new_console(*, stderr: bool = False) -> Console:
    """A console that prints every text as it is: a ``[`` or a ``:name:`` in a path is not markup.

    Only a terminal is one, whatever FORCE_COLOR says: that asks for colours, and not for a table that is drawn
    again and again into a log file.
    """
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        width=None if is_terminal else LOG_WIDTH,
        force_terminal=is_terminal,
        color_system="standard" if not is_terminal and os.environ.get("FORCE_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )


def can_redraw(console: Console) -> bool:
    """Whether lines can be redrawn in place; if not, as in Emacs' shell or a pipe, each is printed once."""
    return console.is_terminal and console.is_interactive


def say(console: Console, text: str, *, title: str = "") -> None:
    """Prints prose, behind a bold ``title`` if there is one: wrapped between words on a terminal, one line in a log.

    A path or a name that is longer than a line is left whole, for cut in two it could not be copied.
    """
    title = printable(title)
    line = f"{title}: {printable(text)}" if title else printable(text)
    if console.is_terminal:
        line = textwrap.fill(line, console.width, break_long_words=False, break_on_hyphens=False)
    shown = Text(line)
    shown.stylize("bold", 0, len(title))
    console.print(shown, soft_wrap=True)


def say_whole(console: Console, text: str) -> None:
    """Prints a line that a person may copy, such as a command or a path: no line break is inserted."""
    console.print(printable(text), soft_wrap=True)


@contextmanager
def waiting(console: Console, text: str) -> Generator[None]:
    """Shows that something is in progress: a spinner until the block ends, or a line where nothing can be redrawn."""
    if can_redraw(console):
        shape = "dots" if console.encoding.startswith("utf") else "line"
        with console.status(Text(printable(text)), spinner=shape):
            yield
    else:
        say(console, text)
        yield
