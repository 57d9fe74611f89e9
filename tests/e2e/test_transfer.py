"""The transfer study from the command line: its weights are identified by content, from the start to MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nfnet_ray.models import create_model
from nfnet_ray.models.weights.weights_file import pinned
from tests.e2e.workplace import ONE_AT_A_TIME, QUICK, STUDY, Workplace

pytestmark = pytest.mark.slow


def test_a_transfer_runs_and_does_not_resume_with_other_weights(
    tmp_path: Path, few_digits: Path, cluster: str, empty_database: Path
) -> None:
    workplace = Workplace(tmp_path, STUDY.with_name("transfer.py"), database=empty_database)
    overrides = {"width": [16, 16, 32, 32], "depth": [1, 1, 1, 1], "group_width": [8, 8, 16, 16]}  # QUICK's
    weights = tmp_path / "weights.pt"
    torch.save(create_model("nfnet_pico", 3, overrides=overrides).state_dict(), weights)
    known = pinned(str(weights))

    flags = [
        "--data",
        few_digits,
        "--epochs",
        "1",
        *QUICK,
        *ONE_AT_A_TIME,
        "--set",
        "schedule.base_learning_rate=0.4",
    ]
    refused = workplace.run_here("--name", "first", *flags)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "Name a file with --weights" in refused.stderr

    # Relative to where the command is given, which is not where a worker runs.
    result = workplace.run("--name", "first", *flags, "--weights", "weights.pt", "--address", cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"tensors from {weights}" in " ".join(result.stdout.split())
    progress = workplace.progress("first")
    assert {name: trial.state for name, trial in progress.trials.items()} == {
        f"base_learning_rate=0.4,trained={trained},weights={kind}": "finished"
        for trained in ("classifier", "all")
        for kind in ("weights.pt", "none")
    }
    assert progress.started is not None
    assert progress.started["study"]["space"]["model.weights"] == [known, None]

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("nfnet_ray.transfer")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
    assert sorted(run.data.params["model.weights"] for run in runs) == [known, known, "none", "none"]

    weights.write_bytes(weights.read_bytes() + b" ")
    refused = workplace.run_here("--resume", "first", "--address", cluster)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "not the file that was meant" in refused.stderr
    refused = workplace.run_here("--resume", "first", "--weights", "weights.pt")
    assert "--weights cannot be changed with --resume" in refused.stderr
