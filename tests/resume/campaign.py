"""Runs that are killed at a random step and resumed, for every combination of techniques: is the result the same?

``python -m tests.resume.campaign DATA WORKERS SEED [QUARTER]``: for each combination three trainings of a tiny
network, each in processes of its own (forked, so that none of them has to import torch): one that is left
alone; one of whose workers one kills itself with SIGKILL in the middle of a step, somewhere within the run;
and one that resumes what it has left. Prints a line of JSON for each combination: what differs, and
from where it resumed. DATA is a data set of 120 images to train with; QUARTER, 0 to 3, is a quarter of the
combinations: each method with any two switches in every setting, and every setting of all switches with some method.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Opening a data set imports it: once, and not in each process.
import pyarrow.parquet  # noqa: F401
import torch
import torch.distributed as dist

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
from nfnet_ray.training.step import StepResult, TrainStep
from tests.deadlines import HANG_SECONDS

EPOCHS, BATCH, STEPS = 2, 24, 5  # 120 images

METHODS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sam": {"rho": 0.05},
    "asam": {"rho": 0.5, "method": "asam"},
    "looksam": {
        "rho": 0.05,
        "method": "looksam",
        "looksam_interval": 3,
    },  # not a divisor of an epoch's five steps
    "esam": {"rho": 0.05, "method": "esam"},
}
SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # off, on
    "agc": ({"optimizer.agc.clip_factor": None}, {"optimizer.agc.clip_factor": 0.02}),
    "ema": ({"optimizer.ema.decay": None}, {"optimizer.ema.decay": 0.9}),
    "accumulation": ({"micro_batches": 1}, {"micro_batches": 2}),
    "stochastic_depth": (
        {"model.stochastic_depth": 0.0, "model.dropout": 0.0},
        {"model.stochastic_depth": 0.3, "model.dropout": 0.3},
    ),
    "augmentation": (
        {"data.mixing.mixup_alpha": None, "data.mixing.cutmix_alpha": None, "data.randaugment.layers": 0},
        {"data.randaugment.layers": 1, "data.randaugment.magnitude": 5},
    ),
}
Combination = tuple[str, ...]
"""A method, and the switches that are on."""


def combinations(quarter: int | None = None) -> list[Combination]:
    """All of them, 5 methods with 2 ** 5 settings of the switches, or a quarter of them.

    A quarter has eight settings for each method: a fractional factorial design 2 ** (5 - 2) of resolution III, another
    one of its four cosets for each next method.
    """
    chosen = []
    for (number, method), on in itertools.product(enumerate(METHODS), itertools.product((0, 1), repeat=5)):
        a, b, c, d, e = on
        coset = 2 * (a ^ b ^ d) + (a ^ c ^ e)
        if quarter is None or coset == (number + quarter) % 4:
            chosen.append((method, *itertools.compress(SWITCHES, on)))
    return chosen


def recipe_of(combination: Combination, data: Path) -> Recipe:
    """Two epochs of five steps."""
    method, *on = combination
    values: dict[str, Any] = {
        "model.name": "nf_resnet50",  # a third fewer operations than an NFNet of four blocks
        "model.overrides.width": [16, 16, 16, 16],
        "model.overrides.depth": [1, 1, 1, 1],
        "data.path": str(data),
        "data.image_size": 16,
        "data.eval_size": 16,
        "schedule.epochs": EPOCHS,
        "schedule.warmup_epochs": 0.5,
        "batch_size": BATCH,
    }
    for name, (off_values, on_values) in SWITCHES.items():
        values |= on_values if name in on else off_values
    values |= {f"optimizer.sam.{name}": value for name, value in METHODS[method].items()}
    return Recipe().with_values(values)


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are the same in every run: not seconds, nor what a second or the memory holds."""
    of_this_run = ("_seconds", "_per_second", "_bytes")
    return {name: value for name, value in metrics.items() if not name.endswith(of_this_run)}


class Worker(PlainContext):
    """One of several workers, without Ray; may kill itself.

    With ``waits`` every checkpoint is complete before the next step, so what a kill leaves does not depend on the disk.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        checkpoints: Path | None,
        log: Path,
        dies_at: float | None,
        replicas: int,
        waits: bool,
        saves_each_step: bool,
    ) -> None:
        between = 0.0 if saves_each_step else None
        super().__init__(
            device=torch.device("cpu"),
            threads=1,
            checkpoints=checkpoints,
            seconds_between_checkpoints=between,
        )
        self.rank, self.world_size, self.replicas = rank, world_size, replicas  # type: ignore[misc]
        self._log, self._dies_at, self._waits = log, dies_at, waits

    def note(self, **facts: Any) -> None:
        """A line in this worker's log, which is whole if it is there."""
        with self._log.open("ab", buffering=0) as file:
            file.write(json.dumps(facts).encode() + b"\n")

    def report(self, metrics: Mapping[str, float], texts: Mapping[str, str]) -> None:
        # Each process tells its own conditions.
        told = {name: text for name, text in texts.items() if name not in ("conditions", "system")}
        self.note(epoch=metrics["epoch"], metrics=timeless(metrics) | told)

    def progress(self, epochs: float) -> None:
        if self._waits:
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()
        if self._dies_at is not None and epochs >= self._dies_at - 1e-6:
            os.kill(os.getpid(), signal.SIGKILL)


class Attempt:
    """Worker processes of one training, forked from this one."""

    def __init__(
        self,
        recipe: Recipe,
        workers: int,
        folder: Path,
        checkpoints: Path | None,
        dies_at: tuple[int, float] | None,
        *,
        replicas: int | None = None,
        waits: bool = False,
    ) -> None:
        folder.mkdir()
        self.folder, self.workers = folder, workers
        self._children = []
        for rank in range(workers):
            when = dies_at[1] if dies_at and dies_at[0] == rank else None
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    log = folder / f"log-{rank}"
                    # What a training that is not killed would save within an epoch, nobody reads; each takes 10 ms.
                    saves = dies_at is not None
                    worker = Worker(rank, workers, checkpoints, log, when, replicas or workers, waits, saves)
                    self._work(recipe, worker)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            self._children.append(child)

    def _work(self, recipe: Recipe, worker: Worker) -> None:
        with (self.folder / f"stderr-{worker.rank}").open("wb") as stderr:
            os.dup2(stderr.fileno(), 2)
        torch.set_num_threads(1)
        if worker.world_size > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{self.folder}/meet",
                rank=worker.rank,
                world_size=worker.world_size,
            )
        call = TrainStep.__call__

        def noted(step: TrainStep, batch: TrainBatch) -> StepResult:
            worker.note(step=step.number, indices=batch.indices.tolist(), positions=batch.positions.tolist())
            return call(step, batch)

        TrainStep.__call__ = noted  # type: ignore[method-assign]  # in this process alone
        outcome = train(recipe, worker)
        weights = dict(outcome.model.state_dict())
        if outcome.average:
            weights |= {f"average.{name}": tensor for name, tensor in outcome.average.state_dict().items()}
        torch.save(weights, self.folder / f"weights-{worker.rank}")
        if worker.world_size > 1:
            dist.destroy_process_group()

    def wait(self, *, first_ends_all: bool = False) -> bool:
        """Whether all workers ended well. Of a training that lost a worker the others are killed, as Ray does."""
        left, well = set(self._children), True
        deadline = time.monotonic() + HANG_SECONDS
        while left:
            for child in list(left):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    left.remove(child)
                    well &= status == 0
            if left and ((first_ends_all and len(left) < self.workers) or time.monotonic() > deadline):
                for child in left:
                    os.kill(child, signal.SIGKILL)
                first_ends_all, well = False, False
            time.sleep(0.005)
        return well

    def complaints(self) -> str:
        """The last lines that the workers wrote to standard error."""
        return " | ".join(path.read_text()[-600:] for path in sorted(self.folder.glob("stderr-*")))

    def weights(self, rank: int) -> dict[str, torch.Tensor]:
        result: dict[str, torch.Tensor] = torch.load(self.folder / f"weights-{rank}")
        return result

    def notes(self, rank: int) -> list[dict[str, Any]]:
        path = self.folder / f"log-{rank}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(notes: list[dict[str, Any]]) -> dict[int, Any]:
    """{step: the samples and their places}."""
    return {note["step"]: (note["indices"], note["positions"]) for note in notes if "step" in note}


def epochs_of(notes: list[dict[str, Any]]) -> dict[int, Any]:
    """{epoch: its metrics}."""
    return {note["epoch"]: note["metrics"] for note in notes if "epoch" in note}


def tried(combination: Combination, data: Path, workers: int, seed: int, folder: Path) -> dict[str, Any]:
    """One combination: what differs, and where it was killed and went on."""
    chance = random.Random(f"{seed} {combination} {workers}")
    recipe = recipe_of(combination, data)
    step = chance.randrange(1, EPOCHS * STEPS)  # is the last one that is done
    victim = chance.randrange(workers)
    whole = Attempt(recipe, workers, folder / "whole", None, None)
    if not whole.wait():
        return {"combination": combination, "differs": ["left alone it failed: " + whole.complaints()]}
    killed = Attempt(recipe, workers, folder / "killed", folder / "checkpoints", (victim, step / STEPS))
    killed.wait(first_ends_all=True)
    resumed = Attempt(recipe, workers, folder / "resumed", folder / "checkpoints", None)
    if not resumed.wait():
        return {"combination": combination, "differs": ["going on failed: " + resumed.complaints()]}
    differs = []
    first_steps = []
    for rank in range(workers):
        expected, got = whole.weights(rank), resumed.weights(rank)
        differs += [
            f"{name} of worker {rank}" for name in expected if not torch.equal(expected[name], got[name])
        ]
        differs += ["names"] if expected.keys() != got.keys() else []
        expected_steps = steps_of(whole.notes(rank))
        later = steps_of(resumed.notes(rank))
        first_steps.append(min(later, default=EPOCHS * STEPS))
        if any(
            attempt[n] != expected_steps[n]
            for attempt in (later, steps_of(killed.notes(rank)))
            for n in attempt
        ):
            differs.append(f"the samples of worker {rank}")
        if sorted(later) != list(range(first_steps[-1], EPOCHS * STEPS)):
            differs.append(f"the steps of worker {rank}")
        reported = epochs_of(killed.notes(rank)) | epochs_of(resumed.notes(rank))
        if json.dumps(reported) != json.dumps(epochs_of(whole.notes(rank))):
            differs.append(f"the metrics of worker {rank}")
    return {
        "combination": combination,
        "killed_after": step,
        "goes_on_from": first_steps[0],
        "differs": differs,
    }


def warm_up(data: Path) -> None:
    """Trains for an epoch, so that no worker imports and sets up what it uses: for 0.05 s of a core each."""
    with tempfile.TemporaryDirectory(prefix="resume-", dir="/dev/shm") as folder:
        place = Path(folder)
        recipe = recipe_of(("esam", *SWITCHES), data).with_values({"schedule.epochs": 1})
        train(
            recipe,
            Worker(0, 1, place / "checkpoints", place / "log", None, 1, waits=False, saves_each_step=True),
        )


def main(data: Path, workers: int, seed: int, quarter: int | None = None) -> None:
    """Goes through all combinations, two at a time: one leaves the cores idle while its processes start and meet."""
    torch.set_num_threads(1)
    warm_up(data)
    gc.freeze()  # training collects garbage first, and would look through all modules in each process
    first_lane = os.fork() != 0
    for combination in combinations(quarter)[0 if first_lane else 1 :: 2]:
        folder = Path(tempfile.mkdtemp(prefix="resume-", dir="/dev/shm"))
        try:
            result = tried(combination, data, workers, seed, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        os.write(1, json.dumps(result).encode() + b"\n")  # a whole line at once, from whichever lane


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
