"""``python -m dashboards COMMAND``: the programs of this folder, each also as ``python -m dashboards.COMMAND``."""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first, as the following imports take seconds

import importlib
import sys
from collections.abc import Sequence

from nfnet_ray.command_line.one_line_parser import OneLineParser

PROGRAM = "python -m dashboards"
COMMANDS = {
    "report": "write the report of a study as an HTML file, or serve it while the study runs; compare several",
    "compare": "open MLflow's UI on the trials of a study",
    "signal_propagation": "measure the activations of a network with random weights, and draw them",
}
"""{name of a module that has a ``main``: description}."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one program. Returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = OneLineParser(
        prog=PROGRAM,
        description="Show the results of studies, and how a signal passes through a network.",
        epilog=f"examples:\n  {PROGRAM} report first_try\n  {PROGRAM} report --help",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, meaning in COMMANDS.items():
        commands.add_parser(name, help=meaning)
    if not given or given[0] not in COMMANDS:
        parser.parse_args(given)  # prints a help text or an error
    code: int = importlib.import_module(f"dashboards.{given[0]}").main(given[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
