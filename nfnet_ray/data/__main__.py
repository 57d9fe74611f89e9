"""The command line: ``python -m nfnet_ray.data sheet OUT [IMAGE]``."""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import sys
from collections.abc import Sequence
from pathlib import Path

from nfnet_ray.command_line.arguments import given_path
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.printable import printable

PROGRAM = "python -m nfnet_ray.data"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0, or 2 for a user's error."""
    parser = OneLineParser(prog=PROGRAM, description="Draw what augmentation does to an image.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    sheet = commands.add_parser(
        "sheet",
        help="draw every operation of RandAugment at three magnitudes, MixUp and CutMix",
        description="Draw every operation of RandAugment at three magnitudes, MixUp and CutMix.",
        epilog="example:\n  python -m nfnet_ray.data sheet sheet.png photo.jpg",
    )
    sheet.add_argument(
        "out", type=given_path, metavar="OUT", help="the picture to write: NAME.jpg or NAME.png"
    )
    sheet.add_argument(
        "image",
        type=given_path,
        nargs="?",
        metavar="IMAGE",
        help="a photograph (default: scikit-learn's flower)",
    )
    options = parser.parse_args(arguments)
    return exit_code_of(PROGRAM, lambda: _write_sheet(options.out, options.image))


def _write_sheet(out: Path, image: Path | None) -> None:
    from nfnet_ray.data.augmentation.sheet import write_sheet  # here, so that --help is quick

    write_sheet(out, image)
    print(f"wrote {printable(out)}")


if __name__ == "__main__":
    sys.exit(main())
