"""``ray job submit`` for real: a head with a token, an upload, status, logs, stop, and the same job again.

Meanwhile Debian's Prometheus, where it is installed, collects the head's metrics, and is then asked for everything that
Grafana's board shows. The head runs in its own processes, folder and ports, and is the only Ray that is touched. Takes
a minute or two.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.state import StudyState
from tests import deadlines
from tests.deadlines import HANG_SECONDS
from tests.deploy import prometheus
from tests.deploy.prometheus import BOARDS, Prometheus, alerts
from tests.ports import unused_port

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
# Neither Ray's own nor those of tests/e2e: another head may be up on this machine.
GCS_PORT, DASHBOARD_PORT, AGENT_PORT, CLIENT_PORT, METRICS_PORT = (unused_port() for _ in range(5))
TOKEN = "0123456789abcdef" * 4
STUDY = "agc_sweep-mine"
LEFT_AT_HOME = ("data", "runs", "mlruns", ".venv", ".venv-uv", ".git", "build")
# The sources take 3.02 MB. This leaves room to grow, and is less than the fixtures of the tests alone.
LARGEST_UPLOAD_BYTES = 4_000_000

# How often it is looked whether the job has failed.
SECONDS_BETWEEN_LOOKS = 20.0


# For each line of JSON, [a file, the words of a command], it runs the command in a process of its own, which prints to
# the file, and prints its exit code. All of Ray's commands are imported once, for two seconds of a core.
COMMANDS = """\
import json, os, sys
from ray.scripts.scripts import main
for line in sys.stdin:
    output, sys.argv = json.loads(line)
    if (child := os.fork()) == 0:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def laptop(home: Path, token: str | None) -> dict[str, str]:
    """The environment of somebody who can reach the head."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD_PORT}", "HOME": str(home)}
    return variables | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})


class Commands:
    """The command ``ray``, imported once."""

    def __init__(self, home: Path) -> None:
        self._output = home / "said"
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMANDS],
            env=laptop(home, TOKEN),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = ["ray", *arguments]
        self._process.stdin.write(json.dumps([str(self._output), command]) + "\n")
        self._process.stdin.flush()
        ended, _, _ = select.select([self._process.stdout], [], [], HANG_SECONDS)
        assert ended, f"no end of {command}: {self._output.read_text()}"
        code = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(command, code, self._output.read_text(), "")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Head:
    """A head that is up. ``home`` is NFNET_RAY_HOME of everything that it starts.

    ``prometheus`` collects its metrics, from before the first study; None where it is not installed.
    """

    home: Path
    commands: Commands
    prometheus: Prometheus | None

    def ray(self, *arguments: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        """The command ``ray``, as on a laptop that can reach the head."""
        if token:
            return self.commands.run(*arguments)
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *arguments],
            env=laptop(self.home, None),
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )

    def events(self, study: str) -> list[Event]:
        return [event for event, _ in read_events(self.home / "runs" / study / JOURNAL_FILE)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Ray's sockets lie in it
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "NFNET_RAY_HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # as deploy/kubernetes/cluster sets it
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", f"--port={GCS_PORT}", f"--dashboard-port={DASHBOARD_PORT}"]
    command += [f"--dashboard-agent-listen-port={AGENT_PORT}", f"--ray-client-server-port={CLIENT_PORT}"]
    command += [f"--metrics-export-port={METRICS_PORT}", "--min-worker-port=0", "--max-worker-port=0"]
    watch, commands = None, Commands(home)
    with open(Path(folder) / "head.log", "w") as log:
        process = subprocess.Popen(
            [*command, f"--temp-dir={folder}"], env=environment, stdout=log, stderr=log
        )
    try:
        if prometheus.is_installed():
            targets = Path(folder) / "prom_metrics_service_discovery.json"
            watch = Prometheus(tmp_path_factory.mktemp("prometheus") / "it", targets)
        head = Head(home, commands, watch)
        wait_until_up(process, listens, Path(folder) / "head.log")
        wait_until_up(  # its job agent comes up last
            process,
            lambda: head.ray("job", "submit", "--no-wait", "--", "true").returncode == 0,
            Path(folder) / "head.log",
        )
        yield head
    finally:
        if watch is not None:
            watch.close()
        commands.close()
        process.send_signal(signal.SIGTERM)  # it ends what it started
        process.wait(HANG_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository after a while of use: data, results, caches. Its workers say which code they run."""
    folder = tmp_path_factory.mktemp("checkout") / "nfnet_ray"

    def at_home(directory: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(directory) == REPOSITORY and name in LEFT_AT_HOME]

    shutil.copytree(REPOSITORY, folder, ignore=at_home, symlinks=True)
    for name in ("data/imagenet/train.beton", "runs/old/journal.jsonl", ".venv/lib/libtorch.so", "mlruns/0/meta",
                 "mlflow.db", "scratch.beton", ".git/objects/pack", "nfnet_ray/__pycache__/big.pyc", "F0_haiku.npz",
                 "imagenet/train/n01440764/n01440764_18.JPEG", "downloads/cifar-10-binary.tar.gz"):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1 << 20))
    with (folder / "nfnet_ray" / "cluster" / "trial.py").open("a") as module:
        module.write(
            "\nimport os\nfrom pathlib import Path\n"
            "Path(os.environ['NFNET_RAY_HOME'], f'code-{os.getpid()}').write_text(__file__)\n"
        )
    return folder


def test_the_upload_is_the_sources_alone(head: Head, checkout: Path) -> None:
    listing = (
        "import os; from pathlib import Path;"
        "[print('FILE', path.stat().st_size, path) for path in Path('.').rglob('*') if path.is_file()]"
    )
    result = head.ray("job", "submit", "--working-dir", str(checkout), "--", "python", "-c", listing)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("FILE ")]
    files = {Path(name): int(size) for _, size, name in lines}
    assert {
        Path("studies/agc_sweep.py"),
        Path("nfnet_ray/data/loading/loader.py"),
        Path("data_prep/conversion/convert.py"),
    } <= set(files)
    assert {file.parts[0] for file in files if len(file.parts) > 1} == {
        "nfnet_ray",
        "studies",
        "data_prep",
        "dashboards",
    }
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    sources = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert set(files) <= set(map(Path, sources.splitlines()))
    assert sum(files.values()) < LARGEST_UPLOAD_BYTES


def test_a_study_is_submitted_watched_stopped_and_submitted_again(head: Head, checkout: Path) -> None:
    study = STUDY
    submit = ["job", "submit", "--submission-id", "mine", "--working-dir", str(checkout)]
    # On the built-in digits: an epoch takes about two seconds, so that the study is stopped long before its end.
    entrypoint = [
        "--",
        "python",
        "studies/agc_sweep.py",  # without --address: it is in a cluster
        "--trials",
        "1",
        "--epochs",
        "5",
        "--price-per-hour",
        "2",
    ]

    refused = head.ray(*submit, *entrypoint, token=None)
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()

    started = head.ray(*submit[:2], "--no-wait", *submit[2:], *entrypoint)
    assert started.returncode == 0, said(started)
    assert re.search("PENDING|RUNNING", said(head.ray("job", "status", "mine")))
    wait_until(head, lambda: any(event["event"] == "epoch" for event in head.events(study)))
    stopped = head.ray("job", "stop", "mine")
    assert stopped.returncode == 0, said(stopped)
    assert "was stopped" in said(stopped)
    log = said(head.ray("job", "logs", "mine"))
    assert "Traceback" not in log
    assert f"--resume {study}" in log
    [trial] = StudyState.read(head.home / "runs" / study)[0].trials.values()
    assert trial.state == "interrupted"
    before = trial.epoch
    assert 0 < before < 5

    assert "already exists" in said(head.ray(*submit, *entrypoint))
    assert head.ray("job", "delete", "mine").returncode == 0
    again = head.ray(*submit, *entrypoint)
    assert again.returncode == 0, said(again)
    assert "'mine' succeeded" in said(head.ray("job", "status", "mine"))
    [trial] = StudyState.read(head.home / "runs" / study)[0].trials.values()
    assert (trial.state, trial.epoch, trial.attempts) == ("finished", 5, 2)
    epochs = [event["epoch"] for event in head.events(study) if event["event"] == "epoch"]
    assert len(epochs) <= 6  # at most the epoch that was running is done twice

    code = {Path(path.read_text()) for path in head.home.glob("code-*")}
    assert code  # the workers', and the driver's
    assert all("runtime_resources" in path.parts for path in code), code


def test_prometheus_has_what_the_board_shows_and_it_is_the_journals(head: Head, checkout: Path) -> None:
    """Of the study above. There is no GPU here, so that Ray's own metrics of GPUs are the only ones without a value."""
    if head.prometheus is None:
        pytest.skip(prometheus.WHAT_IS_MISSING)
    if not head.events(STUDY):  # this test runs alone
        entrypoint = [
            "python",
            "studies/agc_sweep.py",
            "--trials",
            "1",
            "--epochs",
            "2",
            "--price-per-hour",
            "2",
        ]
        result = head.ray(
            "job", "submit", "--submission-id", "mine", "--working-dir", str(checkout), "--", *entrypoint
        )
        assert result.returncode == 0, said(result)
    state, _ = StudyState.read(head.home / "runs" / STUDY)
    [trial] = state.trials.values()
    of_study = f'{{study="{STUDY}"}}'

    # What the driver set last: it hands that over when it leaves Ray.
    finished = f'ray_nfnet_trials{{study="{STUDY}", state="finished"}}'
    ask = head.prometheus.query
    deadlines.wait_until(
        lambda: bool(ask(f"last_over_time({finished}[1h]) == 1")), "the study's last numbers"
    )
    at = max(
        float(time) for series in ask(f"{finished}[1h]") for time, value in series["values"] if value == "1"
    )
    assert head.prometheus.get("label/study/values") == [STUDY]

    def last(gauge: str, **labels: str) -> float:
        wanted = ", ".join(f'{name}="{value}"' for name, value in {"study": STUDY, **labels}.items())
        [series] = ask(f"max by (study) (ray_nfnet_{gauge}{{{wanted}}})", at)
        return float(series["value"][1])

    assert last("trials", state="waiting") == last("trials", state="running") == 0
    assert last("lost_seconds") == trial.last("lost_seconds")
    assert last("paid_accelerator_seconds") == pytest.approx(state.accelerator_seconds)
    assert last("cost") == pytest.approx(state.accelerator_seconds / 3600 * 2)
    idle = state.idle_time()
    assert idle is not None
    assert last("idle_accelerator_seconds", waiting_for="start") == pytest.approx(idle.starting)
    assert last("available_accelerator_seconds") == pytest.approx(idle.available)
    assert last("places") == state.sessions[-1].places
    assert last("mlflow_backlog_events") == 0
    # Of a driver that has ended its study nobody is told that it is gone; by its "running" alone it would be.
    [gone] = [rule["expr"] for rule in alerts() if rule["alert"] == "NfnetDriverIsGone"]
    assert [series["metric"] for series in ask(gone.partition(" unless ")[0], at + 1000)] == [
        {"study": STUDY}
    ]
    assert ask(gone, at + 1000) == []
    assert last("trial_epoch", trial=trial.name) == trial.epoch
    for gauge, metric in {
        "images_per_second": "images_per_second",
        "clipped_share": "agc_clipped_fraction",
        "train_loss": "train_loss",
        "validation_top1": "validation_top1",
    }.items():
        assert last(f"trial_{gauge}", trial=trial.name) == trial.last(metric)
        seen = {
            float(value)
            for series in ask(f"ray_nfnet_trial_{gauge}{of_study}[1h]")
            for _, value in series["values"]
        }
        assert seen <= {metrics[metric] for metrics in trial.epochs.values()}

    empty = set()
    for board in BOARDS:
        for panel in prometheus.panels(json.loads(board.read_text())):
            for target in panel["targets"]:
                expression = target["expr"].replace("$study", STUDY).replace("$session", ".*")
                found = ask(expression, at)
                if not found:
                    empty.add(panel["title"])
                labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert all(labels == set(series["metric"]) for series in found), (panel["title"], found)
    assert empty == {"GPU utilisation, by node", "GPU memory in use, by node"}

    [group] = head.prometheus.get("rules")["groups"]
    assert group["rules"]
    assert [rule["lastError"] for rule in group["rules"] if rule["health"] == "err"] == []


def wait_until_up(process: subprocess.Popen[bytes], is_up: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not is_up():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.5)


def listens() -> bool:
    """Whether the head's dashboard answers; asking it by a command of Ray's takes seconds of a core."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", DASHBOARD_PORT)):
        return True
    return False


def said(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout + result.stderr


def wait_until(head: Head, condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; fails if the job has."""
    deadline = time.monotonic() + HANG_SECONDS
    next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
    while not condition():
        if time.monotonic() > next_look:
            if time.monotonic() > deadline or "'mine' failed" in said(head.ray("job", "status", "mine")):
                pytest.fail(said(head.ray("job", "logs", "mine")))
            next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        time.sleep(0.2)
