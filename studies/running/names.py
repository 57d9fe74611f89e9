"""Names of studies and trainings: which are allowed, and the default."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import PurePath

from nfnet_ray.cluster.connection.job import submission_id
from nfnet_ray.command_line.arguments import shortened, whole_number
from nfnet_ray.errors import UserError
from nfnet_ray.study.study_fields import FRESH_SEEDS
from nfnet_ray.tracking.destination.database import ARTIFACTS_FOLDER
from nfnet_ray.tracking.destination.uri import DATABASE_FILE

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

MOST_SEEDS = FRESH_SEEDS
"""Of a study; the seeds of its reruns come behind them."""


def study_name(text: str) -> str:
    """The name, if it can be a folder's and needs no quotes. Raises UserError."""
    if not re.fullmatch(_NAME, text):
        last = PurePath(text).name
        if "/" in text and re.fullmatch(_NAME, last):
            raise UserError(
                f"{shortened(text)!r} is not a name: it is a path; give {last} alone, and the folder that it is in "
                "with --storage"
            )
        raise UserError(
            f"{shortened(text)!r} is not a name: use up to 100 letters (a to z, A to Z), digits, dots, dashes and "
            "underscores, and begin with a letter or a digit"
        )
    if text == ARTIFACTS_FOLDER or text.startswith(DATABASE_FILE):
        raise UserError(f"{text!r} is not a name: MLflow's files are called so; take another")
    return text


def name_for_run(stem: str) -> str:
    """The name of a study without one: ``stem`` and the run suffix. Raises UserError if together they are no name."""
    try:
        return study_name(f"{stem}-{run_suffix()}")
    except UserError as error:
        reason = "the job's submission id makes" if submission_id() else f"{stem!r} and the time make"
        raise UserError(f"{reason} no valid name of a study ({error}); give one with --name") from None


def run_suffix() -> str:
    """The time; in a submitted job its id, which is the same when the job is submitted again."""
    return submission_id() or time.strftime("%Y%m%d-%H%M%S")


def seeds_text(text: str) -> tuple[int, bool]:
    """The number of ``--seeds``, and whether they are for all settings: ``3``, or ``3,all``.

    Raises UserError if it is no such text.

    >>> seeds_text("3"), seeds_text("3,all")
    ((3, False), (3, True))
    """
    number, comma, word = text.partition(",")
    try:
        seeds = whole_number(1, MOST_SEEDS)(number)
    except argparse.ArgumentTypeError:
        seeds = 0
    if not seeds or (comma and word != "all"):
        raise UserError(
            f"{shortened(text)!r} is not allowed: give a whole number from 1 to {MOST_SEEDS:,}, such as 3, or 3,all"
        )
    return seeds, bool(comma)
