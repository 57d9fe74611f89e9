"""Trainings that are disturbed, and what they leave behind: a workplace for the tests of studies/train.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nfnet_ray.cluster.connection.ray_internals import LOCAL_SETTINGS
from nfnet_ray.data.files.dataset import check_dataset
from nfnet_ray.recipe import Recipe, parse_setting
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
from studies.running.training import TrainingRequest
from tests.deadlines import HANG_SECONDS
from tests.preloaded import DATA_PARALLEL_MODULES, TRAINING_MODULES, PreloadedProgram, start_program

SCRIPT = Path(__file__).with_name("disturbed.py")
BATCH = 48
EPOCHS = 12  # of five steps
QUICK = [
    "model.overrides.width=[16, 16, 32, 32]",
    "model.overrides.depth=[1, 1, 1, 1]",
    "model.overrides.group_width=[8, 8, 16, 16]",
    "schedule.warmup_epochs=1",
    "optimizer.ema.decay=0.9",
    f"batch_size={BATCH}",
]  # fmt: skip
# So that what is lost is found in seconds.
FAST_RAY = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}  # fmt: skip


def quick_recipe(data: Path) -> Recipe:
    """That of ``studies/train.py --data DATA`` with QUICK."""
    values = dict(map(parse_setting, QUICK)) | {"schedule.epochs": EPOCHS}
    return TrainingRequest().new_study(check_dataset(data), values, is_built_in=False).recipe


def environment() -> dict[str, str]:
    """Of everything that talks to the cluster. A head asks for a token (:func:`tests.cluster.machines.make_token`)."""
    return os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}


class TrainingPlace:
    """A folder from which one training is run, stopped and resumed, and the files that it leaves there.

    It is not recorded in MLflow, which would take each driver two seconds of a core.
    """

    is_watched = False
    """Whether Ray Train asks if machines are taken back: by a process for each worker group, which takes 2 s of a core.
    """

    def __init__(self, folder: Path, data: Path, address: str, prefix: tuple[str, ...] = ()) -> None:
        self.folder, self._data, self._address, self._prefix = folder, data, address, prefix
        self.printed: list[str] = []

    def disturb(self, **settings: Any) -> None:
        """From now on steps take ``step_seconds``; ``hang`` and ``fails``: [rank, step]; ``storage_apart``: a truth."""
        partial = self.folder / "disturbance.partial"
        partial.write_text(json.dumps(settings))
        partial.replace(self.folder / "disturbance.json")

    def start(self, *further: str) -> Driver:
        flags = [part for setting in QUICK for part in ("--set", setting)]
        what = ["--name", "run", "--data", str(self._data), "--epochs", str(EPOCHS), *flags]
        return self._start(*what, *further)

    def resume(self, *further: str) -> Driver:
        return self._start("--resume", "run", *further)

    def _start(self, *arguments: str) -> Driver:
        log = self.folder / f"driver-{len(self.printed)}.log"
        variables = FAST_RAY | {"MLFLOW_TRACKING_URI": "none"} | ({} if self.is_watched else LOCAL_SETTINGS)
        self.printed.append(str(log))
        flags = [str(self.folder), "--address", self._address, *arguments, "--cpus-per-worker", "1"]
        place: Any = {"folder": self.folder, "environment": environment() | variables}
        process: subprocess.Popen[str] | PreloadedProgram
        with log.open("w") as file:
            if self._prefix:
                command = [*self._prefix, sys.executable, str(SCRIPT), *flags]
                process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=environment() | variables,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            else:
                process = start_program(DATA_PARALLEL_MODULES, str(SCRIPT), *flags, log=file, **place)
        return Driver(process, log, self)

    @property
    def events(self) -> list[Any]:
        return [event for event, _ in read_events(self.folder / "runs" / "run" / JOURNAL_FILE)]

    @property
    def attempts(self) -> list[Any]:
        """The events of each start of the workers."""
        return [event for event in self.events if event["event"] == "trial_started"]

    @property
    def trial(self) -> Any:
        return StudyState.read(self.folder / "runs" / "run")[0].trials["seed=0"]

    @property
    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(self.folder / "runs" / "run" / "trials" / "seed=0" / "checkpoints")

    @property
    def state(self) -> Any:
        """Of the newest checkpoint."""
        return self.checkpoints.load(self.checkpoints.entries()[0])

    @property
    def samples(self) -> dict[int, set[int]]:
        """{step: all samples that any worker, in any attempt, trained on in it}."""
        found: dict[int, set[int]] = {}
        for step, indices in self._lines:
            found.setdefault(step, set()).update(indices)
        return found

    @property
    def steps_done_twice(self) -> set[int]:
        """Steps in which a sample was trained on more than once."""
        counts: dict[int, int] = {}
        for step, indices in self._lines:
            counts[step] = counts.get(step, 0) + len(indices)
        return {step for step, count in counts.items() if count > BATCH}

    @property
    def _lines(self) -> list[tuple[int, list[int]]]:
        files = [file.read_text() for file in self.folder.glob("samples-*.txt")]
        return [tuple(json.loads(line)) for file in files for line in file.split("\n")[:-1]]


class Driver:
    """A running ``studies/train.py``."""

    def __init__(
        self, process: subprocess.Popen[str] | PreloadedProgram, log: Path, place: TrainingPlace
    ) -> None:
        self.process, self._log, self._place = process, log, place

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits while the training runs."""
        deadline = time.monotonic() + HANG_SECONDS
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{what}: not seen (exit code {self.process.poll()})\n{self.printed}")
            time.sleep(0.1)

    def until_attempt(self, number: int, *, steps: int = 3) -> None:
        """Waits until attempt ``number`` has trained for some steps."""
        self.until(lambda: len(self._place.attempts) >= number, f"attempt {number}")
        first = max(self._place.samples, default=-1)
        self.until(
            lambda: max(self._place.samples, default=-1) >= first + steps, f"steps of attempt {number}"
        )

    def end(self, *signals: signal.Signals) -> int:
        """Sends signals, waits for the end; the exit code."""
        for number in signals:
            self.process.send_signal(number)
        try:
            return self.process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"no end after {HANG_SECONDS} s\n{self.printed}")


class Undisturbed:
    """The same training by two plain processes: its weights, and its samples of each step.

    What ``folder`` has of an earlier one is used.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        folder.mkdir(exist_ok=True)
        if not (folder / "weights.pt").exists():
            self._train(folder, data)
        self.weights: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
        self.samples = TrainingPlace(folder, data, "").samples

    @staticmethod
    def _train(folder: Path, data: Path) -> None:
        recipe, out = folder / "recipe.json", folder / "weights.pt"
        recipe.write_text(json.dumps(quick_recipe(data).to_values()))
        done = start_program(TRAINING_MODULES, str(SCRIPT), str(folder), "--plain", str(recipe), str(out))
        assert done.wait(HANG_SECONDS) == 0, f"exit code {done.returncode}: {done.communicate()}"


def differing(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors that are not equal to the last bit."""
    assert weights.keys() == others.keys()
    return [name for name in weights if not torch.equal(weights[name], others[name])]


def descendants(pid: int) -> dict[int, str]:
    """{process id: command line} of all processes below one."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except (OSError, IndexError):
                continue
    found: set[int] = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: titles[child] for child in found - {pid}}


def kill(title: str, below: int, number: signal.Signals = signal.SIGKILL) -> int:
    """A signal to the first process below one whose title begins so; its id."""
    pid = min(pid for pid, found in descendants(below).items() if found.startswith(title))
    os.kill(pid, number)
    return pid
