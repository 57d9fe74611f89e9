"""The command line: ``python -m data_prep convert SOURCE OUT`` and ``python -m data_prep digits OUT``."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from data_prep.encode import EncodeSettings
from nfnet_ray.data.dataset import DatasetSummary
from nfnet_ray.errors import UserError

_INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C: 128 + SIGINT
_TERMINATED = 143  # 128 + SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code: 0, 2 for an error a person can put right, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a share that went away: nothing to debug here
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep", description="Turn images into a data set that trains fast."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    convert = commands.add_parser(
        "convert",
        help="convert an image folder or Parquet files",
        description="Convert images to .beton files (FFCV's format) with a manifest beside each. JPEGs that"
        " decode cleanly are stored byte for byte; everything else is re-encoded.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
SOURCE is one of
  a folder of class folders of images;
  a folder with train/ and validation/ (or valid/, val/, test/), each with class folders;
  Parquet files, or a folder of them, in the Hugging Face layout: a column image of
  struct<bytes, path> and an integer label; train-*, validation-* and test-* name the splits.

examples
  python -m data_prep convert photos/ data/photos
  python -m data_prep convert imagenet/data/ imagenet.beton --workers 32
""",
    )
    convert.add_argument("source", nargs="+", type=Path, metavar="SOURCE", help="see below")
    convert.add_argument(
        "out", type=Path, metavar="OUT",
        help="NAME.beton, which gets NAME.validation.beton beside it; or else a folder to make",
    )  # fmt: skip
    convert.add_argument(
        "--holdout", type=_share, default=0.2, metavar="SHARE",
        help="share of each class to validate with, where SOURCE has no validation or test split"
        " (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--label-column", default="label", metavar="NAME",
        help="Parquet column with the labels (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--jpeg-quality", type=_quality, default=EncodeSettings.jpeg_quality, metavar="1..100",
        help="of images that are re-encoded, without chroma subsampling (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--max-side", type=_positive, default=EncodeSettings.max_side, metavar="PIXELS",
        help="shrink images with a longer side to this (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--skip-unreadable", action="store_true",
        help="leave images out that cannot be decoded, and list them, instead of stopping",
    )  # fmt: skip
    convert.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, metavar="N",
        help="threads (default: one per core, here %(default)s)",
    )  # fmt: skip
    convert.add_argument("--overwrite", action="store_true", help="replace a data set that OUT holds")
    convert.set_defaults(run=_convert)

    digits = commands.add_parser(
        "digits",
        help="write scikit-learn's handwritten digits",
        description="Write the 1,797 handwritten digits that scikit-learn carries, enlarged to 32x32"
        " pixels, as a data set: 1,437 images to train with, 360 to validate.",
    )
    digits.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    digits.set_defaults(run=_digits)
    return parser


def _convert(options: argparse.Namespace) -> None:
    from data_prep.convert import ConvertSettings, check_out, convert, unfinished
    from data_prep.progress import format_seconds, on_stderr
    from data_prep.sources import open_source
    from data_prep.splits import plan_splits

    start = time.monotonic()
    out: Path = options.out
    check_out(out, overwrite=options.overwrite)
    for path in unfinished(out):
        print(f"note: {path} is left from a conversion that was killed, or one is running; if not, delete it")
    source = open_source(options.source, options.label_column)
    for note in source.notes:
        print(f"note: {note}")
    plan = plan_splits(source, options.holdout)
    print(plan.note)
    report = convert(
        source,
        plan,
        out,
        ConvertSettings(
            encode=EncodeSettings(jpeg_quality=options.jpeg_quality, max_side=options.max_side),
            workers=options.workers,
            skip_unreadable=options.skip_unreadable,
            overwrite=options.overwrite,
        ),
        progress=on_stderr,
    )
    seconds = time.monotonic() - start
    for reason, count in report.re_encoded.most_common():
        print(f"re-encoded {count:,} images: {reason}")
    for name, why in report.skipped.items():
        print(f"left out {name}: {why}")
    if report.skipped:
        print(f"left out {len(report.skipped):,} unreadable images in all")
    images = report.dataset.train_images + report.dataset.validation_images
    print(
        f"{source.kind}: {images:,} images, {report.stored_bytes:,} bytes in {format_seconds(seconds)}"
        f" ({images / seconds:,.0f} images/s)"
    )
    _print_dataset(report.dataset)


def _digits(options: argparse.Namespace) -> None:
    from data_prep.digits import write_digits
    from nfnet_ray.data.dataset import check_dataset

    _print_dataset(check_dataset(write_digits(options.out)))


def _print_dataset(dataset: DatasetSummary) -> None:
    print(
        f"wrote {dataset.path}: {dataset.train_images:,} training and {dataset.validation_images:,}"
        f" validation images of {len(dataset.class_names):,} classes"
    )
    print(f"fingerprint {dataset.fingerprint}")
    print(f"next: python studies/agc_sweep.py --data {shlex.quote(str(dataset.path))}")


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    del signal_number, frame
    raise SystemExit(_TERMINATED)


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def _quality(text: str) -> int:
    quality = int(text)
    if not 1 <= quality <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100")
    return quality


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


if __name__ == "__main__":
    # A scheduler's SIGTERM would end Python on the spot and leave unfinished files.
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
