"""A process that runs the beginning of a trial on its real data, and measures how long each part takes.

``python -m nfnet_ray.training.trial_probe`` reads a JSON object from standard input (``recipe``: the Recipe's values,
``threads``, ``workers`` of the trial, and ``gpu``: whether the trial runs on a GPU). It writes a line with a JSON
object after each measurement. So the process that started it (:mod:`nfnet_ray.study.cost.probe_process`) may end it at
any time, and keeps the measurements until then.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.data.files.dataset import Dataset, open_dataset
from nfnet_ray.models.catalogue import count_multiply_adds
from nfnet_ray.models.own.source import with_pinned_network
from nfnet_ray.models.published import resolve, with_published_values
from nfnet_ray.models.weights.pretrained import set_training_mode
from nfnet_ray.models.weights.weights_file import with_pinned_weights
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.checkpoints.saving import Saver
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.evaluation import evaluate
from nfnet_ray.training.measurement.clock import Clock
from nfnet_ray.training.run import Position, Run, open_run

MOST_STEPS = 20
SECONDS_OF_STEPS = 20.0
# Not timed, because these steps also fill caches.
FIRST_STEPS = 2
# In the forward pass of a step on a CPU. Larger batches are cut, since the time of a step is proportional to its
# images.
LARGEST_FORWARD_MULTIPLY_ADDS = 5e9
EVALUATED_BATCHES = 2


def main() -> None:
    """Reads the trial, measures its parts, and writes the measurements."""
    asked = json.load(sys.stdin)
    say({"imported": True})
    with tempfile.TemporaryDirectory(prefix="nfnet_ray-probe-") as folder:
        # Not left to the default: if torch could not use the GPU, the pace of the cores would be taken for that of the
        # GPU.
        device = torch.device("cuda" if asked["gpu"] else "cpu")
        context = PlainContext(checkpoints=folder, threads=asked["threads"], device=device)
        asked_recipe = with_published_values(Recipe.from_values(asked["recipe"]))
        recipe = with_pinned_network(with_pinned_weights(asked_recipe))
        dataset = open_dataset(recipe.data.path)
        recipe = recipe.with_values(probe_batch(recipe, dataset, context, asked["workers"]))
        if recipe.compile == "auto":
            # Compiling may take longer than a probe may. The trial will not be slower than without it.
            recipe = recipe.with_values({"compile": False})
        with Saver(context) as saver:
            run, at = open_run(recipe, dataset, context, Clock(), saver, force_resume=False)
            _measure_training(run)
            _measure_evaluation(run)
            _measure_checkpoint(run, at)


def probe_batch(recipe: Recipe, dataset: Dataset, context: PlainContext, workers: int) -> dict[str, int]:
    """The batch of the probe, as values of a Recipe: a worker's share, but on a CPU no more than takes some seconds."""
    share = max(1, recipe.batch_size // workers)
    if context.device.type == "cpu":
        resolved = resolve(recipe)
        one_image = count_multiply_adds(
            resolved.model.name,
            resolved.data.image_size,
            len(dataset.class_names),
            resolved.model.overrides.chosen(),
        )
        most = max(1, int(LARGEST_FORWARD_MULTIPLY_ADDS // one_image))
        if share > most:
            return {"batch_size": most, "micro_batches": 1}
    return {"batch_size": share}


def _measure_training(run: Run) -> None:
    batches = _batches(run)
    set_training_mode(run.model)
    run.meter.start()
    batch = next(batches)
    say({"first_batch": True})
    step = run.captured_step
    steps = 0
    began = time.perf_counter()
    images = run.recipe.batch_size
    while steps < MOST_STEPS and (steps <= FIRST_STEPS or time.perf_counter() - began < SECONDS_OF_STEPS):
        if not step.is_ready_for(batch):
            run.warm_up(batch)
            say({"warmed_up": True})
        start = time.perf_counter()
        step(batch).loss_sum.item()  # waits for the device
        batch = next(batches)
        steps += 1
        if steps == FIRST_STEPS:
            began = time.perf_counter()
        say(
            {
                "step_seconds": time.perf_counter() - start,
                "images": images,
                "image_size": run.train_loader.image_size(0),
            }
        )
    memory = max(run.meter.peak_memory_bytes(), step.peak_bytes)
    if memory:
        say({"memory_bytes": memory})


def _batches(run: Run) -> Iterator[TrainBatch]:
    """Yields the batches of the first epoch, again and again if there are few."""
    return itertools.chain.from_iterable(run.train_loader.epoch(0) for _ in itertools.count())


def _measure_evaluation(run: Run) -> None:
    run.step.unify_statistics()
    for batch in itertools.islice(run.eval_loader, EVALUATED_BATCHES):
        start = time.perf_counter()
        evaluate(run.model, [batch], len(run.dataset.validation), run.recipe, run.context)
        say({"eval_seconds": time.perf_counter() - start, "images": len(batch.labels)})


def _measure_checkpoint(run: Run, at: Position) -> None:
    start = time.perf_counter()
    run.save(at.after(1))
    seconds = time.perf_counter() - start
    run.saver.finish()
    store = run.context.store
    assert store is not None
    say({"checkpoint_seconds": seconds, "checkpoint_bytes": max(entry.bytes for entry in store.entries())})


def say(measured: dict[str, Any]) -> None:
    """Writes a measurement, without buffering."""
    print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
