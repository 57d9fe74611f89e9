"""What it saves that trials share their batches: ``python -m benchmarks.sharing [--data PATH] [--trials 2,4]``.

As many processes as ``--trials`` says train side by side, with one thread each, on the same batches: crops, MixUp,
CutMix with images of their own, and RandAugment of four operations, as NFNets are published. Each round trains
``--batches`` batches with own loaders and as many with shared ones, one after the other, in the same processes; which
comes first alternates, and the first two batches do not count. A ratio is of shared over own in the same round, and
the row has the median over the rounds and, in brackets, the smallest and the largest:

* ``loading_cpu``: CPU seconds of all processes, without those that their one thread of arithmetic spends in steps;
* ``cpu``: with them;
* ``wall``: seconds from the first to the last of the processes.

Without ``--data``: 800 JPEGs of 250 pixels, cut out of the two photographs that come with scikit-learn. Appends rows to
``results/sharing.csv``. Meant for a machine that has at least as many free cores as there are trials; where it has
fewer, CPU seconds tell more than ``wall``.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from PIL import Image

from benchmarks.record import Row, append_rows, circumstances
from data_prep.__main__ import main as data_prep
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.data.loading.loader import TrainLoader
from nfnet_ray.data.loading.sharing import Sharing
from nfnet_ray.models import create_model
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.step import TrainStep

RESULTS = Path(__file__).with_name("results") / "sharing.csv"
CPU = torch.device("cpu")
PHOTOGRAPHS, PIXELS = 800, 250
WARM_UP = 2  # batches, within which the processes have found each other


@dataclass(frozen=True)
class Task:
    """What a process does: a number of batches of an epoch, shared through ``folder``, or alone if that is None."""

    epoch: int
    batches: int
    folder: Path | None


@dataclass(frozen=True)
class Spent:
    """What a process took for a :class:`Task`, and what share of its batches came from others."""

    loading_cpu: float
    cpu: float
    shared: float


def recipe_of(data: Path, model: str, image_size: int, batch_size: int, layers: int) -> Recipe:
    """The published augmentation at another size."""
    dataset = open_dataset(data)
    return Recipe().with_values(
        {
            "model.name": model,
            "data.path": str(data),
            "data.image_size": image_size,
            "data.eval_size": image_size,
            "data.crop": "padded" if dataset.uniform_size == (image_size, image_size) else "random_resized",
            "data.randaugment.layers": layers,
            "schedule.warmup_epochs": 1.0,
            "batch_size": batch_size,
        }
    )


def process(link: Connection, asked: Recipe, trial: int) -> None:
    """Trains what it is asked for through ``link``, until it is asked for None. Trials differ in their clip factor."""
    recipe = resolve(asked.with_values({"optimizer.agc.clip_factor": 0.01 * (1 + trial)}))
    reset_process(recipe.seed, 1)
    dataset, context = open_dataset(recipe.data.path), PlainContext(device=CPU, threads=1)
    model = create_model(recipe.model.name, len(dataset.class_names))
    model.train()
    step: TrainStep | None = None
    link.send("ready")
    while (task := link.recv()) is not None:
        with Sharing(task.folder is not None, task.folder) as sharing:
            loader = TrainLoader(
                dataset.train, recipe.data, batch_size=recipe.batch_size, seed=recipe.seed, rank=0, world_size=1,
                device=CPU, threads=1, sharing=sharing,
            )  # fmt: skip
            if loader.batches_per_epoch < WARM_UP + task.batches:
                raise ValueError(f"an epoch has {loader.batches_per_epoch} batches: too few")
            step = step or TrainStep(model, recipe, context, loader.batches_per_epoch)
            batches = loader.epoch(task.epoch)
            for _ in range(WARM_UP):
                step(next(batches)).loss_sum.item()
            training_cpu, start = 0.0, time.process_time()
            for _ in range(task.batches):
                batch = next(batches)
                before = time.thread_time()
                step(batch).loss_sum.item()
                training_cpu += time.thread_time() - before
            batches.close()  # pyrefly: ignore[missing-attribute]
            cpu, share = time.process_time() - start, sharing.taken / max(1, sharing.taken + sharing.made)
            link.send(Spent(cpu - training_cpu, cpu, share))


def measure(recipe: Recipe, trials: int, batches: int, rounds: int) -> Row:
    """One row."""
    spawn = multiprocessing.get_context("spawn")
    links, processes = [], []
    for trial in range(trials):
        ours, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=process, args=(theirs, recipe, trial), daemon=True))
        processes[-1].start()
        links.append(ours)
    for link in links:
        link.recv()
    found: dict[str, list[dict[str, float]]] = {"own": [], "shared": []}
    with tempfile.TemporaryDirectory() as folder:
        _all(links, Task(0, 1, None))
        for number in range(rounds):
            ways = ("own", "shared") if number % 2 == 0 else ("shared", "own")
            for way in ways:
                task = Task(number, batches, Path(folder) if way == "shared" else None)
                found[way].append(_all(links, task))
                print(
                    f"{trials} trials, round {number + 1}, {way}: {found[way][-1]}",
                    file=sys.stderr,
                    flush=True,
                )
    for link, child in zip(links, processes, strict=True):
        link.send(None)
        child.join()
    row: Row = {}
    for name in ("loading_cpu", "cpu", "wall"):
        pairs = list(zip(found["shared"], found["own"], strict=True))
        ratios = [shared[name] / own[name] for shared, own in pairs]
        row[f"{name}_shared_over_own"] = (
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        )
    per_batch = trials * batches
    for way, of_rounds in found.items():
        milliseconds = [1e3 * spent["loading_cpu"] / per_batch for spent in of_rounds]
        row[f"{way}_loading_cpu_ms_per_batch"] = round(statistics.median(milliseconds), 1)
    step = [1e3 * (spent["cpu"] - spent["loading_cpu"]) / per_batch for spent in found["own"]]
    row["training_cpu_ms_per_batch"] = round(statistics.median(step), 1)
    row["taken_share"] = round(statistics.median(spent["shared"] for spent in found["shared"]), 3)
    return row


def _all(links: Sequence[Connection], task: Task) -> dict[str, float]:
    start = time.perf_counter()
    for link in links:
        link.send(task)
    spent: list[Spent] = [link.recv() for link in links]
    return {
        "loading_cpu": sum(one.loading_cpu for one in spent),
        "cpu": sum(one.cpu for one in spent),
        "wall": time.perf_counter() - start,
        "shared": statistics.mean(one.shared for one in spent),
    }


def photographs(folder: Path) -> Path:
    """Crops of the two photographs that come with scikit-learn, as a data set of two classes."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    images = Path(spec.submodule_search_locations[0]) / "datasets" / "images"
    for path in (images / "china.jpg", images / "flower.jpg"):
        (folder / "source" / path.stem).mkdir(parents=True)
        with Image.open(path) as image:
            for number in range(PHOTOGRAPHS // 2):
                left, top = 7 * number % (image.width - PIXELS), 5 * number % (image.height - PIXELS)
                part = image.crop((left, top, left + PIXELS, top + PIXELS))
                part.save(folder / "source" / path.stem / f"{number}.jpg", quality=90)
    if data_prep(["convert", str(folder / "source"), str(folder / "photographs")]):
        raise SystemExit("the photographs could not be converted")
    return folder / "photographs"


def main() -> None:
    """Measures with each number of trials and appends the rows."""
    parser = OneLineParser(
        prog="python -m benchmarks.sharing",
        description=__doc__,
    )
    parser.add_argument("--data", type=Path, help="a data set (default: photographs that are made for it)")
    parser.add_argument("--model", default="nfnet_pico", help="the network (default: %(default)s)")
    parser.add_argument(
        "--image-size", type=positive, default=96, help="side of an image in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16, help="images of each batch (default: %(default)s)"
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=4,
        help="RandAugment's operations for each image; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--trials", default="2,4", help="numbers of trials side by side (default: %(default)s)"
    )
    parser.add_argument(
        "--batches",
        type=positive,
        default=20,
        help="in each round (default: %(default)s), at most an epoch's but two",
    )
    parser.add_argument("--rounds", type=positive, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="csv to which rows are added (default: %(default)s)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or photographs(Path(folder))
        recipe = recipe_of(data, options.model, options.image_size, options.batch_size, options.layers)
        case: Row = {
            "data": data.name,
            "model": options.model,
            "image_size": options.image_size,
            "batch_size": options.batch_size,
            "randaugment_layers": options.layers,
            "batches": options.batches,
        }
        for trials in map(int, options.trials.split(",")):
            row = measure(recipe, trials, options.batches, options.rounds)
            append_rows(
                options.results,
                [case | {"trials": trials} | row | {"n": options.rounds} | circumstances(CPU, 1)],
            )


if __name__ == "__main__":
    main()
