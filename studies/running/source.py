"""Which version of this source code runs, if it runs from a repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nfnet_ray import version
from nfnet_ray.tracking.events import SourceVersion


def source_version(file: Path | None = None) -> SourceVersion:
    """The commit of the repository that tracks ``file`` (by default this library), and whether tracked files differ.

    Without such a repository, or without git, the commit is empty: a library that is installed within somebody's
    repository is none of its files.
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
    # Without taking the index's lock, which a person's own git may want just now.
    command = ["git", "--no-optional-locks", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
