"""An argument parser whose errors are one line, like all other errors for users."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from nfnet_ray.printable import printable

EXIT_USER_ERROR = 2


class OneLineParser(argparse.ArgumentParser):
    """In place of the usage, which argparse prints with every error, it points to ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"{Path(self.prog).name}: {printable(message)}; see --help\n")
