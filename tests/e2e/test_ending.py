"""A study and a training that are told to end save a checkpoint, say how to resume, and leave nothing of Ray.

So they do when their Ray ends under them, with the last checkpoint that was saved.

About 90 s: five Rays of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nfnet_ray.cluster.connection.warden import start_time
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
from tests.cluster.training import descendants
from tests.deadlines import HANG_SECONDS, wait_until
from tests.e2e.workplace import QUICK, REPOSITORY, Workplace
from tests.preloaded import DATA_PARALLEL_MODULES, PreloadedProgram, start_program

pytestmark = pytest.mark.slow

LONG = ["--epochs", "100000"]


def is_left(process: int, began: str | None) -> bool:
    """Whether it is still the process that began then, and no zombie."""
    try:
        return start_time(process) == began and Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except OSError:
        return False


def start(place: Workplace, data: Path, program: str, *further: str) -> PreloadedProgram:
    """A run ``n`` of a very long time, in a process group of its own, that has trained an epoch."""
    command = [str(REPOSITORY / "studies" / program), "--name", "n", "--data", str(data), *LONG, *QUICK]
    driver = start_program(
        DATA_PARALLEL_MODULES, *command, *further, folder=place.folder, is_new_session=True
    )

    def has_trained() -> bool:
        assert driver.poll() is None, driver.communicate()
        return any(event["event"] == "epoch" for event in place.events("n"))

    wait_until(has_trained, "the first epoch")
    return driver


@pytest.mark.parametrize(
    ("program", "further"), [("agc_sweep.py", ["--trials", "3"]), ("train.py", ["--cpus-per-worker", "1"])]
)
def test_sigterm_to_all_processes_ends_a_run_as_ctrl_c_does(
    used_workplace: Workplace, few_digits: Path, program: str, further: list[str]
) -> None:
    """First to its process group, as ``timeout`` does, then to each process, as systemd does."""
    driver = start(used_workplace, few_digits, program, *further)
    processes = {process: start_time(process) for process in descendants(driver.pid)}
    assert len(processes) > 5  # its Ray
    os.killpg(driver.pid, signal.SIGTERM)
    for process in processes:
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            continue
    out, err = driver.communicate(timeout=HANG_SECONDS)
    assert driver.returncode == 130, out + err
    assert err == ""
    assert "--resume n" in out
    assert (used_workplace.folder / "runs" / "n" / "report.html").exists()
    last = used_workplace.events("n")[-1]
    assert last["event"] == "study_ended"
    assert last["state"] == "interrupted"
    assert not any(
        event["event"] == "trial_started" and "0.04" in event["trial"] for event in used_workplace.events("n")
    )
    trial, progress = next(
        (name, trial) for name, trial in used_workplace.progress("n").trials.items() if trial.epochs
    )
    assert progress.state == "interrupted"
    kept = CheckpointStore(used_workplace.folder / "runs" / "n" / "trials" / trial / "checkpoints").entries()
    assert kept[0].epoch >= progress.epoch
    wait_until(lambda: not any(is_left(*process) for process in processes.items()), "the last process")


@pytest.mark.parametrize(
    ("program", "further", "server", "said"),
    [
        ("train.py", ["--cpus-per-worker", "1"], "raylet", "Ray's node has ended (raylet, by SIGKILL)"),
        ("agc_sweep.py", ["--trials", "1"], "gcs_server", "Ray's head has ended (gcs_server, by SIGKILL)"),
    ],
)
def test_a_run_whose_ray_ends_under_it_says_so_and_how_to_resume(
    workplace: Workplace, few_digits: Path, program: str, further: list[str], server: str, said: str
) -> None:
    driver = start(workplace, few_digits, program, "--tracking-uri", "none", *further)
    processes = {process: start_time(process) for process in descendants(driver.pid)}
    for process in processes:
        if Path(f"/proc/{process}/comm").read_text().strip() == server:
            os.kill(process, signal.SIGKILL)
    out, err = driver.communicate(timeout=HANG_SECONDS)
    assert driver.returncode == 2, out + err
    assert err.startswith(f"{program}: stopped, as {said}; look into Ray's logs in ")
    assert "then resume with `" in err
    assert "--resume n" in err
    assert err.count("\n") == 1
    last = workplace.events("n")[-1]
    assert last["event"] == "study_ended"
    assert last["state"] == "interrupted"
    trials = workplace.progress("n").trials.values()
    assert {trial.state for trial in trials if trial.attempts} == {"interrupted"}
    wait_until(lambda: not any(is_left(*process) for process in processes.items()), "the last process")


DRIVER = """\
import os, signal
from nfnet_ray.cluster.connection.session import ray_session
with ray_session(None):
    import ray
    class Busy:
        def begin(self): return os.getpid()
        def work(self):
            while True: pass
    busy = ray.remote(Busy).remote()
    ray.get(busy.begin.remote())
    busy.work.remote()
    print("up", flush=True)
    signal.pause()
"""


def test_no_process_of_its_ray_survives_a_driver_that_is_killed(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "up\n"
    processes = {process: start_time(process) for process in descendants(driver.pid)}
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(is_left(*process) for process in processes.items()), "the last process")
