"""Which experiment the studies go into, and the commands that bring back what somebody has deleted in MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nfnet_ray.printable import interpreter, shell_command
from nfnet_ray.tracking.destination.uri import URI_VARIABLE

EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
DEFAULT_EXPERIMENT = "nfnet_ray"


def experiment_name() -> str:
    """The environment's, or ``nfnet_ray``."""
    return os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT


def restore_experiment_command(tracking_uri: str, experiment_id: str) -> str:
    """MLflow's UI has no button for it (3.17)."""
    return _mlflow(tracking_uri, ["experiments", "restore", "--experiment-id", experiment_id])


def restore_runs_command(tracking_uri: str, run_ids: Sequence[str]) -> str:
    """One line for the shell, however many runs there are."""
    if len(run_ids) == 1:
        return _mlflow(tracking_uri, ["runs", "restore", "--run-id", run_ids[0]])
    restore = _mlflow(tracking_uri, ["runs", "restore", "--run-id"])
    return f"for run in {shell_command(run_ids)}; do {restore} $run; done"


def _mlflow(tracking_uri: str, words: Sequence[str]) -> str:
    return f"{URI_VARIABLE}={shell_command([tracking_uri])} {shell_command([interpreter(), '-m', 'mlflow', *words])}"
