"""Finding a study from what a person types."""

from __future__ import annotations

from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import JOURNAL_FILE

RUNS = Path("runs")
"""Where studies put their directories unless they are told otherwise."""


def find_study(text: str | Path) -> Path:
    """The study's directory: ``text`` itself, or the study of that name under ``./runs``.

    Raises:
        UserError: neither is a directory with a journal in it; the message names the studies there are.
    """
    for directory in (Path(text), RUNS / text):
        if (directory / JOURNAL_FILE).is_file():
            return directory
    known = sorted(path.parent.name for path in RUNS.glob(f"*/{JOURNAL_FILE}"))
    there_are = f"the studies in ./{RUNS} are: {', '.join(known)}" if known else f"there is none in ./{RUNS}"
    raise UserError(f"no study {str(text)!r}: name a directory that holds a {JOURNAL_FILE}; {there_are}")
