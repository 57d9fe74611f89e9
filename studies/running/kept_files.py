"""Files that a study keeps next to its journal, for people and for MLflow: program, environment, table of trials.

MLflow gets these files with the study's run (:mod:`nfnet_ray.tracking.runs.files`).
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from nfnet_ray.analysis import load_study
from nfnet_ray.analysis.files.tables import trials_csv
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.runs.files import REQUIREMENTS_FILE, TRIALS_FILE, program_copy
from nfnet_ray.whole_file import whole_file


def keep_program(directory: Path, started: StudyStarted, program_file: Path | None) -> None:
    """Copies the study file, and writes the versions of all installed packages, as the study began with them.

    What cannot be written is left out: the journal is what a study needs.
    """
    name = program_copy(started)
    with suppress(OSError):
        if program_file is not None and name is not None:
            shutil.copyfile(program_file, directory / name)
        with whole_file(directory / REQUIREMENTS_FILE, "w") as file:
            file.write(installed_packages(started))


def keep_trials(directory: Path) -> None:
    """Writes the table of trials as CSV, unless it cannot be written: ``studies export`` makes it again."""
    with suppress(OSError), whole_file(directory / TRIALS_FILE) as file:
        file.write(trials_csv(load_study(directory)))


def installed_packages(started: StudyStarted) -> str:
    """A requirements file of what is installed here; nfnet_ray itself, which no registry has, is a comment."""
    versions = started["study"]["versions"]
    found = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    lines = [
        f"{name}=={version}"
        for name, version in sorted(found.items(), key=lambda each: each[0].lower())
        if name.replace("-", "_") != "nfnet_ray"
    ]
    commit = f", commit {versions['commit']}" if versions["commit"] else ""
    header = f"# Python {versions['python']}, nfnet_ray {versions['nfnet_ray']}{commit}"
    return "\n".join([header, *lines, ""])
