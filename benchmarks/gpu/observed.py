"""What a training step does on a GPU besides its arithmetic: waiting, idling, and what the meter says of it.

And what augmentation takes there: the device's own time, which is what the step after it is put off by, and the time of
a batch alone, which is at least what the host takes to launch it.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.networks import (
    IMAGENET_CLASSES,
    captured_step,
    new_step,
    random_batch,
    recipe_of,
    usual_precision,
)
from benchmarks.gpu.rows import Recorder
from nfnet_ray.data.augmentation.augment import augment
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.captured import Recorder as GraphRecorder
from nfnet_ray.training.captured import recorder_for
from nfnet_ray.training.measurement.meter import Meter

PROFILED_STEPS = 5
REPEATS = 20
SECONDS_OF_METERING = 3.0  # the driver's counter of energy moves every 20 to 100 ms
SECONDS_BETWEEN_READINGS = 0.05
SYNCHRONISING = "called a synchronizing CUDA operation"  # torch's warning


def measure(recorder: Recorder, machine: Machine, _options: argparse.Namespace) -> None:
    """Of augmentation, and of the steps of a network that fills the device and of one that does not."""
    small = {"batch_size": 4, "data__image_size": 32} if machine.is_small else {"batch_size": 256}
    recipe = recipe_of("nfnet_f0", machine, **small)
    case = f"augmentation of nfnet_f0, {recipe.data.image_size} px, batch {recipe.batch_size}"
    with recorder.case(case):
        add_augmentation(recorder, case, machine, recipe)
    networks = (("nfnet_pico", 4),) if machine.is_small else (("nfnet_f0", 256), ("nfnet_pico", 256))
    for name, batch_size in networks:
        recipe = recipe_of(
            name,
            machine,
            batch_size=batch_size,
            precision=usual_precision(machine),
            memory_format="channels_last",
        )
        case = f"{name}, {recipe.data.image_size} px, batch {batch_size}"
        with recorder.case(f"{case}, eager"):
            add_observations(recorder, f"{case}, eager", machine, recipe, None)
        graphs = recorder_for(machine.device)
        if graphs is None:
            recorder.add(f"{case}, captured", "skipped", "needs a GPU")
            continue
        with recorder.case(f"{case}, captured"):
            add_observations(recorder, f"{case}, captured", machine, recipe, graphs)


def add_augmentation(recorder: Recorder, case: str, machine: Machine, recipe: ResolvedRecipe) -> None:
    """Rows of what the published Recipe does to a batch on the device: flips, MixUp, CutMix and RandAugment."""
    batch, partners = (random_batch(recipe, machine.device, seed=seed) for seed in (0, 1))
    epochs = itertools.count()  # each has draws of its own

    def work() -> None:
        augment(batch, batch.positions, partners, recipe.data, recipe.seed, next(epochs))

    timing = machine.time(work, repeats=REPEATS)
    recorder.add(case, "time of a batch alone", timing.seconds * 1e3, "ms", timing)
    add_waits(recorder, case, work, machine)
    with recorder.case(case):  # of its own, as below
        profile = profiled(work, machine)
        recorder.add(case, "device's time of a batch", profile.busy * 1e3 / profile.steps, "ms")
        recorder.add(case, "copies from pageable memory", profile.pageable_copies)


def add_waits(recorder: Recorder, case: str, work: Any, machine: Machine) -> None:
    """How often ``work`` waits for the device, and where."""
    places = synchronisations(work, machine)
    recorder.add(case, "waits for the device", len(places))
    for place in sorted(set(places)):
        recorder.add(case, "waits at", place)


def add_observations(
    recorder: Recorder, case: str, machine: Machine, recipe: ResolvedRecipe, graphs: GraphRecorder | None
) -> None:
    """All rows of one network, whose steps are captured by ``graphs``, or done kernel by kernel."""
    step = captured_step(new_step(recipe, machine)[1], recipe, machine, graphs)
    batch = random_batch(recipe, machine.device)
    step.prepare(batch)
    if step.refusal:
        raise RuntimeError(step.refusal)
    for _ in range(2 if machine.is_small else 4):
        step(batch)
    machine.synchronise()

    add_waits(recorder, case, lambda: step(batch), machine)

    with recorder.case(case):  # of its own: not every machine lets a profiler in
        profile = profiled(lambda: step(batch), machine)
        idle = 1 - profile.busy / profile.wall
        recorder.add(case, "share of the time in which the device is idle", idle, f"{profile.steps} steps")
        recorder.add(case, "copies from pageable memory", profile.pageable_copies)

    meter = Meter(recipe, IMAGENET_CLASSES, PlainContext(device=machine.device, threads=machine.threads))
    machine.forget_memory()
    watts = Watts(machine)
    meter.start()
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < (0.0 if machine.is_small else SECONDS_OF_METERING) or not images:
        step(batch)
        machine.synchronise()
        images += recipe.batch_size
    metrics = meter.stop(images, time.perf_counter() - start, recipe.data.image_size, step.peak_bytes)
    mean_watts = watts.mean()
    for name, value in metrics.items():
        recorder.add(case, f"meter: {name}", value)
    if machine.is_gpu:
        peak = float(torch.cuda.max_memory_allocated(machine.device))
        if not graphs:  # torch does not count what is replayed
            recorder.add(case, "meter's memory : torch's", metrics["peak_memory_bytes"] / peak)
        free, total = torch.cuda.mem_get_info(machine.device)
        recorder.add(case, "memory in use by the driver's count", (total - free) / 1e9, "GB")
        if mean_watts and "gpu_power_watts" in metrics:
            recorder.add(case, "meter's power : mean of NVML's", metrics["gpu_power_watts"] / mean_watts)


class Watts:
    """Reads the power over and over in a thread, until :meth:`mean`."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._readings = machine, list[float]()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_READINGS):
            watts = self._machine.sensors().power_watts
            if isinstance(watts, float):
                self._readings.append(watts)

    def mean(self) -> float | None:
        """Of the second half, since the driver averages over the time before; None without readings."""
        self._is_over.set()
        self._thread.join()
        late = self._readings[len(self._readings) // 2 :]
        return sum(late) / len(late) if late else None


def synchronisations(work: Any, machine: Machine) -> list[str]:
    """The places (file:line) at which ``work`` waits for the device; none on a CPU."""
    if not machine.is_gpu:
        work()
        return []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [
        f"{warning.filename.rpartition('/')[2]}:{warning.lineno}"
        for warning in caught
        if SYNCHRONISING in str(warning.message)
    ]


class Profile(NamedTuple):
    """Of some steps: seconds in which the device computes or copies, and seconds from the first of that to the last."""

    busy: float
    wall: float
    steps: int
    pageable_copies: int
    """Copies from or to memory of the host that is not pinned: the host may wait for them, and torch does not warn."""


def profiled(work: Any, machine: Machine) -> Profile:
    """What the device does in some steps.

    On a CPU the operators of the main thread are what is counted.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if machine.is_gpu else ProfilerActivity.CPU
    steps = 1 if machine.is_small else PROFILED_STEPS
    with profile(activities=[activity]) as profiler:
        for _ in range(steps):
            work()
        machine.synchronise()
    kind = DeviceType.CUDA if machine.is_gpu else DeviceType.CPU
    events = [
        event
        for event in profiler.events() or []
        if event.device_type == kind and not event.is_user_annotation
    ]
    intervals = [(event.time_range.start, event.time_range.end) for event in events]
    if not intervals:
        raise RuntimeError("the profiler saw nothing on the device")
    wall = max(end for _, end in intervals) - min(start for start, _ in intervals)
    pageable = sum("Pageable" in event.name for event in events)  # "Memcpy HtoD (Pageable -> Device)"
    return Profile(covered(intervals) / 1e6, wall / 1e6, steps, pageable)  # from microseconds


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals.

    >>> covered([(0, 2), (1, 3), (5, 6), (5, 5.5)])
    4.0
    """
    total = 0.0
    reached = float("-inf")
    for start, end in sorted(intervals):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return total
