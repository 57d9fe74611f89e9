"""The command line of the benchmarks that have a row for each number of trials."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.record import Row, append_rows, hardware
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser

CPU = torch.device("cpu")


def main(description: str | None, measure: Callable[[int], Row], results: Path) -> None:
    """Measures a study of each number of trials, prints the rows, and appends them to the ``results``."""
    parser = OneLineParser(description=description)
    parser.add_argument(
        "trials",
        nargs="*",
        type=positive,
        default=[200, 1000],
        help="numbers of trials, a row for each (default: %(default)s)",
    )
    about: Row = {"hardware": hardware(CPU, threads=1), "python": platform.python_version()}
    append_rows(results, [measure(trials) | about for trials in parser.parse_args().trials])
