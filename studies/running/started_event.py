"""The first event of a journal: the study, its data, the machines and the version of everything that runs it."""

from __future__ import annotations

import getpass
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import cast

from nfnet_ray import version
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.metric import METRIC
from nfnet_ray.models.own.source import NetworkSource
from nfnet_ray.printable import display_path, interpreter, printable, shell_command
from nfnet_ray.study.decisions import most_epochs
from nfnet_ray.study.live.webhook import shown_webhook
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.descriptions import (
    Hardware,
    NetworkDescription,
    SourceDescription,
    SourceVersion,
    StudyDescription,
    Versions,
)
from nfnet_ray.tracking.destination.uri import without_password
from nfnet_ray.tracking.events import StudyStarted, study_started


def started_event(
    study: Study,
    data: DatasetSummary,
    resources: Resources,
    worker: WorkerResources,
    hidden: Callable[[str], str] = without_password,
    program_file: Path | None = None,
) -> StudyStarted:
    """The event of a study that starts now. Of each word of its command, the journal has what ``hidden`` returns.

    ``program_file`` asks the question; None for a study that was built in Python.
    """
    description: StudyDescription = {
        "name": study.name,
        "command": command_line(hidden),
        "metric": METRIC,
        "mode": "max",
        "worker": {
            "workers": worker.workers,
            "cpus": worker.cpus,
            "gpus": worker.gpus,
            "min_workers": worker.min_workers,
        },
        "data": {
            "path": str(data.path),
            "name": data.path.stem,
            "fingerprint": data.fingerprint,
            "classes": len(data.class_names),
            "train_images": data.train_images,
            "validation_images": data.validation_images,
        },
        "hardware": hardware(resources),
        "versions": versions(),
        "source": source_description(program_file),
        **cast("StudyDescription", study.description()),
        "epochs": most_epochs(study),
    }
    return study_started(description, [study.plan(trial) for trial in study.trials()])


def network_description(source: NetworkSource) -> NetworkDescription:
    """The code of a network of one's own as a journal has it."""
    described: NetworkDescription = {
        "sha256": source.digest,
        "files": [file.as_posix() for file in source.files],
        "folder": printable(display_path(source.root)),
    }
    if source.package:
        described["package"] = source.package
    return described


def hardware(resources: Resources) -> Hardware:
    """The hardware of a study, as a journal records it."""
    return {
        "description": resources.description,
        "cpus": resources.cpus,
        "gpus": resources.gpus,
        "memory_gib": resources.memory_gib,
    }


def versions() -> Versions:
    """The versions of the software that runs here."""
    found: Versions = {
        "nfnet_ray": version.__version__,
        "torch": metadata.version("torch"),
        "ray": metadata.version("ray"),
        "python": platform.python_version(),
        **source_version(),
    }
    with suppress(metadata.PackageNotFoundError):  # the baselines' library; the other networks need none
        found["timm"] = metadata.version("timm")
    return found


def without_secrets(word: str, notify_url: str | None) -> str:
    """A word of a command line without passwords and the address of the webhook."""
    if notify_url:
        word = word.replace(notify_url, shown_webhook(notify_url))
    return without_password(word)


def command_line(hidden: Callable[[str], str]) -> str:
    """The command of this process, as a journal keeps it. Of each word it has what ``hidden`` returns."""
    return shell_command([interpreter(), *map(hidden, sys.orig_argv[1:])])


def source_version() -> SourceVersion:
    """The commit of the repository that tracks this library, and whether tracked files differ.

    The commit is empty without git, and if no repository tracks the library, even if it is inside one: a library that
    is installed in somebody's repository is not part of it.
    """
    file = Path(version.__file__)
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        commit = _git(file.parent, "rev-parse", "HEAD")
        changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    except (OSError, subprocess.SubprocessError):
        return {"commit": ""}
    return {"commit": commit, "dirty": bool(changes)}


def source_description(program_file: Path | None) -> SourceDescription:
    """The source of the study, by its file, branch and repository, and the user who started it.

    The branch and the repository are the library's, as in :func:`source_version`.
    """
    library = Path(version.__file__)
    is_tracked = bool(source_version()["commit"])
    branch = _git_or_nothing(library.parent, "branch", "--show-current") if is_tracked else ""
    remote = _git_or_nothing(library.parent, "remote", "get-url", "origin") if is_tracked else ""
    return {
        "file": "" if program_file is None else _name_in_repository(program_file.resolve()),
        "user": _user(),
        "branch": branch,
        "repository": without_password(remote),
    }


def _name_in_repository(file: Path) -> str:
    """The path in the repository that tracks a file, or else the file as a person would type it here."""
    try:
        return _git(file.parent, "ls-files", "--error-unmatch", "--full-name", file.name)
    except (OSError, subprocess.SubprocessError):
        return printable(display_path(file))


def _git_or_nothing(folder: Path, *words: str) -> str:
    try:
        return _git(folder, *words)
    except (OSError, subprocess.SubprocessError):
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user who has no name
        return ""


def _git(folder: Path, *words: str) -> str:
    # It does not lock the index, which a person's own git may need at the same moment.
    command = ["git", "--no-optional-locks", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
