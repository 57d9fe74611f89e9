"""A study with a range, from its command line: killed, resumed, extended in the same journal, its winner confirmed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.deadlines import HANG_SECONDS
from tests.e2e.workplace import ONE_AT_A_TIME, QUICK, REPOSITORY, Workplace

pytestmark = pytest.mark.slow

CLIP = "optimizer.agc.clip_factor"


def test_a_range_is_resumed_after_a_kill_extended_in_the_same_journal_and_confirmed(
    used_workplace: Workplace, few_digits: Path, cluster: str
) -> None:
    place = used_workplace
    place.study = REPOSITORY / "studies" / "sweep.py"
    flags = ["--data", few_digits, "--epochs", "2", *QUICK, *ONE_AT_A_TIME, "--address", cluster]
    flags += ["--set", "compile=auto"]  # eager forms are timed; the run is too short for others
    driver = place.start("--name", "range", "--sweep", f"{CLIP}=log:0.002..0.3", "--trials", "2", *flags)
    place.wait_for(driver, "range", lambda event: event["event"] == "epoch")
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=HANG_SECONDS)
    planned = [*place.progress("range").trials]
    assert len(planned) == 2

    resumed = place.run("--resume", "range", "--address", cluster, "--trials-at-once", "1")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    first = place.progress("range")
    assert {trial.state for trial in first.trials.values()} == {"finished"}
    assert [*first.trials] == planned

    # The better one is kept, the other one is outside, and a new point is drawn.
    low = max(plan["point"][CLIP] for plan in first.plans.values())
    extended = place.run(
        *("--extend", "range", "--sweep", f"{CLIP}=log:{low}..0.3", "--trials", "2"),
        *("--seeds", "2", "--confirm", "1"),
        *("--address", cluster, "--trials-at-once", "1"),
    )
    assert extended.returncode == 0, extended.stdout + extended.stderr
    assert (
        "Extended: 1 new trial, 1 that it has already, 1 earlier trial stays as evidence" in extended.stdout
    )
    assert "not in the study any more" in extended.stdout
    last = place.progress("range")
    [rerun] = last.confirming
    assert {(last.trials[name].state, last.trials[name].epoch) for name in last.repeating} == {
        ("finished", 2)
    }
    assert {last.further[name]["recipe"]["seed"] for name in last.repeating} == {1}
    assert len(last.repeating) == 2  # the two best alone
    # The rerun is compared with the seeds of the other contender, and no spread is assumed.
    assert "in the sweep)" in extended.stdout
    assert "an assumed spread" not in extended.stdout.partition("Best setting")[2].partition("\n")[0]
    assert (last.trials[rerun].state, last.trials[rerun].epoch) == ("finished", 2)
    assert last.reruns[rerun]["recipe"]["seed"] == 1000
    assert "rerun of the winner" in extended.stdout
    assert "in reruns with fresh seeds" in extended.stdout
    # The choice of the first trial, which the driver that was killed had written, holds for all later ones.
    assert [event["event"] for event in place.events("range")].count("form_chosen") == 1
    told = [text for trial in last.trials.values() for text in trial.conditions.values()]
    assert {json.loads(text)["compile"] for text in told} == {False}
    started = [event["trial"] for event in place.events("range") if event["event"] == "trial_started"]
    new = [*set(last.trials) - set(planned) - {rerun, *last.repeating}]
    assert len(new) == 1
    assert started.count(new[0]) == 1
    assert {name: trial.attempts for name, trial in last.trials.items() if name in planned} == {
        name: trial.attempts for name, trial in first.trials.items()
    }
    report = (place.folder / "runs" / "range" / "report.html").read_text()
    assert "Not in the study any more" in report
    assert "Reruns of the winner" in report

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{place.folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("nfnet_ray.sweep")
    assert experiment is not None
    runs = client.search_runs(
        [experiment.experiment_id], "tags.study = 'range' AND tags.kind != 'study' AND tags.kind != 'setting'"
    )
    assert {run.data.tags["trial"]: run.data.tags.get("left_out") for run in runs} == {
        name: "true" if name in last.outside else "false" for name in last.trials
    }
    kinds = {run.data.tags["trial"]: run.data.tags["kind"] for run in runs}
    assert kinds == {name: "rerun" if name == rerun else "trial" for name in last.trials}

    again = place.run_here("--extend", "range", "--sweep", f"{CLIP}=log:{low}..0.3", "--trials", "2")
    assert again.returncode == 0, again.stderr
    assert "there is nothing to train" in again.stdout
    refused = place.run_here("--extend", "range", "--set", "optimizer.momentum=0.5")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "optimizer.momentum" in refused.stderr
