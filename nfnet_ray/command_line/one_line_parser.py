"""An argument parser whose errors are one line, like all other errors for users."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import NoReturn

from nfnet_ray.printable import printable

EXIT_USER_ERROR = 2
_UNRECOGNISED = "unrecognized arguments: "


class OneLineParser(argparse.ArgumentParser):
    """In place of the usage, which argparse prints with every error, it points to a similar flag or to ``--help``."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix(_UNRECOGNISED).split() if message.startswith(_UNRECOGNISED) else []
        hint = self.similar(unknown[0].partition("=")[0]) if unknown and unknown[0].startswith("--") else None
        self.exit(EXIT_USER_ERROR, f"{Path(self.prog).name}: {printable(message)}; {hint or 'see --help'}\n")

    def similar(self, flag: str) -> str | None:
        """What may be meant by a flag that does not exist: ``did you mean --plan?``, or None."""
        found = difflib.get_close_matches(flag, _flags(self), n=1, cutoff=0.75)
        return f"did you mean {found[0]}?" if found else None


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a parser and of its commands, whose unknown flags it reports."""
    flags: list[str] = []
    for action in parser._actions:
        flags += [flag for flag in action.option_strings if flag.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            flags += [flag for command in action.choices.values() for flag in _flags(command)]
    return flags
