"""Names of studies and trainings: what they may be, and the one that is given to what has none."""

from __future__ import annotations

import argparse
import re
import time

from nfnet_ray.cluster.connection.job import submission_id
from nfnet_ray.command_line.arguments import shortened
from nfnet_ray.errors import UserError


def study_name(text: str) -> str:
    """A name that can be a folder's and that nobody has to quote."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"{shortened(text)!r} is not a name: use up to 100 letters, digits, dots, dashes and underscores"
        )
    return text


def name_on_occasion(stem: str) -> str:
    """The name of what was given none: ``stem`` and the occasion. Raises UserError if that is no name."""
    try:
        return study_name(f"{stem}-{occasion()}")
    except argparse.ArgumentTypeError as error:
        raise UserError(
            f"the job's submission id makes no name of a study ({error}); give one by --name"
        ) from None


def occasion() -> str:
    """What tells two runs of one name apart: the time, or the id of a submitted job, which is the same again."""
    return submission_id() or time.strftime("%Y%m%d-%H%M%S")
