"""The command line: ``python -m data_prep convert SOURCE OUT`` and ``python -m data_prep digits OUT``."""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import get_args

from data_prep.conversion.encode import EncodeSettings
from data_prep.lines import say
from data_prep.sources.source import WriteMode
from nfnet_ray.command_line.arguments import (
    MOST_DIGITS,
    given_path,
    number_or_nan,
    positive,
    shortened,
    whole_number,
)
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, interruptible
from nfnet_ray.command_line.one_line_parser import EXIT_USER_ERROR, OneLineParser
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.printable import interpreter, printable, shell_command, shown
from nfnet_ray.wording import agree, clock_time, count, speed

_TERMINATED = 143  # 128 + SIGTERM
_SHOW_CURSOR = "\x1b[?25h"  # DECTCEM, of DEC's VT220 and all terminals since
_MOST_PIXELS = 65_500  # a side of a JPEG, in libjpeg (JPEG_MAX_DIMENSION); a .beton's sides are 16 bits wide
# More threads than any machine has cores for; the operating system would refuse them in other words.
_THREADS = whole_number(1, 1024)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code: 0, 2 for an error a person can put right, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        # A scheduler's SIGTERM would end Python on the spot and leave unfinished files.
        with interruptible(sigterm=_terminate):
            options.run(options)
    except UserError as error:
        _say_error(f"error: {'; '.join([str(error), *_notes(error)])}")
        return EXIT_USER_ERROR
    except OSError as error:  # a full disk, a share that went away: nothing to debug here
        _say_error(f"error: {error}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        if sys.stderr.isatty():  # a bar that is left behind with its thread has hidden the cursor
            print(_SHOW_CURSOR, end="", file=sys.stderr)
        _say_error(f"interrupted: {'; '.join(_notes(interrupt)) or 'nothing was written'}")
        return EXIT_INTERRUPTED
    except SystemExit as exit_:  # of _terminate
        _say_error(f"terminated: {'; '.join(_notes(exit_)) or 'nothing was written'}")
        raise
    return 0


def _say_error(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _notes(error: BaseException) -> list[str]:
    """A conversion that can be gone on with says so in a note."""
    return list(getattr(error, "__notes__", ()))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(  # and so are those of its commands
        prog="python -m data_prep", description="Turn images into a data set that trains fast."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    convert = commands.add_parser(
        "convert",
        help="convert a folder, Parquet files, ImageNet's tar files, CIFAR or a CSV list",
        description="Convert images to .beton files (FFCV's format) with a manifest beside each. JPEGs that"
        " decode cleanly are stored byte for byte; everything else is re-encoded.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
SOURCE is one of
  a folder of class folders of images;
  a folder with train/ and validation/ (or valid/, val/, test/; in any capitals), each with class folders;
  Parquet files, or a folder of them, in the Hugging Face layout: a column image of
  struct<bytes, path> and an integer label; train-*, validation-* and test-* name the splits;
  ImageNet (ILSVRC-2012) as it is distributed: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
  ILSVRC2012_devkit_t12.tar.gz, or a folder of the three; nothing is unpacked;
  CIFAR-10 or CIFAR-100, binary version: the .tar.gz, or the folder in it;
  a .csv with the columns path (relative to it), label (names or numbers) and, if you like, split
  (train, validation or test).

examples
  python -m data_prep convert photos/ data/photos
  python -m data_prep convert imagenet/data/ imagenet.beton --workers 32
  python -m data_prep convert ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar \\
      ILSVRC2012_devkit_t12.tar.gz imagenet.beton
  python -m data_prep convert cifar-10-binary.tar.gz data/cifar10
""",
    )
    convert.add_argument("source", nargs="+", type=given_path, metavar="SOURCE", help="see below")
    convert.add_argument(
        "out", type=given_path, metavar="OUT",
        help="NAME.beton, which gets NAME.validation.beton beside it; or else a folder to make",
    )  # fmt: skip
    convert.add_argument(
        "--holdout", type=_share, default=0.2, metavar="SHARE",
        help="share of each class to validate with, where SOURCE has no validation or test split"
        " (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--label-column", default="label", metavar="NAME",
        help="column of Parquet files or a CSV list with the labels (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--write-mode", choices=get_args(WriteMode), default=EncodeSettings.write_mode,
        help="auto: clean JPEGs byte for byte, of the rest pixels up to 64x64 and JPEGs above; jpg: the rest as JPEGs;"
        " raw: decoded pixels; smart: pixels up to 64x64 or where they take no more bytes than the JPEG, else jpg"
        " (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--jpeg-quality", type=whole_number(1, 100), default=EncodeSettings.jpeg_quality, metavar="1..100",
        help="of images that are re-encoded, without chroma subsampling (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--max-side", type=whole_number(1, _MOST_PIXELS), default=EncodeSettings.max_side, metavar="PIXELS",
        help="shrink images with a longer side to this (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--apply-orientation", action="store_true",
        help="turn photographs as their orientation tags say, and encode those anew (default: pixels stay as they lie)",
    )  # fmt: skip
    unreadable = convert.add_mutually_exclusive_group()
    unreadable.add_argument(
        "--max-unreadable", type=_images_or_share, default=0, metavar="N|SHARE",
        help="leave out up to N images, or that SHARE of all (0.001 or 0.1%%), that cannot be decoded, and list"
        " them with the reason in OUT.quarantine.csv; one more stops the conversion (default: %(default)s)",
    )  # fmt: skip
    unreadable.add_argument(
        "--skip-unreadable", action="store_true", help="leave out any number of images that cannot be decoded"
    )
    convert.add_argument(
        "--workers", type=_THREADS, default=os.cpu_count() or 1, metavar="N",
        help="threads (default: one per core, here %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--address", metavar="auto|HOST:PORT",
        help="prepare images on the Ray cluster there, whose nodes have SOURCE under the same path, instead of"
        " in threads here; the files are the same",
    )  # fmt: skip
    convert.add_argument(
        "--resume", action="store_true",
        help="go on where the same conversion was stopped, if it was; else begin. At most 5 seconds of work are"
        " lost to a kill or a power failure",
    )  # fmt: skip
    convert.add_argument("--overwrite", action="store_true", help="replace a data set that OUT holds")
    convert.set_defaults(run=_convert)

    digits = commands.add_parser(
        "digits",
        help="write scikit-learn's handwritten digits",
        description="Write the 1,797 handwritten digits that scikit-learn carries, enlarged to 32x32"
        " pixels, as a data set: 1,437 images to train with, 360 to validate.",
    )
    digits.add_argument("out", type=given_path, metavar="OUT", help="folder to make")
    digits.set_defaults(run=_digits)
    _add_verify(commands)
    _add_info(commands)
    _add_fetch(commands)
    _add_doctor(commands)
    return parser


def _add_verify(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    verify = commands.add_parser(
        "verify",
        help="check every byte of a data set against its manifest",
        description="Check a data set: header, records and manifest, and each image's stored bytes against the hash"
        " taken when it was written. Names what is wrong. Exit code 0: every byte is as it was written; 2: it is"
        " not.",
    )
    _add_dataset(verify)
    verify.add_argument("--decode", action="store_true", help="decode every image too (much slower)")
    verify.add_argument(
        "--limit", type=positive, default=20, metavar="N",
        help="print at most N of the things that are wrong (default: %(default)s)",
    )  # fmt: skip
    verify.add_argument(
        "--workers", type=_THREADS, default=os.cpu_count() or 1, metavar="N",
        help="threads (default: one per core, here %(default)s)",
    )  # fmt: skip
    verify.set_defaults(run=_verify)


def _add_info(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    info = commands.add_parser(
        "info",
        help="say what is in a data set, and draw its classes",
        description="Say what is in a data set: images, classes, sizes, how it was written, duplicates. With --sheet,"
        " draw the first images of each class.",
    )
    _add_dataset(info)
    info.add_argument(
        "--sheet",
        type=given_path,
        metavar="PNG",
        help="write a picture of up to 100 classes, NAME.png or NAME.jpg",
    )
    info.set_defaults(run=_info)


def _add_fetch(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="download CIFAR-10 or Imagenette, and check it",
        description="Download a data set from where it is published, check its known checksum, and unpack it where"
        " that is needed. What was cut off is gone on with by the same command.",
    )
    fetch.add_argument("name", choices=("cifar10", "imagenette"), help="the data set")
    fetch.add_argument("out", type=given_path, metavar="OUT_DIR", help="folder to put it in")
    fetch.add_argument(
        "--size", choices=("160", "320", "full"), default="320",
        help="Imagenette's shorter side in pixels (default: %(default)s)",
    )  # fmt: skip
    fetch.add_argument("--url", help="a mirror of the same file; it has to have the same checksum")
    fetch.set_defaults(run=_fetch)


def _add_doctor(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="measure what limits the loading of a data set on this machine",
        description="Measure disk, page cache, decoding per core and the training loader, for ten seconds, and say"
        " what limits, and whether it can feed a model on a number of GPUs.",
    )
    _add_dataset(doctor)
    doctor.add_argument(
        "--model", metavar="NAME", help="the model to feed: python -m nfnet_ray.models lists all"
    )
    doctor.add_argument("--gpus", type=positive, default=1, metavar="N", help="default: %(default)s")
    doctor.add_argument(
        "--gpu-images-per-second", type=positive, metavar="X",
        help="what one GPU trains with (default: measured on this machine's GPU; without one, what is published for"
        " a V100)",
    )  # fmt: skip
    doctor.add_argument(
        "--workers", type=_THREADS, default=os.cpu_count() or 1, metavar="N",
        help="the loader's threads (default: one per core, here %(default)s)",
    )  # fmt: skip
    doctor.set_defaults(run=_doctor)


def _add_dataset(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "path", type=given_path, metavar="OUT", help="what convert wrote: NAME.beton, or a folder"
    )


def _doctor(options: argparse.Namespace) -> None:
    from data_prep.doctor import run_doctor

    run_doctor(options.path, options.model, options.gpus, options.gpu_images_per_second, options.workers)


def _fetch(options: argparse.Namespace) -> None:
    from data_prep.fetch import run_fetch

    try:
        run_fetch(options.name, options.size, options.out, options.url)
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note("what was downloaded so far is kept; the same command goes on")
        raise


def _info(options: argparse.Namespace) -> None:
    from data_prep.info import run_info
    from nfnet_ray.data.files.dataset import open_dataset

    run_info(open_dataset(options.path), options.sheet)


def _verify(options: argparse.Namespace) -> None:
    from data_prep.verify import run_verify

    run_verify(options.path, options.workers, decode=options.decode, shown=options.limit)


def _convert(options: argparse.Namespace) -> None:
    from data_prep.conversion.convert import ConvertSettings, convert
    from data_prep.conversion.parallel import in_own_thread
    from data_prep.conversion.quarantine import quarantine_path
    from data_prep.conversion.splits import plan_splits
    from data_prep.conversion.staging import check_out, check_outside, describe_unfinished, unfinished
    from data_prep.sources.choose import open_source
    from nfnet_ray.command_line.progress import images_on_stderr

    start = time.monotonic()
    out: Path = options.out
    check_outside(out, options.source)
    check_out(out, overwrite=options.overwrite)
    if not options.resume:
        for path in unfinished(out):
            say(f"note: {describe_unfinished(path)}")
    # Tasks on a cluster have other working folders.
    source_paths = [path.absolute() for path in options.source] if options.address else options.source
    source = in_own_thread(lambda: open_source(source_paths, options.label_column, images_on_stderr))
    for note in source.notes:
        say(f"note: {note}")
    plan = plan_splits(source, options.holdout)
    say(plan.note)
    report = convert(
        source,
        plan,
        out,
        ConvertSettings(
            encode=EncodeSettings(
                write_mode=options.write_mode,
                jpeg_quality=options.jpeg_quality,
                max_side=options.max_side,
                apply_orientation=options.apply_orientation,
            ),
            workers=options.workers,
            address=options.address,
            max_unreadable=None if options.skip_unreadable else options.max_unreadable,
            overwrite=options.overwrite,
            resume=options.resume,
            keep_unfinished=True,
        ),
        progress=images_on_stderr,
        source_paths=source_paths,
    )
    seconds = time.monotonic() - start
    for reason, number in report.re_encoded.most_common():
        say(f"re-encoded {count(number, 'image')}: {reason}")
    if report.lossy_jpegs:
        say(
            f"of these, {report.lossy_jpegs:,} became JPEGs of quality {options.jpeg_quality}, which is lossy:"
            " --write-mode raw keeps pixels as they are"
        )
    if report.orientation_tags and not options.apply_orientation:
        say(
            f"note: {count(report.orientation_tags, 'image')} with an orientation tag, stored as the pixels lie,"
            " perhaps sideways: --apply-orientation turns them"
        )
    for name, why in report.skipped.items():
        say(f"left out {name}: {why}")
    if report.skipped:
        say(
            f"left out {count(len(report.skipped), 'unreadable image')} in all, listed in {quarantine_path(out)}"
        )
    if report.images_resumed:
        were = agree(report.images_resumed, "was", "were")
        say(f"resumed: {count(report.images_resumed, 'image')} {were} done before")
    images = report.dataset.train_images + report.dataset.validation_images
    say(
        f"{source.kind}: {count(images, 'image')}, {count(report.stored_bytes, 'byte')} in {clock_time(seconds)}"
        f" ({speed((images - report.images_resumed) / seconds)} images/s)"
    )
    _print_dataset(report.dataset)


def _digits(options: argparse.Namespace) -> None:
    from data_prep.digits import write_digits
    from nfnet_ray.data.files.dataset import check_dataset

    _print_dataset(check_dataset(write_digits(options.out)))


def _print_dataset(dataset: DatasetSummary) -> None:
    say(
        f"wrote {dataset.path}: {dataset.train_images:,} training and"
        f" {count(dataset.validation_images, 'validation image')} of {count(len(dataset.class_names), 'class')}"
    )
    say(f"fingerprint {dataset.fingerprint}")
    study = shown(Path(__file__).parents[1] / "studies" / "agc_sweep.py")
    say(f"next: {shell_command([interpreter(), study, '--data', dataset.path])}")


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    del signal_number, frame
    raise SystemExit(_TERMINATED)


def _share(text: str) -> float:
    share = number_or_nan(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number between 0 and 1")
    return share


def _images_or_share(text: str) -> int | float:
    """``20`` images; ``0.001`` or ``0.1%`` of all."""
    if text.isdecimal() and len(text) <= MOST_DIGITS:
        return int(text)
    share = number_or_nan(text[:-1]) / 100 if text.endswith("%") else number_or_nan(text)
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(
            f"{shortened(text)} is neither a number of images nor a share below 1"
        )
    return share


if __name__ == "__main__":
    sys.exit(main())
