"""A study whose trials are one program: stopped within a leg, resumed, and through a rung to its end. About 20 s."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nfnet_ray.analysis import load_study
from tests.e2e.workplace import Workplace, one_at_a_time

pytestmark = pytest.mark.slow

FACTORS = "0.01,0.02,0.04,0.08"


def test_a_study_in_cohorts_is_stopped_resumed_and_finished(
    tmp_path: Path, few_digits: Path, cluster: str
) -> None:
    """And it is not recorded in MLflow, as it was told when it began."""
    place = Workplace(tmp_path)
    process = place.start(
        *one_at_a_time(few_digits),
        *("--name", "n", "--cohorts", "4", "--sweep", f"optimizer.agc.clip_factor={FACTORS}"),
        *("--early-stopping", "synchronous:first_rung=2,eta=4,finalists=2", "--tracking-uri", "none"),
        *("--address", cluster),
    )
    said = place.interrupt_after(process, "n", lambda event: event["event"] == "epoch")
    assert "cohorts side by side: 1, of at most 4 trials each" in said
    assert process.returncode == 130
    assert f"--resume n --address {cluster} --tracking-uri none --trials-at-once 1" in said
    stopped = place.progress("n")
    assert {trial.state for trial in stopped.trials.values()} == {"interrupted"}
    for trial in stopped.trials:  # a lane keeps its checkpoints where a single trial does
        assert list((tmp_path / "runs" / "n" / "trials" / trial / "checkpoints").glob("*.pt"))

    done = place.run(
        *("--resume", "n", "--address", cluster, "--tracking-uri", "none", "--trials-at-once", "1")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not recorded" in done.stdout
    assert "studies publish" not in done.stdout
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    state = place.progress("n")
    left = [trial for trial in state.trials.values() if trial.state == "finished"]
    assert 2 <= len(left) <= 4  # trials within noise of the second are promoted, too
    started = [event.get("lanes") for event in place.events("n") if event["event"] == "trial_started"]
    assert started == [4] * 8 + [len(left)] * len(left)
    seconds = 0.0
    for trial in state.trials.values():
        assert list(trial.epochs) == ([1, 2, 3] if trial.state == "finished" else [1, 2])
        assert {json.loads(text)["lanes"] for text in trial.conditions.values()} <= {4, len(left)}
        assert trial.correct_images
        seconds += (trial.last("train_seconds") or 0.0) + (trial.last("eval_seconds") or 0.0)
    assert 0 < seconds < state.accelerator_seconds < state.wall_seconds
    assert "4 of 4 trials were trained in cohorts of" in (tmp_path / "runs/n/report.html").read_text()
    assert load_study(tmp_path / "runs" / "n").state == "finished"
