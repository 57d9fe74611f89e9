"""Names the experiment of a study, and the commands that restore what has been deleted in MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from nfnet_ray.printable import interpreter, shell_command
from nfnet_ray.tracking.destination.uri import URI_VARIABLE
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events

EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
DEFAULT_EXPERIMENT = "nfnet_ray"


def experiment_name(file: str | PurePath | None = None) -> str:
    """Returns the environment's experiment; else ``nfnet_ray.`` and the name of the study file; else ``nfnet_ray``.

    >>> experiment_name("studies/agc_sweep.py")                                    # doctest: +SKIP
    'nfnet_ray.agc_sweep'
    """
    return os.environ.get(EXPERIMENT_VARIABLE) or own_experiment(file) or DEFAULT_EXPERIMENT


def own_experiment(file: str | PurePath | None) -> str | None:
    """Returns the name of the experiment for one study file; None without a file."""
    stem = PurePath(file).stem if file else ""
    return f"{DEFAULT_EXPERIMENT}.{stem}" if stem else None


def experiment_of(started: StudyStarted) -> str:
    """Returns the name of the experiment for a study that begins with this event."""
    return experiment_name(started["study"].get("source", {}).get("file"))


def experiment_of_journal(directory: Path) -> str:
    """Returns the name for the study in a directory; ``nfnet_ray`` if there is no journal yet. Raises UserError."""
    for event, _ in read_events(directory / JOURNAL_FILE):
        return experiment_of(event) if event["event"] == "study_started" else experiment_name()
    return experiment_name()


def restore_experiment_command(tracking_uri: str, experiment_id: str) -> str:
    """Returns the command that restores an experiment, for which MLflow's UI has no button (3.17)."""
    return _mlflow(tracking_uri, ["experiments", "restore", "--experiment-id", experiment_id])


def restore_runs_command(tracking_uri: str, run_ids: Sequence[str]) -> str:
    """Returns one line for the shell that restores runs, however many there are."""
    if len(run_ids) == 1:
        return _mlflow(tracking_uri, ["runs", "restore", "--run-id", run_ids[0]])
    restore = _mlflow(tracking_uri, ["runs", "restore", "--run-id"])
    return f"for run in {shell_command(run_ids)}; do {restore} $run; done"


def _mlflow(tracking_uri: str, words: Sequence[str]) -> str:
    return f"{URI_VARIABLE}={shell_command([tracking_uri])} {shell_command([interpreter(), '-m', 'mlflow', *words])}"
