"""The command line: ``python -m nfnet_ray.models`` lists the models, ``python -m nfnet_ray.models NAME`` prints one."""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import argparse
import sys
from collections.abc import Sequence

from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.errors import UserError
from nfnet_ray.models.catalogue import get_model
from nfnet_ray.models.tables import block_table, list_table, own_summary, summary
from nfnet_ray.models.variants import OVERRIDE_FORM, OVERRIDES, Variant
from nfnet_ray.recipe import is_import_path
from nfnet_ray.settings import each_once, parse_assignment

PROGRAM = "python -m nfnet_ray.models"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table or the page. Returns the exit code: 0, or 2 for a user's error."""
    options = _parser().parse_args(arguments)
    return exit_code_of(PROGRAM, lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROGRAM,
        description="List all networks, or print one: its blocks and what they cost.",
        epilog="""\
examples:
  python -m nfnet_ray.models
  python -m nfnet_ray.models nfnet_f0 --size 256
  python -m nfnet_ray.models nfnet_f0 --set width=[128,256,768,768] --set group_width=[64,64,64,64]
""",
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a network, or module:function of one of your own (default: list all)",
    )
    parser.add_argument(
        "--classes", type=positive, default=1000, metavar="K",
        help="number of classes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=positive, metavar="PIXELS",
        help="side of an image, for the multiply-adds (default: the network's training size)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help=f"change a field of the architecture: {', '.join(OVERRIDES)}; may be repeated",
    )  # fmt: skip
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.name is None:
        given = {"--set": options.settings, "--size": options.size}
        for flag, value in given.items():
            if value:
                raise UserError(f"{flag} needs the name of a model; without {flag} all of them are listed")
        print(list_table(options.classes))
        return
    overrides = each_once(parse_assignment(text, OVERRIDE_FORM) for text in options.settings)
    if is_import_path(options.name):
        print(own_summary(options.name, overrides, options.size, options.classes))
        return
    model = get_model(options.name, overrides)
    size = options.size or model.train_size
    if isinstance(model, Variant):
        print(block_table(model, size, options.classes))
    print(summary(options.name, overrides, size, options.classes))


if __name__ == "__main__":
    sys.exit(main())
