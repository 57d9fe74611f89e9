"""Finds a study by the name or path that a person types."""

from __future__ import annotations

import os
from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.places import HOME_VARIABLE
from nfnet_ray.printable import printable
from nfnet_ray.settings import did_you_mean
from nfnet_ray.tracking.journal import JOURNAL_FILE

RUNS = Path("runs")
"""The default folder of all studies."""
_MOST_NAMED = 12  # in a message of one line


def find_study(text: str | Path) -> Path:
    """Returns the study's directory: ``text`` itself, or the study of that name under ``runs``.

    Like the storage of a study, ``runs`` is in ``$NFNET_RAY_HOME`` if it is set, else in the current folder.

    Raises:
        UserError: neither is a directory with a journal; the message lists existing studies.
    """
    runs = Path(os.environ.get(HOME_VARIABLE, "")) / RUNS
    for directory in (Path(text), runs / text):
        if (directory / JOURNAL_FILE).is_file():
            return directory
    known = sorted(path.parent.name for path in runs.glob(f"*/{JOURNAL_FILE}"))
    more = f" and {len(known) - _MOST_NAMED:,} more" if len(known) > _MOST_NAMED else ""
    where = f"./{RUNS}" if runs == RUNS else printable(runs)
    listed = f"the studies in {where} are: {', '.join(known[:_MOST_NAMED])}{more}"
    there_are = did_you_mean(text, known, listed if known else f"there is none in {where}")
    raise UserError(f"no study {str(text)!r}: name a folder that holds a {JOURNAL_FILE}; {there_are}")
