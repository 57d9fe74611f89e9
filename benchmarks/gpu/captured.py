"""Small networks, whose steps consist of the launching of kernels: kernel by kernel, and as one CUDA graph.

Both are the product's own steps (``nfnet_ray/training/captured.py``), with a schedule, AGC, the moving average and the
sums of the epoch. ``correctness`` has the comparison of their bits.
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.gpu.machine import Machine, Timing
from benchmarks.gpu.networks import captured_step, new_step, random_batch, recipe_of, usual_precision
from benchmarks.gpu.rows import Recorder
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.captured import CapturedStep, recorder_for
from nfnet_ray.training.captured import Recorder as GraphRecorder

NETWORKS, SMALL_NETWORKS = ("nfnet_pico", "nfnet_nano"), ("nfnet_pico",)
BATCH_SIZES, SMALL_BATCH_SIZES = (64, 512), (4,)
CLASSES = 10
STEPS = 100


def new_captured_step(
    recipe: ResolvedRecipe, machine: Machine, recorder: GraphRecorder | None
) -> tuple[torch.nn.Module, CapturedStep]:
    """A new network, and the steps that train it: captured by ``recorder``, or kernel by kernel."""
    model, step = new_step(recipe, machine, num_classes=CLASSES, rates_on_device=True)
    return model, captured_step(step, recipe, machine, recorder)


def measure(recorder: Recorder, machine: Machine, _options: argparse.Namespace) -> None:
    """Milliseconds of a step in both ways, and their ratio, for each network and batch size."""
    for name in SMALL_NETWORKS if machine.is_small else NETWORKS:
        for batch_size in SMALL_BATCH_SIZES if machine.is_small else BATCH_SIZES:
            recipe = recipe_of(name, machine, batch_size=batch_size, precision=usual_precision(machine))
            case = f"{name}, {recipe.data.image_size} px, batch {batch_size}"
            eager = None
            with recorder.case(f"{case}, eager"):
                eager = _measured(recorder, machine, recipe, f"{case}, eager", None)
            with recorder.case(f"{case}, captured"):
                graphs = recorder_for(machine.device)
                if graphs is None:
                    recorder.add(f"{case}, captured", "skipped", "needs a GPU")
                    continue
                captured = _measured(recorder, machine, recipe, f"{case}, captured", graphs)
                add_capture(recorder, machine, recipe, case)
                if eager:
                    recorder.add(case, "eager : captured", eager.seconds / captured.seconds)


def add_capture(recorder: Recorder, machine: Machine, recipe: ResolvedRecipe, case: str) -> None:
    """How long a trial takes to capture its step, in a process whose libraries have chosen their algorithms.

    A trial that replays the graphs of the one before saves this time (``nfnet_ray/training/form/kept.py``).
    """
    _, step = new_captured_step(recipe, machine, recorder_for(machine.device))
    batch = random_batch(recipe, machine.device, num_classes=CLASSES)
    machine.synchronise()
    start = time.perf_counter()
    step.prepare(batch)
    machine.synchronise()
    recorder.add(case, "another trial's capture", time.perf_counter() - start, "s")


def _measured(
    recorder: Recorder, machine: Machine, recipe: ResolvedRecipe, case: str, graphs: GraphRecorder | None
) -> Timing:
    _, step = new_captured_step(recipe, machine, graphs)
    batch = random_batch(recipe, machine.device, num_classes=CLASSES)
    step.prepare(batch)
    if step.refusal:
        raise RuntimeError(step.refusal)
    timing = machine.time(lambda: step(batch), repeats=STEPS)
    recorder.add(case, "time of a step", timing.seconds * 1e3, "ms", timing)
    recorder.add(
        case, "images per second", recipe.batch_size / timing.seconds, "images/s", timing, in_table=False
    )
    return timing
