"""The command line: ``python -m data_prep convert SOURCE OUT``, and five more commands."""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import argparse
import sys
from collections.abc import Sequence

from data_prep.convert_command import OUT_STARTS, add_convert, number_of_threads, print_dataset
from nfnet_ray.cluster.connection.job import from_home
from nfnet_ray.command_line.arguments import given_path, given_text, positive
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words
from nfnet_ray.processor import available_cpus

PROGRAM = "python -m data_prep"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 for an error that a person can put right, 130 for Ctrl-C, 143 for SIGTERM.
    """
    options = _parser().parse_args(arguments)
    # A scheduler's SIGTERM would end Python on the spot and leave unfinished files.
    return exit_code_of(
        PROGRAM,
        lambda: _run(options),
        when_stopped="stopped; nothing was written",
        sigterm_has_its_own_code=True,
    )


def _run(options: argparse.Namespace) -> None:
    try:
        options.run(options)
    except OSError as error:  # such as Parquet's, which name no file: a damaged source is no bug
        said = UserError(f"{error.filename}: {in_words(error)}" if error.filename else in_words(error))
        said.__notes__ = list(getattr(error, "__notes__", ()))
        raise said from error


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(  # and so are those of its commands
        prog=PROGRAM,
        description="Convert images into data sets that load fast in training, and check, describe and measure them.",
        epilog="""\
examples:
  python -m data_prep convert photos/ data/photos
  python -m data_prep info data/photos --sheet classes.png
  python -m data_prep verify data/photos""",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_convert(commands)
    _add_digits(commands)
    _add_verify(commands)
    _add_info(commands)
    _add_fetch(commands)
    _add_doctor(commands)
    return parser


def _add_digits(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    digits = commands.add_parser(
        "digits",
        help="write scikit-learn's handwritten digits as a data set",
        description="Write the 1,797 handwritten digits that come with scikit-learn as a data set, enlarged to 32x32"
        " pixels: 1,437 images for training and 360 for validation.",
    )
    digits.add_argument("out", type=given_path, metavar="OUT", help=f"the folder to create; {OUT_STARTS}")
    digits.set_defaults(run=_digits)


def _add_verify(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    verify = commands.add_parser(
        "verify",
        help="check every byte of a data set against its manifest",
        description="Check the header, records and manifest of a data set, and each image's stored bytes against the"
        " hash that was taken when it was written, and print what is damaged. The exit code is 0 if every byte is as it"
        " was written, and 2 if something is damaged.",
        epilog="example:\n  python -m data_prep verify data/imagenet --workers 16",
    )
    _add_dataset(verify)
    verify.add_argument("--decode", action="store_true", help="also decode every image (much slower)")
    verify.add_argument(
        "--limit", type=positive, default=20, metavar="N",
        help="print at most N problems (default: %(default)s)",
    )  # fmt: skip
    verify.add_argument(
        "--workers", type=number_of_threads, default=available_cpus(), metavar="N",
        help="number of threads (default: one per core, here %(default)s)",
    )  # fmt: skip
    verify.set_defaults(run=_verify)


def _add_info(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    info = commands.add_parser(
        "info",
        help="summarise a data set, and draw its classes",
        description="Print what is in a data set: its images, classes and sizes, how it was written, and duplicates."
        " With --sheet, also draw the first images of each class.",
        epilog="example:\n  python -m data_prep info data/photos --sheet classes.png",
    )
    _add_dataset(info)
    info.add_argument(
        "--sheet",
        type=given_path,
        metavar="PICTURE",
        help="draw the first images of up to 100 classes into this file, NAME.png or NAME.jpg",
    )
    info.set_defaults(run=_info)


def _add_fetch(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="download CIFAR-10 or Imagenette, and check it",
        description="Download a data set from its publisher, check it against the known checksum, and unpack it if"
        " needed. The same command resumes a download that was interrupted.",
        epilog="example:\n  python -m data_prep fetch cifar10 downloads",
    )
    fetch.add_argument(
        "name", choices=("cifar10", "imagenette"), metavar="NAME", help="the data set: cifar10 or imagenette"
    )
    fetch.add_argument("out", type=given_path, metavar="OUT_DIR", help="the folder to put it in")
    fetch.add_argument(
        "--size", choices=("160", "320", "full"), default="320",
        help="Imagenette's shorter side in pixels (default: %(default)s)",
    )  # fmt: skip
    fetch.add_argument(
        "--url",
        type=given_text,
        help="download from this mirror (default: the publisher); the checksum has to be the same",
    )
    fetch.set_defaults(run=_fetch)


def _add_doctor(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="measure what limits the loading of a data set on this machine",
        description="Measure the disk, the page cache, decoding on a core and the training loader for ten seconds, and"
        " say which is the bottleneck. With --model, also say whether this machine can feed that network on a number of"
        " GPUs.",
        epilog="example:\n  python -m data_prep doctor data/imagenet --model nfnet_f0 --gpus 8",
    )
    _add_dataset(doctor)
    doctor.add_argument(
        "--model",
        type=given_text,
        metavar="NAME",
        help="the network to feed; python -m nfnet_ray.models lists them",
    )
    doctor.add_argument(
        "--gpus", type=positive, default=1, metavar="N", help="number of GPUs (default: %(default)s)"
    )
    doctor.add_argument(
        "--gpu-images-per-second", type=positive, metavar="X",
        help="how many images per second one GPU trains (default: measured on this machine's GPU; without one, the"
        " published speed of a V100)",
    )  # fmt: skip
    doctor.add_argument(
        "--workers", type=number_of_threads, default=available_cpus(), metavar="N",
        help="number of threads of the loader (default: one per core, here %(default)s)",
    )  # fmt: skip
    doctor.set_defaults(run=_doctor)


def _add_dataset(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "path",
        type=given_path,
        metavar="DATA",
        help=f"the data set, named as it was for convert: NAME.beton, or a folder; {OUT_STARTS}",
    )


def _doctor(options: argparse.Namespace) -> None:
    from data_prep.doctor import run_doctor

    run_doctor(
        from_home(options.path), options.model, options.gpus, options.gpu_images_per_second, options.workers
    )


def _fetch(options: argparse.Namespace) -> None:
    from data_prep.fetch import run_fetch

    try:
        run_fetch(options.name, options.size, options.out, options.url)
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note("what was downloaded is kept; the same command resumes")
        raise


def _info(options: argparse.Namespace) -> None:
    from data_prep.info import run_info
    from nfnet_ray.data.files.dataset import open_dataset

    run_info(open_dataset(from_home(options.path)), options.sheet)


def _verify(options: argparse.Namespace) -> None:
    from data_prep.verify import run_verify

    run_verify(from_home(options.path), options.workers, decode=options.decode, shown=options.limit)


def _digits(options: argparse.Namespace) -> None:
    from data_prep.digits import write_digits
    from nfnet_ray.data.files.dataset import check_dataset

    print_dataset(check_dataset(write_digits(from_home(options.out))))


if __name__ == "__main__":
    sys.exit(main())
