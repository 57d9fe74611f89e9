"""The first event of a journal: the study, its data, the machines and the version of everything that runs it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from nfnet_ray import version
from nfnet_ray.cluster.connection.resources import Resources, WorkerResources
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.metric import METRIC
from nfnet_ray.printable import interpreter, shell_command
from nfnet_ray.study.decisions import most_epochs
from nfnet_ray.study.study import Study
from nfnet_ray.study.webhook import shown_webhook
from nfnet_ray.tracking.destination.uri import without_password
from nfnet_ray.tracking.events import (
    Hardware,
    SourceVersion,
    StudyDescription,
    StudyStarted,
    Versions,
    study_started,
)


def started_event(
    study: Study,
    data: DatasetSummary,
    resources: Resources,
    worker: WorkerResources,
    hidden: Callable[[str], str] = without_password,
) -> StudyStarted:
    """The event of a study that starts now. Of each word of its command, the journal has what ``hidden`` returns."""
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
        **study.description(),  # type: ignore[typeddict-item]
        "epochs": most_epochs(study),
    }
    return study_started(description, [study.plan(trial) for trial in study.trials()])


def hardware(resources: Resources) -> Hardware:
    """What a driver runs on, as a journal has it."""
    return {
        "description": resources.description,
        "cpus": resources.cpus,
        "gpus": resources.gpus,
        "memory_gib": resources.memory_gib,
    }


def versions() -> Versions:
    """What runs here."""
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


def source_version(file: Path | None = None) -> SourceVersion:
    """The commit of the repository that tracks ``file``, by default this library, and whether tracked files differ.

    The commit is empty without git, and if no repository tracks the file, even if it is inside one: a library that is
    installed in somebody's repository is not part of it.
    """
    file = file or Path(version.__file__)
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        commit = _git(file.parent, "rev-parse", "HEAD")
        changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    except (OSError, subprocess.SubprocessError):
        return {"commit": ""}
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *words: str) -> str:
    # It does not lock the index, which a person's own git may need at the same moment.
    command = ["git", "--no-optional-locks", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
