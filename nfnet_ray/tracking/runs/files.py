"""Lists the files of a study's directory that are stored in MLflow, too."""

from __future__ import annotations

from pathlib import Path, PurePath

from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events

RECIPE_FILE = "recipe.json"
"""A trial's file with its complete Recipe, which ``Recipe.from_values`` accepts."""
TRIALS_FILE = "trials.csv"
REQUIREMENTS_FILE = "requirements.txt"
# The same name as in dashboards/report.py, which this package may not import.
_REPORT_FILE = "report.html"


def program_copy(started: StudyStarted) -> str | None:
    """Returns the name of the copy of the study file in a study's directory; None for a study without a file."""
    file = started["study"].get("source", {}).get("file")
    return PurePath(file).name if file else None


def study_files(directory: Path) -> list[Path]:
    """Returns those of a study's files that exist: report, journal, table of trials, study file, requirements.

    Raises UserError if the journal is damaged.
    """
    names: list[str | None] = [_REPORT_FILE, JOURNAL_FILE, TRIALS_FILE, REQUIREMENTS_FILE]
    for event, _ in read_events(directory / JOURNAL_FILE):
        if event["event"] == "study_started":
            names.append(program_copy(event))
        break
    return [directory / name for name in names if name and (directory / name).is_file()]
