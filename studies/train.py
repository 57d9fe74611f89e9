"""Train one network on one or many workers, and recover from failures.

``python studies/train.py`` trains nfnet_pico on handwritten digits in about a minute. On a cluster,
``python studies/train.py --model nfnet_f0 --data PATH --workers 8 --address auto`` trains with the published Recipe
of that model; --set changes its fields. A lost worker is restarted. With --min-workers the run continues with fewer
workers until machines are back; the batch and the order of the images stay the same. Ctrl-C saves a checkpoint of
the current step, and --resume continues from it.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.digits import describe_digits
from nfnet_ray.command_line.arguments import above_zero, given_text, least_and_most, positive
from nfnet_ray.errors import UserError
from nfnet_ray.study.study import Study
from studies.running.checks import DATA_FOLDER
from studies.running.flags import (
    add_annotations,
    add_data,
    add_identity,
    add_places,
    add_settings,
    add_shares,
    add_spending,
    new_parser,
    run_command,
    settings_of,
)
from studies.running.training import DEFAULT_MODEL, TrainingRequest


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code: 0, also if the training ended at its cap; 1 if it failed, 2 for an error of use, 130 for Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    return run_command(Path(__file__), lambda: _request(options), "the first step")


def _request(options: argparse.Namespace) -> TrainingRequest:
    if options.force and not options.resume:
        raise UserError("--force goes with --resume NAME: a new training run has nothing to override")
    return TrainingRequest(**vars(options) | {"settings": settings_of(options.settings)})


def _parser() -> argparse.ArgumentParser:
    def on_default_data() -> Study:
        digits = TrainingRequest().digits
        data = describe_digits(DATA_FOLDER / digits.name, digits)
        return TrainingRequest().new_study(data, {}, is_built_in=True)

    parser = new_parser(
        Path(__file__),
        __doc__,
        on_default_data,
        lambda _: [
            "--plan",
            "--model nfnet_f0 --data data/mine --name first_run --checkpoint-minutes 5",
            "--model nfnet_f0 --data /shared/imagenet --storage /shared/runs --workers 4-8 --address auto",
            "--resume first_run",
        ],
    )
    what = parser.add_argument_group("what is trained")
    what.add_argument(
        "--model",
        type=given_text,
        metavar="NAME",
        help=f"the network; python -m nfnet_ray.models lists them (default: {DEFAULT_MODEL})",
    )
    add_data(what)
    add_settings(what, "set a field of the Recipe; the fields are listed below; may be repeated")
    what.add_argument("--epochs", type=positive, metavar="N", help="number of epochs (default: the Recipe's)")
    identity = add_identity(parser, "training run", "the model's name")
    identity.add_argument(
        "--force", action="store_true", help="with --resume, allow other settings or other data"
    )
    where = add_places(parser)
    where.add_argument(
        "--checkpoints",
        type=given_text,
        metavar="PLACE",
        help="where to keep checkpoints: a path or URI (s3://bucket/folder) that all nodes share (default: the"
        " run's folder)",
    )
    shape = parser.add_argument_group("resources, and protection against failures")
    shape.add_argument(
        "--workers",
        type=least_and_most,
        metavar="N",
        help="number of workers that share each batch; 2-8 is elastic: at least 2, at most 8 (default: 1)",
    )
    shape.add_argument(
        "--min-workers",
        type=positive,
        metavar="N",
        help="continue with as few as N workers when machines are missing (default: wait for all of them)",
    )
    add_shares(shape, "as many as the cluster has for each")
    shape.add_argument(
        "--checkpoint-minutes",
        type=above_zero,
        metavar="M",
        help="minutes between checkpoints within an epoch (default: 10)",
    )
    shape.add_argument(
        "--hang-seconds",
        type=above_zero,
        metavar="S",
        help="restart a worker that shows no sign of life for S seconds (default: 600)",
    )
    add_spending(parser, "training run", "its accuracy so far")
    add_annotations(parser, "training run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
