"""A command line's parser that says what is wrong in one line, as all other errors of use are said."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from nfnet_ray.printable import printable

EXIT_USER_ERROR = 2


class OneLineParser(argparse.ArgumentParser):
    """Where argparse prints the usage too, this points at ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"{Path(self.prog).name}: {printable(message)}; see --help\n")
