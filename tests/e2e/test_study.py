"""A study from the command line to the report, through every real part: Ray, the loader, MLflow, the page."""

from __future__ import annotations

import os
import platform
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from data_prep.__main__ import main as data_prep
from nfnet_ray.correct_images import CorrectImages
from tests.cluster.training import kill
from tests.deadlines import HANG_SECONDS
from tests.e2e.workplace import QUICK, Workplace, one_at_a_time

pytestmark = pytest.mark.slow

CLOCK_METRICS = ("_seconds", "_per_second", "_bytes", "shared_batches")


def numbers(workplace: Workplace, study: str, trial: str) -> dict[int, dict[str, Any]]:
    """{epoch: metrics} of a trial, without what depends on how long things took."""
    epochs = workplace.progress(study).trials[trial].epochs
    return {
        epoch: {name: value for name, value in metrics.items() if not name.endswith(CLOCK_METRICS)}
        for epoch, metrics in epochs.items()
    }


def test_a_study_runs_through_and_can_be_seen_everywhere(workplace: Workplace, few_digits: Path) -> None:
    """Four trials on two actors: three that learn, and one without clipping that diverges."""
    result = workplace.run_as_typed(
        "--name", "first", "--data", few_digits, "--epochs", "2", *QUICK,
        "--set", "schedule.base_learning_rate=30", "--set", "schedule.warmup_epochs=0",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    progress = workplace.progress("first")
    states = {name: trial.state for name, trial in progress.trials.items()}
    assert len(states) == 7
    assert states["clip_factor=none,batch_size=48"] == "diverged"
    assert "loss became" in str(progress.trials["clip_factor=none,batch_size=48"].reason)
    for name, trial in progress.trials.items():
        if trial.state == "finished":
            assert list(trial.correct_images)[-1] == trial.epoch
        for epoch, text in trial.correct_images.items():
            images = CorrectImages.from_text(text)
            assert images.correct.mean() == pytest.approx(
                trial.epochs[epoch]["validation_top1"], abs=1e-12
            ), name
    assert "finished" in states.values()
    assert set(states.values()) <= {"finished", "stopped", "diverged"}

    for said in (
        "top-1",
        "Best setting",
        "report.html",
        "-m dashboards.compare runs/first",
        "-m studies publish runs/first",
        "diverged",
    ):
        assert said in result.stdout
    report = (workplace.folder / "runs" / "first" / "report.html").read_text()
    assert "diverged" in report
    assert "<script src=" not in report

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{workplace.folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("nfnet_ray.agc_sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.study = 'first'")
    assert sorted(run.data.tags["kind"] for run in runs) == ["study"] + ["trial"] * 7
    for run in runs:
        if run.data.tags["kind"] != "trial":
            continue
        trial = progress.trials[run.data.tags["trial"]]
        assert run.data.tags["state"] == trial.state
        assert run.data.params["model.name"] == "nfnet_pico"
        assert run.data.params["batch_size"] == "48"
        for metric in ("validation_top1", "train_seconds", "startup_seconds", "images_per_second"):
            history = client.get_metric_history(run.info.run_id, metric)
            assert {m.step: m.value for m in history} == {e: v[metric] for e, v in trial.epochs.items()}
        if trial.state == "finished":
            [busy] = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")[-1:]
            assert (busy.step, 0 < busy.value <= 100) == (trial.epoch, True)
            assert run.data.tags["nodes"] == platform.node()


class GoesAway(BaseHTTPRequestHandler):
    """A tracking server that answers the first question, whether the experiment is there, and nothing else."""

    questions = 0

    def do_GET(self) -> None:
        GoesAway.questions += 1
        self.send_response(404 if GoesAway.questions == 1 else 503)
        self.end_headers()
        self.wfile.write(b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}')

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def untracked(
    tmp_path_factory: pytest.TempPathFactory, few_digits: Path, cluster: str
) -> tuple[Workplace, str]:
    """A place with the study ``untracked``, whose tracking server goes away; and what it printed.

    It is the third trial of ``whole`` alone, in an actor that has trained nothing else.
    """
    place = Workplace(tmp_path_factory.mktemp("untracked"))
    server = HTTPServer(("127.0.0.1", 0), GoesAway)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        result = place.run(
            "--name", "untracked", *one_at_a_time(few_digits), "--set", "optimizer.agc.clip_factor=0.02",
            "--address", cluster, "--tracking-uri", f"http://127.0.0.1:{server.server_port}",
        )  # fmt: skip
    finally:
        server.shutdown()
    assert result.returncode == 3, result.stdout + result.stderr
    return place, result.stdout


def test_a_trial_in_a_used_actor_gives_the_numbers_of_one_in_a_fresh_actor(
    whole: Workplace, untracked: tuple[Workplace, str]
) -> None:
    third = "clip_factor=0.02,batch_size=48"
    in_used_actor, in_fresh_actor = numbers(whole, "whole", third), numbers(untracked[0], "untracked", third)
    assert in_used_actor  # it may have been stopped early
    assert in_used_actor == {epoch: in_fresh_actor[epoch] for epoch in in_used_actor}


@pytest.mark.parametrize("kind", ["stretched", "seconds"])
def test_a_study_with_other_rungs_ends_with_the_numbers_of_an_undisturbed_one(
    place: Workplace, whole: Workplace, few_digits: Path, cluster: str, kind: str
) -> None:
    """Complete schedules of 1 and 3 epochs, or a rung so early that every trial reaches it in its first epoch."""
    options = {"stretched": "first_rung=1", "seconds": "first_rung=0.001,unit=seconds"}[kind]
    flags = [*one_at_a_time(few_digits), "--trials", "2", "--address", cluster]
    flags += ["--early-stopping", f"synchronous:finalists=1,eta=2,{options}"]
    result = place.run(
        "--name", kind, *flags, "--schedule", "stretched" if kind == "stretched" else "truncated"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    progress = place.progress(kind)
    assert {trial.paused.popitem()[1] for trial in progress.trials.values()} == {1}
    finished = [name for name, trial in progress.trials.items() if trial.state == "finished"]
    assert finished
    for name in finished:
        mine, undisturbed = numbers(place, kind, name), numbers(whole, "whole", name)
        seconds = [metrics["train_seconds"] for metrics in progress.trials[name].epochs.values()]
        assert seconds == sorted(seconds)
        if kind == "seconds":
            assert mine == undisturbed
            continue
        assert list(mine) == [1, 2, 3, 4]
        assert [epoch["schedule_epochs"] for epoch in mine.values()] == [1, 3, 3, 3]
        for epoch, metrics in undisturbed.items():  # the last schedule is a run of its own
            assert mine[epoch + 1] | metrics == mine[epoch + 1] | {"epoch": epoch}
        kept = place.folder / "runs" / kind / "trials" / name / "checkpoints"
        assert sorted(folder.name for folder in kept.iterdir()) == ["epochs-1", "epochs-3"]
    if kind == "stretched":
        assert "given up after a schedule of 1 epoch" in result.stdout or len(finished) == 2
        report = (place.folder / "runs" / kind / "report.html").read_text()
        assert "Accuracy against budget" in report


def test_a_study_that_is_interrupted_again_and_again_ends_with_the_numbers_of_an_undisturbed_one(
    place: Workplace, whole: Workplace, few_digits: Path, cluster: str
) -> None:
    """By data that is replaced, Ctrl-C, and a cap that bites two seconds later."""
    data, other = shutil.copytree(few_digits, place.folder / "data"), place.folder / "other"
    arguments = ["convert", few_digits.parent / "source", other, "--holdout", "0.3"]
    assert data_prep([*map(str, arguments)]) == 0
    flags = [*one_at_a_time(data), "--trials", "3", "--address", cluster]
    process = place.start("--name", "broken", *flags)
    place.wait_for(process, "broken", lambda event: event["event"] == "epoch")
    data.rename(place.folder / "first")
    other.rename(data)
    # The first trial ends with what it has open; the next one finds another data set of the same shape.
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 2, out + err
    assert err.count("\n") == 1
    assert f"{data} is not the data set that this began with (fingerprint " in err
    assert "put that one back, then resume with" in err
    states = {name: trial.state for name, trial in place.progress("broken").trials.items()}
    assert list(states.values()) == ["finished", "interrupted", None]
    shutil.rmtree(data)
    (place.folder / "first").rename(data)

    resume = ["--resume", "broken", "--address", "auto", "--trials-at-once", "1"]
    process = place.start(*resume)
    printed = place.interrupt_after(
        process, "broken", lambda event: event["event"] == "epoch" and "=0.01," in event["trial"]
    )
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "--resume broken" in printed
    states = {name: trial.state for name, trial in place.progress("broken").trials.items()}
    assert list(states.values()) == ["finished", "interrupted", None]

    cap = place.progress("broken").accelerator_seconds + 2
    capped = place.run(*resume, "--max-gpu-hours", f"{cap / 3600:.9f}")
    assert capped.returncode == 0, capped.stderr
    assert "broken has ended early: its cap of" in capped.stdout
    assert "--resume broken --address auto --trials-at-once 1 --max-gpu-hours" in capped.stdout
    assert "Best so far" in capped.stdout
    events = place.events("broken")
    assert "its cap of" in events[-1]["reason"]  # type: ignore[typeddict-item]
    assert cap <= place.progress("broken").accelerator_seconds < cap + 60
    assert "its cap of" in (place.folder / "runs" / "broken" / "report.html").read_text()

    used_up = place.run_here(*resume)
    assert used_up.returncode == 0, used_up.stderr
    assert "Ray" not in used_up.stdout
    assert place.events("broken") == events

    resumed = place.run(*resume, "--max-gpu-hours", "none")
    assert resumed.returncode == 0, resumed.stderr
    assert place.progress("broken").unfinished == []
    started = [event["trial"] for event in place.events("broken") if event["event"] == "trial_started"]
    assert started.count("clip_factor=0.005,batch_size=48") == 1  # it had finished before
    reported = [
        (event["trial"], event["epoch"]) for event in place.events("broken") if event["event"] == "epoch"
    ]
    assert len(reported) == len(set(reported))
    for trial in whole.progress("whole").trials:
        assert numbers(place, "broken", trial) == numbers(whole, "whole", trial)


def test_a_killed_trial_resumes_from_its_checkpoint(place: Workplace, few_digits: Path, cluster: str) -> None:
    common = ["--data", few_digits, "--epochs", "12", *QUICK, "--trials", "1", "--address", cluster]
    process = place.start("--name", "killed", *common)
    # The first epoch's checkpoint is complete before that of the second one is begun.
    place.wait_for(process, "killed", lambda event: event["event"] == "epoch" and event["epoch"] == 3)
    kill("ray::ImplicitFunc", os.getpid())  # the title that Ray gives the process of a Tune function
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, out + err
    trial = place.progress("killed").trials["clip_factor=0.005,batch_size=48"]
    assert (trial.state, trial.epoch, trial.attempts) == ("finished", 12, 2)
    assert (trial.last("lost_seconds") or 0) > 0  # told by the clock in the checkpoint
    epochs = [event["epoch"] for event in place.events("killed") if event["event"] == "epoch"]
    assert epochs == list(range(1, 13))  # the one that was running is done twice, and told once


def test_a_plan_goes_by_earlier_trials_on_the_same_hardware(
    whole: Workplace, few_digits: Path, cluster: str
) -> None:
    flags = [*one_at_a_time(few_digits), "--trials", "3", "--address", cluster, "--price-per-hour", "2"]
    # Not here: a process in which Ray has read another token keeps that one.
    plan = whole.run("--plan", *flags)
    assert plan.returncode == 0, plan.stderr
    assert "with 1 trial at once" in plan.stdout
    assert "measured by 3 earlier trials in" in plan.stdout
    assert "at 2 per worker-hour" in plan.stdout


def test_a_tracking_server_that_goes_away_costs_nothing(untracked: tuple[Workplace, str]) -> None:
    place, printed = untracked
    assert "could not be delivered" in printed
    assert (place.folder / "runs" / "untracked" / "report.html").exists()
    [trial] = place.progress("untracked").trials.values()
    assert (trial.state, list(trial.epochs)) == ("finished", [1, 2, 3])


def test_plan_starts_nothing_and_help_reads_well(workplace: Workplace) -> None:
    plan = workplace.run_here("--plan", "--epochs", "4", *QUICK)
    assert plan.returncode == 0, plan.stderr
    assert "7 trials of nfnet_pico" in plan.stdout
    assert "measured just now on this machine, by" in plan.stdout
    assert "Memory: " in plan.stdout
    assert "Nothing was started" in plan.stdout
    assert list(workplace.folder.iterdir()) == []
    text = workplace.run_here("--help").stdout
    assert "optimizer.agc.clip_factor" in text
    assert "--workers-per-trial" in text
