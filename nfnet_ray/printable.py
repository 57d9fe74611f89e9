"""Text that is safe to print: names of files, classes and columns may hold whatever a file system or a table allows.

A newline in a name makes two lines of one, an escape code moves the cursor or changes the window's title, a sign that
turns the writing direction shows another name than there is, and a byte that is not UTF-8 cannot be printed at all.
"""

from __future__ import annotations

import os
import shlex
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

# Of category Cf, format characters, these two are spelling: Persian and Hindi words and joined emoji have them.
_JOINERS = frozenset("\u200c\u200d")
# The Unicode standard's general categories: control and format characters, surrogates, line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# How Python's file functions show a byte of a name that is not UTF-8 (PEP 383): U+DC80 to U+DCFF.
_BYTES_AS_SURROGATES = range(0xDC80, 0xDD00)
# Characters of a value in a message of one line.
_LONGEST_SHOWN = 60


def printable(value: object) -> str:
    r"""``str(value)`` in one line: a newline becomes ``\n``, an escape ``\x1b``, a byte that is not UTF-8 ``\xff``.

    Letters, signs and emoji of all scripts stay. Of text that was made printable before, it changes nothing.
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))


def shown(value: object) -> str:
    """``repr`` in one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes out no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def shell_command(words: Sequence[str | os.PathLike[str]]) -> str:
    """A command in one printable line, to be pasted into bash or zsh; each word is quoted where that is needed."""
    return " ".join(_shell_word(os.fspath(word)) for word in words)


def display_path(path: Path) -> str:
    """A path as a person would type it here: relative to the working directory if it is below it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def interpreter() -> str:
    """The Python that runs this, as a person would type it here: ``.venv/bin/python``."""
    python = Path(sys.executable)  # not resolved: the link inside an environment is what makes it one
    return str(python.relative_to(Path.cwd())) if python.is_relative_to(Path.cwd()) else str(python)


def _escaped(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _UNPRINTABLE:
        return character
    code = ord(character)
    if code in _BYTES_AS_SURROGATES:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _shell_word(word: str) -> str:
    if printable(word) == word:
        return shlex.quote(word)
    # Bash and zsh understand these escapes between $' and '.
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(escaped)}'"
