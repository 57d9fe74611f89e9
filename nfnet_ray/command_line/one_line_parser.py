"""An argument parser whose errors are one line, like all other errors for users, and whose help texts are filled."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any, NoReturn

from nfnet_ray.command_line.arguments import shortened
from nfnet_ray.command_line.help_formatter import HelpFormatter
from nfnet_ray.printable import printable

EXIT_USER_ERROR = 2
_SIMILAR = 0.75
"""difflib's ratio of a word and what may be meant by it."""
_UNRECOGNISED = "unrecognized arguments: "
_MISSING = "the following arguments are required: "


class OneLineParser(argparse.ArgumentParser):
    """In place of the usage, which argparse prints with every error, it points to a similar flag or to ``--help``.

    Without a ``prog`` a module that was started by its name is called ``python -m NAME``.
    """

    def __init__(self, **keywords: Any) -> None:
        module = getattr(sys.modules["__main__"], "__spec__", None)
        program: dict[str, Any] = (
            {"prog": f"python -m {module.name.removesuffix('.__main__')}"} if module else {}
        )
        super().__init__(**program | {"formatter_class": HelpFormatter} | keywords)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = list(map(str, action.choices))
        found = difflib.get_close_matches(str(value), known, n=1, cutoff=_SIMILAR)
        hint = f"did you mean {found[0]}?" if found else f"use one of {', '.join(known)}"
        raise argparse.ArgumentError(action, f"{shortened(str(value))} is not known: {hint}")

    def error(self, message: str) -> NoReturn:
        if message.startswith(_MISSING):
            missing = message.removeprefix(_MISSING).split(", ")
            are = "are" if len(missing) > 1 else "is"
            message = f"{' and '.join(missing)} {are} missing{self._commands_in_words()}"
        unknown = message.removeprefix(_UNRECOGNISED).split() if message.startswith(_UNRECOGNISED) else []
        hint = self.similar(unknown[0].partition("=")[0]) if unknown and unknown[0].startswith("--") else None
        self.exit(EXIT_USER_ERROR, f"{Path(self.prog).name}: {printable(message)}; {hint or 'see --help'}\n")

    def _commands_in_words(self) -> str:
        found = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return f", which is one of {', '.join(found[0].choices)}" if found else ""

    def similar(self, flag: str) -> str | None:
        """A hint for a flag that does not exist: ``did you mean --plan?``, or None."""
        found = difflib.get_close_matches(flag, _flags(self), n=1, cutoff=_SIMILAR)
        return f"did you mean {found[0]}?" if found else None


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a parser and of its commands, whose unknown flags it reports."""
    flags: list[str] = []
    for action in parser._actions:
        flags += [flag for flag in action.option_strings if flag.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            flags += [flag for command in action.choices.values() for flag in _flags(command)]
    return flags
