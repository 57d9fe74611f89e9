"""What a terminal shows of the codes that are written to it, and what has scrolled out of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

_CODES = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    """Knows the codes that rich writes: line feeds, wrapping, the cursor up, lines erased."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.scrollback: list[str] = []
        self.lines = [""]
        self.most_lines = 1
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        for code in _CODES.finditer(text):
            numbers, letter, character = code.groups()
            if letter == "A":
                self._row = max(0, self._row - int(numbers or 1))
            elif letter == "K":
                line = self.lines[self._row]
                self.lines[self._row] = "" if numbers == "2" else line[: self._column]
            elif letter:
                assert letter in "hlm", f"a code that this screen does not know: {code[0]!r}"
            elif character == "\r":
                self._column = 0
            elif character == "\n":
                self._line_feed()
            elif character != "\a":
                self._put(character)

    def _put(self, character: str) -> None:
        if self._column == self.columns:
            self._column = 0
            self._line_feed()
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
        self._column += 1

    def _line_feed(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")
        if len(self.lines) > self.rows:
            self.scrollback.append(self.lines.pop(0))
            self._row -= 1
        self.most_lines = max(self.most_lines, len(self.lines))

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


def run_on_terminal(command: Sequence[str], rows: int, columns: int, cwd: Path, **environment: str) -> str:
    """What a command writes to a terminal of that size, until it ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=kept | {"TERM": "xterm-256color"} | environment,
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux' way to say that the last writer is gone
            part = b""
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(60) == 0, written.decode(errors="replace")
    return written.decode()
