"""What training costs besides its steps: ``python -m benchmarks.overhead [--data PATH] [--rounds N]``.

Four ways to train the same Recipe on the same data, one after the other in each round, each in a process of its own:

* ``bare``: batches from the loader and ``TrainStep``, then evaluation, which is not timed but changes what memory is
  at hand: no clock, no sums, no progress, no checkpoints;
* ``loop``: ``nfnet_ray.training.train`` without checkpoints;
* ``saving``: the same, with a checkpoint at the end of each epoch;
* ``ray``: the same by ``python studies/train.py``, a ``TorchTrainer`` of one worker, with its journal and MLflow; left
  out where Ray is not installed.

``loop / bare`` is what clock, progress and sums cost a step; ``ray / saving`` what Ray Train costs it;
``checkpoint_share`` what training waits for a checkpoint, as a share of an epoch. Ratios are of seconds for
each step, data included, between two ways of the same round; the row has their median over the rounds. The
first epoch of each run does not count. Appends a row to ``results/overhead.csv``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import Row, append_rows, circumstances
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading.loader import EvalLoader, TrainLoader
from nfnet_ray.models import create_model
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.evaluation import EVAL_BATCH_SIZE, evaluate
from nfnet_ray.training.form.placing import place
from nfnet_ray.training.step import TrainStep

RESULTS = Path(__file__).with_name("results") / "overhead.csv"
WAYS = ("bare", "loop", "saving", "ray")
EPOCHS = 11
THREADS = 1


def recipe_of(data: Path, model: str, batch_size: int) -> Recipe:
    """Plain images of the data's own size, AGC and a moving average."""
    dataset = open_dataset(data)
    size = max(dataset.uniform_size) if dataset.uniform_size else None
    return Recipe().with_values(
        {
            "model.name": model,
            "data.path": str(data),
            "data.image_size": size,
            "data.eval_size": size,
            "data.crop": "padded" if size else "random_resized",
            "data.mixing.mixup_alpha": None,
            "data.mixing.cutmix_alpha": None,
            "data.randaugment.layers": 0,
            "schedule.epochs": EPOCHS,
            "schedule.warmup_epochs": 1.0,
            "batch_size": batch_size,
        }
    )


def bare(asked: Recipe) -> list[float]:
    """Seconds of each epoch's steps."""
    recipe = resolve(asked)
    reset_process(recipe.seed, THREADS)
    dataset, context = open_dataset(recipe.data.path), PlainContext(threads=THREADS)
    where: dict[str, Any] = {"rank": 0, "world_size": 1, "device": context.device, "threads": THREADS}
    loader = TrainLoader(dataset.train, recipe.data, batch_size=recipe.batch_size, seed=recipe.seed, **where)
    eval_loader = EvalLoader(dataset.validation, recipe.data, batch_size=EVAL_BATCH_SIZE, **where)
    model = create_model(recipe.model.name, len(dataset.class_names))
    place(model, recipe, context.device)
    step = TrainStep(model, recipe, context, loader.batches_per_epoch)
    seconds = []
    for epoch in range(EPOCHS):
        model.train()
        start = time.perf_counter()
        loss_sum = torch.zeros(())
        for batch in loader.epoch(epoch):
            loss_sum = step(batch).loss_sum
        loss_sum.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
        evaluate(model, eval_loader, len(dataset.validation), recipe, context)
        if step.average:
            evaluate(step.average.model, eval_loader, len(dataset.validation), recipe, context)
    return seconds


class Watcher:
    """Collects the seconds that a run reports."""

    def __init__(self) -> None:
        self.step_seconds: list[float] = []
        self.checkpoint_seconds: list[float] = []
        self._before = {"steps": 0.0, "checkpoint": 0.0}

    def __call__(self, metrics: Mapping[str, float]) -> None:
        steps = metrics["train_seconds"] + metrics["data_wait_seconds"]
        self.step_seconds.append(steps - self._before["steps"])
        self.checkpoint_seconds.append(metrics["checkpoint_seconds"] - self._before["checkpoint"])
        self._before = {"steps": steps, "checkpoint": metrics["checkpoint_seconds"]}


def one_way(way: str, recipe: Recipe, folder: Path) -> dict[str, list[float]]:
    """Seconds of each epoch, of its steps and of what it waits for checkpoints."""
    watcher = Watcher()
    if way == "bare":
        return {"steps": bare(recipe), "checkpoints": []}
    if way == "ray":
        for metrics in _reports_of_studies_train(recipe, folder):
            watcher(metrics)
    else:
        checkpoints = folder / "checkpoints" if way == "saving" else None
        train(recipe, PlainContext(threads=THREADS, checkpoints=checkpoints, on_report=watcher))
    return {"steps": watcher.step_seconds, "checkpoints": watcher.checkpoint_seconds}


def _reports_of_studies_train(recipe: Recipe, folder: Path) -> list[Mapping[str, float]]:
    """The metrics of each epoch, from the journal that a run leaves."""
    settings = [
        f"--set={name}={value}"
        for name, value in recipe.to_values().items()
        if value != Recipe().to_values()[name] and name not in ("data.path", "model.name", "schedule.epochs")
    ]
    command = [sys.executable, "studies/train.py", "--model", recipe.model.name, "--data", recipe.data.path]
    command += ["--epochs", str(EPOCHS), "--workers", "1", "--storage", str(folder), "--name", "overhead"]
    done = subprocess.run(
        [*command, "--cpus-per-worker", str(THREADS), *settings], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}")
    lines = (folder / "overhead" / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [event["metrics"] for event in events if event["event"] == "epoch"]


def in_a_process(way: str, recipe: Recipe) -> dict[str, list[float]]:
    """The same, in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.overhead", "--one-way", way, "--folder", folder]
        done = subprocess.run(
            command, input=json.dumps(recipe.to_values()), capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr}")
    result: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(recipe: Recipe, rounds: int) -> Row:
    """One row of results."""
    ways = [way for way in WAYS if way != "ray" or importlib.util.find_spec("ray")]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    shares: list[float] = []
    for number in range(rounds):
        for way in ways:
            result = in_a_process(way, recipe)
            seconds[way].append(statistics.median(result["steps"][1:]))
            if way == "saving":
                waited = sum(result["checkpoints"][1:])
                shares.append(waited / (waited + sum(result["steps"][1:])))
            print(f"round {number + 1}, {way}: {seconds[way][-1]:.3f} s an epoch", file=sys.stderr)

    def ratio(way: str, other: str) -> float | str:
        if way not in seconds:
            return ""
        return round(statistics.median(a / b for a, b in zip(seconds[way], seconds[other], strict=True)), 4)

    images = len(open_dataset(recipe.data.path).train)
    return {
        "model": recipe.model.name,
        "image_size": recipe.data.image_size or "",
        "batch_size": recipe.batch_size,
        "steps": images // recipe.batch_size,
        "bare_epoch_seconds": round(statistics.median(seconds["bare"]), 3),
        "loop_over_bare": ratio("loop", "bare"),
        "ray_over_saving": ratio("ray", "saving"),
        "checkpoint_share": round(statistics.median(shares), 5),
        "n": rounds,
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a data set (default: the handwritten digits)")
    parser.add_argument("--model", default="nfnet_pico", help="the network (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=positive, default=64, help="images of each batch (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=positive, default=7, help="number of rounds (default: %(default)s)")
    parser.add_argument("--one-way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_way:
        recipe = Recipe.from_values(json.loads(sys.stdin.read()))
        print(json.dumps(one_way(options.one_way, recipe, options.folder)))
        return
    data = options.data
    if data is None:
        from data_prep.digits import write_digits

        data = write_digits(Path("data") / "digits")
    row = measure(recipe_of(data.resolve(), options.model, options.batch_size), options.rounds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    append_rows(RESULTS, [row | circumstances(device, THREADS)])


if __name__ == "__main__":
    main()
