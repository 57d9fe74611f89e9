"""A small study on a GPU: nfnet_pico on CIFAR-10 with several clip factors at two batch sizes, in what time is left.

One process trains one trial after the other with ``nfnet_ray.training.train``, without Ray.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.networks import usual_precision
from benchmarks.gpu.rows import SKIPPED, Recorder
from data_prep.conversion.convert import ConvertSettings, convert
from data_prep.conversion.splits import plan_splits
from data_prep.sources.choose import open_source
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.processor import available_cpus
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, train
from studies.base_recipe import recipe_for

BATCH_SIZES, SMALL_BATCH_SIZES = (256, 2048), (4, 8)
CLIP_FACTORS, SMALL_CLIP_FACTORS = (0.02, 0.08, None, 0.01, 0.04, 0.16), (0.02,)
MOST_EPOCHS, SMALL_MOST_EPOCHS = 20, 1
SHARE_OF_TIME = 0.85
"""Of what is left after the first epoch: evaluation and the start of each trial take time too."""
EPOCHS_TO_MEASURE = 2
"""The first one is slow: libraries choose their algorithms."""


def measure(recorder: Recorder, machine: Machine, options: argparse.Namespace) -> None:
    """Converts the data, measures an epoch, and trains as many epochs of all trials as fit into the time."""
    if options.cifar is None:
        recorder.add("nfnet_pico on CIFAR-10", SKIPPED, "give the data with --cifar")
        return
    batch_sizes = SMALL_BATCH_SIZES if machine.is_small else BATCH_SIZES
    clip_factors = SMALL_CLIP_FACTORS if machine.is_small else CLIP_FACTORS
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        source = open_source([options.cifar], "label")
        settings = ConvertSettings(workers=available_cpus())
        data = convert(source, plan_splits(source, 0.2), Path(folder) / "data", settings).dataset
        images = data.train_images + data.validation_images
        recorder.add("conversion", "images per second", images / (time.perf_counter() - start), "images/s")

        seconds = {}
        for batch_size in batch_sizes:
            with recorder.case(f"pace, batch {batch_size}"):
                seconds[batch_size] = epoch_seconds(data, batch_size, machine)
        if not seconds:
            return
        all_trials = sum(seconds.values()) * len(clip_factors)
        most = SMALL_MOST_EPOCHS if machine.is_small else MOST_EPOCHS
        epochs = min(most, epochs_that_fit(options.seconds_left(), all_trials))
        for clip_factor, batch_size in itertools.product(clip_factors, seconds):
            network = f"nfnet_pico, {data.train_images} images, {epochs} epochs"
            case = f"{network}, batch {batch_size}, clip factor {clip_factor}"
            with recorder.case(case):
                recipe = trial_recipe(data, epochs, batch_size, clip_factor, usual_precision(machine))
                add_trial(recorder, case, machine, recipe)


def epochs_that_fit(seconds_left: float, seconds_of_an_epoch: float) -> int:
    """At least one, at most 20.

    >>> epochs_that_fit(100.0, 10.0), epochs_that_fit(1.0, 10.0), epochs_that_fit(1e6, 10.0)
    (8, 1, 20)
    """
    return max(1, min(MOST_EPOCHS, int(SHARE_OF_TIME * seconds_left / seconds_of_an_epoch)))


def trial_recipe(
    data: DatasetSummary, epochs: int, batch_size: int, clip_factor: float | None, precision: str
) -> Recipe:
    """The studies' Recipe, with mirrored and shifted images."""
    return recipe_for(data, epochs).with_values(
        {
            "batch_size": batch_size,
            "optimizer.agc.clip_factor": clip_factor,
            "precision": precision,
            "memory_format": "channels_last",
            "grouped_convolutions": "whole",
        }
    )


def epoch_seconds(data: DatasetSummary, batch_size: int, machine: Machine) -> float:
    """The wall time of an epoch, evaluation included, after one to warm up."""
    ends: list[float] = []
    recipe = trial_recipe(data, EPOCHS_TO_MEASURE, batch_size, 0.01, usual_precision(machine))
    context = PlainContext(
        device=machine.device, threads=machine.threads, on_report=lambda _: ends.append(time.perf_counter())
    )
    train(recipe, context)
    return ends[-1] - ends[-2]


def add_trial(recorder: Recorder, case: str, machine: Machine, recipe: Recipe) -> None:
    """Rows of one training."""
    start = time.perf_counter()
    outcome = train(recipe, PlainContext(device=machine.device, threads=machine.threads))
    recorder.add(case, "state", outcome.state, outcome.reason or "", in_table=False)
    metrics: Mapping[str, float] = outcome.metrics
    if "validation_top1" in metrics:
        recorder.add(case, "top-1", metrics["validation_top1"])
    for name in ("train_seconds", "data_wait_seconds", "eval_seconds"):
        if name in metrics:
            recorder.add(case, name, metrics[name], "s", in_table=name == "train_seconds")
    recorder.add(case, "wall seconds", time.perf_counter() - start, "s", in_table=False)
