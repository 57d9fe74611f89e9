"""Finding a study from what a person types."""

from __future__ import annotations

from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.settings import did_you_mean
from nfnet_ray.tracking.journal import JOURNAL_FILE

RUNS = Path("runs")
"""Where studies put their directories unless they are told otherwise."""
_MOST_NAMED = 12  # in a message of one line


def find_study(text: str | Path) -> Path:
    """The study's directory: ``text`` itself, or the study of that name under ``./runs``.

    Raises:
        UserError: neither is a directory with a journal in it; the message names the studies there are.
    """
    for directory in (Path(text), RUNS / text):
        if (directory / JOURNAL_FILE).is_file():
            return directory
    known = sorted(path.parent.name for path in RUNS.glob(f"*/{JOURNAL_FILE}"))
    more = f" and {len(known) - _MOST_NAMED:,} more" if len(known) > _MOST_NAMED else ""
    listed = f"the studies in ./{RUNS} are: {', '.join(known[:_MOST_NAMED])}{more}"
    there_are = did_you_mean(text, known, listed if known else f"there is none in ./{RUNS}")
    raise UserError(f"no study {str(text)!r}: name a folder that holds a {JOURNAL_FILE}; {there_are}")
