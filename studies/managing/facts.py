"""One study in words: its space, where its results are, and how it is resumed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import studies
from nfnet_ray.printable import display_path, interpreter, printable, shell_command
from nfnet_ray.study.space import domain_from_json, domain_text
from nfnet_ray.study.space.domains import listed_value_text
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool, TrackedStudy
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.labels import short_names
from studies.managing.folders import StudyFolder
from studies.running.request import DEFAULT_STORAGE

# Flags of the first command that a resumed study needs again; the journal has the others.
_FLAGS_OF_THE_PLACE = ("--address", "--trials-at-once")


def space_texts(space: Mapping[str, Any]) -> dict[str, str]:
    """{short name: values in words} of the swept fields."""
    names = short_names(space)
    return {names[name]: domain_words(described) for name, described in space.items()}


def domain_words(described: Any) -> str:
    """A domain of a journal in words: its values, or its range."""
    try:
        if isinstance(described, list):
            return printable(", ".join(map(listed_value_text, described)))
        return printable(domain_text(domain_from_json(described)))
    except (AttributeError, KeyError, TypeError, ValueError):  # of a later version
        return printable(json.dumps(described))


def tracked_at(directory: Path) -> TrackedStudy:
    """Where MLflow has the study, as its folder notes it; empty texts where nothing is there."""
    return Spool(directory / JOURNAL_FILE, directory / SPOOL_FILE).tracked


def report_command(directory: Path) -> str:
    """The command that writes the report of a study."""
    return shell_command([interpreter(), "-m", "dashboards.report", display_path(directory)])


def mlflow_command(directory: Path) -> str:
    """The command that opens MLflow on a study."""
    return shell_command([interpreter(), "-m", "dashboards.compare", display_path(directory)])


def publish_command(directory: Path) -> str:
    """The command that publishes the best network of a study as a model in MLflow."""
    return shell_command([interpreter(), "-m", "studies", "publish", display_path(directory)])


def resume_text(folder: StudyFolder, started: StudyStarted) -> str:
    """The command that resumes a study, or the call, where it was started from Python."""
    storage = folder.directory.parent
    words = _words(started["study"]["command"])
    file = next((Path(word) for word in words if word.endswith(".py")), None)
    if file is None or file.parent.name != "studies":
        place = "" if storage == DEFAULT_STORAGE.resolve() else f", storage={str(storage)!r}"
        return f"nfnet_ray.run(resume={folder.name!r}{place})"
    here = Path(studies.__file__).parent / file.name
    parts = [interpreter(), display_path(here) if here.is_file() else str(file), "--resume", folder.name]
    for flag in _FLAGS_OF_THE_PLACE:
        if flag in words[:-1]:
            parts += [flag, words[words.index(flag) + 1]]
    if storage != DEFAULT_STORAGE.resolve():
        parts += ["--storage", str(storage)]
    return shell_command(parts)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()
