"""``python -m data_prep convert``: its flags, and what it says about a conversion."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from data_prep.conversion.encode import EncodeSettings
from data_prep.lines import say
from data_prep.sources.source import WriteMode
from nfnet_ray.cluster.connection.job import from_home
from nfnet_ray.command_line.arguments import (
    MOST_DIGITS,
    given_path,
    given_text,
    number_or_nan,
    shortened,
    whole_number,
)
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.places import HOME_VARIABLE
from nfnet_ray.printable import display_path, interpreter, shell_command
from nfnet_ray.processor import available_cpus
from nfnet_ray.wording import agree, clock_time, count, speed

if TYPE_CHECKING:
    from data_prep.conversion.convert import ConvertReport

_MOST_PIXELS = 65_500  # a side of a JPEG, in libjpeg (JPEG_MAX_DIMENSION); a .beton's sides are 16 bits wide
OUT_STARTS = f"a relative path starts at ${HOME_VARIABLE} if it is set, as --data of a study does"
# More threads than any machine has cores for; the operating system would refuse them in other words.
number_of_threads = whole_number(1, 1024)


def add_convert(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command ``convert``."""
    convert = commands.add_parser(
        "convert",
        help="convert a folder, Parquet files, ImageNet's tar files, CIFAR or a CSV list",
        description="Convert images to .beton files (FFCV's format), each with a manifest next to it. JPEGs that decode"
        " without errors are stored byte for byte; other images are stored as pixels or as new JPEGs.",
        epilog="""\
SOURCE is one of
* a folder of class folders of images;
* a folder with train/ and validation/ (or valid/, val/, test/; in upper or lower case), each with class folders;
* Parquet files, or a folder of them, in the Hugging Face layout: a column of images, struct<bytes, path>, and one of
  labels (numbers or texts); train-*, validation-* and test-* name the splits;
* ImageNet (ILSVRC-2012) as it is distributed: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
  ILSVRC2012_devkit_t12.tar.gz, or a folder of the three; nothing is unpacked;
* CIFAR-10 or CIFAR-100 in the binary version: the .tar.gz, or the folder in it;
* a .csv with the columns path (relative to it), label (names or numbers) and optionally split (train, validation or
  test).

examples:
  python -m data_prep convert photos/ data/photos
  python -m data_prep convert imagenet/data/ imagenet.beton --workers 32
  python -m data_prep convert ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar \\
      ILSVRC2012_devkit_t12.tar.gz imagenet.beton
  python -m data_prep convert cifar-10-binary.tar.gz data/cifar10
""",
    )
    convert.add_argument(
        "source", nargs="+", type=given_path, metavar="SOURCE", help="the images; the kinds are listed below"
    )
    convert.add_argument(
        "out", type=given_path, metavar="OUT",
        help="the data set to write: a file NAME.beton, with NAME.validation.beton next to it, or a folder;"
        f" {OUT_STARTS}",
    )  # fmt: skip
    convert.add_argument(
        "--holdout", type=_share, default=0.2, metavar="SHARE",
        help="share of each class to hold out for validation if SOURCE has no validation or test split"
        " (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--validation-share", type=_share, metavar="SHARE",
        help="share of each class to keep of SOURCE's validation or test split, for studies whose validation would"
        " otherwise take longer than their training (default: all of it)",
    )  # fmt: skip
    convert.add_argument(
        "--label-column", type=given_text, default="label", metavar="NAME",
        help="name of the column with the labels, in Parquet files or a CSV list (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--image-column", type=given_text, metavar="NAME",
        help="name of the column with the images, in Parquet files, whose type is struct<bytes, path> or binary"
        " (default: the only one of type struct<bytes, path>)",
    )  # fmt: skip
    convert.add_argument(
        "--write-mode", choices=get_args(WriteMode), default=EncodeSettings.write_mode,
        help="how images are stored. auto: sound JPEGs byte for byte, other images as pixels up to 64x64 and as JPEGs"
        " above; jpg: sound JPEGs byte for byte, other images as JPEGs; raw: all as pixels; smart: as pixels up to"
        " 64x64 or if they take no more bytes than the JPEG, otherwise as jpg"
        " (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--jpeg-quality", type=whole_number(1, 100), default=EncodeSettings.jpeg_quality, metavar="1..100",
        help="JPEG quality of images that are re-encoded, without chroma subsampling (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--max-side", type=whole_number(1, _MOST_PIXELS), default=EncodeSettings.max_side, metavar="PIXELS",
        help="shrink images whose longer side has more pixels than this (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--apply-orientation", action="store_true",
        help="rotate photographs by their orientation tags, which re-encodes them (default: pixels stay as they are)",
    )  # fmt: skip
    unreadable = convert.add_mutually_exclusive_group()
    unreadable.add_argument(
        "--max-unreadable", type=_images_or_share, default=0, metavar="N|SHARE",
        help="skip up to N images, or this SHARE of all (0.001 or 0.1%%), that cannot be decoded, and list them with"
        " the reason in OUT.quarantine.csv; one more stops the conversion (default: %(default)s)",
    )  # fmt: skip
    unreadable.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="skip any number of images that cannot be decoded, and list them in the same way",
    )
    convert.add_argument(
        "--workers", type=number_of_threads, default=available_cpus(), metavar="N",
        help="number of threads (default: one per core, here %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--address", type=given_text, metavar="auto|HOST:PORT",
        help="read and encode images on a Ray cluster whose nodes have SOURCE under the same path (default: in threads"
        " on this machine); the files are the same",
    )  # fmt: skip
    convert.add_argument(
        "--resume", action="store_true",
        help="resume the same conversion if it was stopped; otherwise start it. A kill or a power failure costs at"
        " most 5 seconds of work",
    )  # fmt: skip
    convert.add_argument(
        "--overwrite", action="store_true", help="replace the data set that is in OUT (default: refuse)"
    )
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from data_prep.conversion.convert import ConvertSettings, convert
    from data_prep.conversion.parallel import in_own_thread
    from data_prep.conversion.quarantine import quarantine_path
    from data_prep.conversion.splits import plan_splits
    from data_prep.conversion.staging import check_out, check_outside, describe_unfinished, unfinished
    from data_prep.sources.choose import open_source
    from nfnet_ray.command_line.progress import images_on_stderr

    start = time.monotonic()
    out = from_home(options.out)
    check_outside(out, options.source)
    check_out(out, overwrite=options.overwrite)
    if not options.resume:
        for path in unfinished(out):
            say(f"note: {describe_unfinished(path)}")
    # Tasks on a cluster have other working folders.
    source_paths = [path.absolute() for path in options.source] if options.address else options.source
    source = in_own_thread(
        lambda: open_source(source_paths, options.label_column, images_on_stderr, options.image_column)
    )
    for note in source.notes:
        say(f"note: {note}")
    plan = plan_splits(source, options.holdout, options.validation_share)
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
    _say_report(report, source.kind, options, quarantine_path(out), time.monotonic() - start)
    print_dataset(report.dataset)


def _say_report(
    report: ConvertReport, kind: str, options: argparse.Namespace, quarantine: Path, seconds: float
) -> None:
    """Says what was re-encoded and left out, and how long it took."""
    for reason, number in report.re_encoded.most_common():
        say(f"re-encoded {count(number, 'image')}: {reason}")
    if report.lossy_jpegs:
        say(
            f"of these, {report.lossy_jpegs:,} became JPEGs of quality {options.jpeg_quality}, which is lossy:"
            " --write-mode raw keeps pixels as they are"
        )
    if report.orientation_tags and not options.apply_orientation:
        say(
            f"note: {count(report.orientation_tags, 'image')} with an orientation tag, stored as the pixels are,"
            " perhaps sideways: --apply-orientation rotates them"
        )
    for name, why in report.skipped:
        say(f"left out {name}: {why}")
    if report.skipped:
        say(f"left out {count(len(report.skipped), 'unreadable image')} in all, listed in {quarantine}")
    if report.images_resumed:
        were = agree(report.images_resumed, "was", "were")
        say(f"resumed: {count(report.images_resumed, 'image')} {were} done before")
    images = report.dataset.train_images + report.dataset.validation_images
    say(
        f"{kind}: {count(images, 'image')}, {count(report.stored_bytes, 'byte')} in {clock_time(seconds)}"
        f" ({speed((images - report.images_resumed) / seconds)} images/s)"
    )


def print_dataset(dataset: DatasetSummary) -> None:
    """Print where a data set was written, what is in it, and the command that trains on it."""
    say(
        f"wrote {dataset.path}: {dataset.train_images:,} training and"
        f" {count(dataset.validation_images, 'validation image')} of {count(len(dataset.class_names), 'class')}"
    )
    say(f"fingerprint {dataset.fingerprint}")
    study = display_path(Path(__file__).parents[1] / "studies" / "agc_sweep.py")
    say(f"next: {shell_command([interpreter(), study, '--data', dataset.path])}")


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
