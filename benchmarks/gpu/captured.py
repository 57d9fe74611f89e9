"""Small networks, whose steps consist of the launching of kernels: eager, and the whole step as one CUDA graph.

The graph has forward, backward, AGC, the optimiser and the moving average. Learning rate and decay are numbers within
it, so this benchmark keeps them constant; its steps then have the results of eager ones, which it checks.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.gpu.machine import Machine, Timing
from benchmarks.gpu.networks import constant_rates, new_step, random_batch, recipe_of, usual_precision
from benchmarks.gpu.rows import Recorder
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.step import StepResult, TrainStep

NETWORKS, SMALL_NETWORKS = ("nfnet_pico", "nfnet_nano"), ("nfnet_pico",)
BATCH_SIZES, SMALL_BATCH_SIZES = (64, 512), (4,)
CLASSES = 10
STEPS = 100
STEPS_BEFORE_CAPTURE = 3
COMPARED_STEPS = 5


class CapturedStep:
    """A step that is captured once, and then replayed on batches of the same shape.

    Trains on ``batch`` before it captures, :data:`STEPS_BEFORE_CAPTURE` times: libraries choose their algorithms then,
    and the optimiser makes its state.
    """

    def __init__(self, step: TrainStep, batch: TrainBatch) -> None:
        self._step = step
        self._images, self._labels, self._keys = (
            tensor.clone() for tensor in (batch.images, batch.labels, batch.keys)
        )
        static = TrainBatch(self._images, self._labels, batch.indices, batch.positions, self._keys)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(STEPS_BEFORE_CAPTURE):
                step(static)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = step(static)

    def __call__(self, batch: TrainBatch) -> StepResult:
        """A step. The result's tensors are those of all steps: the next one overwrites them."""
        self._images.copy_(batch.images)
        self._labels.copy_(batch.labels)
        self._keys.copy_(batch.keys)
        self._graph.replay()
        return self._result


def measure(recorder: Recorder, machine: Machine, _options: argparse.Namespace) -> None:
    """Milliseconds of a step in both ways, and their ratio, for each network and batch size."""
    for name in SMALL_NETWORKS if machine.is_small else NETWORKS:
        for batch_size in SMALL_BATCH_SIZES if machine.is_small else BATCH_SIZES:
            recipe = recipe_of(
                name, machine, batch_size=batch_size, precision=usual_precision(machine), **constant_rates()
            )
            case = f"{name}, {recipe.data.image_size} px, batch {batch_size}"
            eager = None
            with recorder.case(f"{case}, eager"):
                eager = _measure_eager(recorder, machine, recipe, f"{case}, eager")
            with recorder.case(f"{case}, captured"):
                if machine.is_small:
                    recorder.add(f"{case}, captured", "skipped", "needs a GPU")
                    continue
                captured = _measure_captured(recorder, machine, recipe, f"{case}, captured")
                if eager:
                    recorder.add(case, "eager : captured", eager.seconds / captured.seconds)


def _measure_eager(recorder: Recorder, machine: Machine, recipe: ResolvedRecipe, case: str) -> Timing:
    _, step = new_step(recipe, machine, num_classes=CLASSES)
    batch = random_batch(recipe, machine.device, num_classes=CLASSES)
    timing = machine.time(lambda: step(batch), repeats=STEPS)
    _add_timing(recorder, case, timing, recipe)
    return timing


def _measure_captured(recorder: Recorder, machine: Machine, recipe: ResolvedRecipe, case: str) -> Timing:
    difference = largest_difference(machine, recipe)
    recorder.add(case, f"largest difference of a weight from eager after {COMPARED_STEPS} steps", difference)
    _, step = new_step(recipe, machine, num_classes=CLASSES)
    batch = random_batch(recipe, machine.device, num_classes=CLASSES)
    captured = CapturedStep(step, batch)
    timing = machine.time(lambda: captured(batch), repeats=STEPS)
    _add_timing(recorder, case, timing, recipe)
    return timing


def _add_timing(recorder: Recorder, case: str, timing: Timing, recipe: ResolvedRecipe) -> None:
    recorder.add(case, "time of a step", timing.seconds * 1e3, "ms", timing)
    recorder.add(
        case, "images per second", recipe.batch_size / timing.seconds, "images/s", timing, in_table=False
    )


def largest_difference(machine: Machine, recipe: ResolvedRecipe) -> float:
    """Between the weights after the same steps, captured and eager, with deterministic algorithms of cuDNN."""
    weights = []
    for is_captured in (False, True):
        model, step = new_step(recipe, machine, num_classes=CLASSES)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        batches = [
            random_batch(recipe, machine.device, seed=seed, num_classes=CLASSES)
            for seed in range(COMPARED_STEPS + 1)
        ]
        if is_captured:
            captured = CapturedStep(step, batches[0])
            for batch in batches[1:]:
                captured(batch)
        else:
            for batch in [batches[0]] * STEPS_BEFORE_CAPTURE + batches[1:]:
                step(batch)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    return float((weights[0] - weights[1]).abs().max())
