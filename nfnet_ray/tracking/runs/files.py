"""The files of a study's directory that MLflow gets too."""

from __future__ import annotations

from pathlib import Path, PurePath

from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events

RECIPE_FILE = "recipe.json"
"""A trial's file: its whole Recipe, which ``Recipe.from_values`` takes."""
TRIALS_FILE = "trials.csv"
REQUIREMENTS_FILE = "requirements.txt"
# As dashboards/report.py calls it, which this room may not import.
_REPORT_FILE = "report.html"


def program_copy(started: StudyStarted) -> str | None:
    """The name of the copy of the study file in a study's directory; None for a study that has no file."""
    file = started["study"].get("source", {}).get("file")
    return PurePath(file).name if file else None


def study_files(directory: Path) -> list[Path]:
    """Those of a study's files that are there: report, journal, table of trials, study file, requirements.

    Raises UserError if the journal is damaged.
    """
    names: list[str | None] = [_REPORT_FILE, JOURNAL_FILE, TRIALS_FILE, REQUIREMENTS_FILE]
    for event, _ in read_events(directory / JOURNAL_FILE):
        if event["event"] == "study_started":
            names.append(program_copy(event))
        break
    return [directory / name for name in names if name and (directory / name).is_file()]
