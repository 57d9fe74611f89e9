"""The cost of a run: arithmetic per second, the share of the device's peak, memory, power.

    meter = Meter(recipe, num_classes, context)
    for each epoch:
        meter.start()                                # before the first batch is waited for
        …                                            # training
        metrics |= meter.stop(images, train_seconds, image_size) # every worker; the same numbers on each of them
    state["meter"] = meter.state()                   # meter.resume(state["meter"]) after a restart

docs/cost.md says what each metric means and what it does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nfnet_ray.models.catalogue import count_multiply_adds
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.collectives import all_of
from nfnet_ray.training.context import Context
from nfnet_ray.training.measurement.gpus import peak_flops_per_second

FLOPS_PER_MULTIPLY_ADD = 2
BACKWARD_PER_FORWARD = 2  # one for the gradient of the weights, one for that of the activations

_NO_PEAK = 0.0  # of a device that is not in the table, on its way between workers
_NO_ENERGY = -1.0
_HASH_BITS = 52  # what a float64 holds exactly


def model_flops_per_image(recipe: Recipe, num_classes: int, image_size: int) -> float:
    """Floating-point operations that training on one image takes by the mathematics of the network.

    Two for each multiply-add of convolutions and linear layers, forward and twice that backward; through a frozen
    body (``model.trained``) there is no backward pass. Not in it: SAM's ascent, ESAM's look at all images, recomputed
    activations, the optimiser, and everything that is done to pixels. ``image_size`` is its side in pixels.
    """
    forward = FLOPS_PER_MULTIPLY_ADD * count_multiply_adds(
        recipe.model.name, image_size, num_classes, recipe.model.overrides.chosen()
    )
    return float(forward * (1 + BACKWARD_PER_FORWARD if recipe.model.trained == "all" else 1))


class EnergyCounter(Protocol):
    """Reads what a device has used so far."""

    def joules(self) -> float | None:
        """Since some moment in the past; None where it cannot be read."""


class NvmlEnergyCounter:
    """The energy counter of a CUDA device, which its driver keeps (Volta and later).

    Silent where there is no driver, no ``nvidia-ml-py``, no counter, or a slice of a GPU (MIG) in place of one.
    """

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        # Not by number: CUDA_VISIBLE_DEVICES, which Ray sets for each worker, is nothing to NVML.
        with contextlib.suppress(Exception):  # it is there for a metric, and may never stop a training
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
            self._nvml = pynvml

    def joules(self) -> float | None:
        """Since the driver was loaded, by a counter in millijoules."""
        if self._nvml is None:
            return None
        with contextlib.suppress(Exception):  # as above
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        return None


@dataclass(frozen=True)
class _Reading:
    """One worker's numbers of an epoch. ``device`` tells GPUs apart, and means nothing else."""

    device: float
    peak: float
    memory_bytes: float
    joules: float
    seconds: float


class Meter:
    """Measures the training of each epoch between :meth:`start` and :meth:`stop`.

    ``energy`` is for tests; by default NVML's counter is read on a GPU, and nothing on a CPU.
    """

    def __init__(
        self, recipe: Recipe, num_classes: int, context: Context, energy: EnergyCounter | None = None
    ) -> None:
        self._recipe, self._num_classes = recipe, num_classes
        self._context = context
        self._is_gpu = context.device.type == "cuda"
        if energy is None and self._is_gpu:
            energy = NvmlEnergyCounter(context.device)
        self._energy = energy
        name = torch.cuda.get_device_name(context.device) if self._is_gpu else ""
        self._peak = peak_flops_per_second(name, recipe.precision) or _NO_PEAK
        self._device = self._device_number()
        self._joules_before: float | None = None
        self._started_at = time.perf_counter()
        self._total_joules = 0.0
        self._forgot = False

    def start(self) -> None:
        """Begins an epoch's training: forgets the peaks so far and reads the energy counter."""
        self._forgot = self._forget_peak_memory()
        self._joules_before = self._energy.joules() if self._energy else None
        self._started_at = time.perf_counter()

    def stop(
        self, images: int, train_seconds: float, image_size: int, captured_bytes: float = 0.0
    ) -> dict[str, float]:
        """Ends it: the metrics that can be known, the same on all workers, which have to call this together.

        ``images`` of the epoch, over all workers; ``train_seconds`` that the epoch took of the clock's phase;
        ``image_size`` is the side of the epoch's images in pixels; ``captured_bytes`` is the memory of a step that is
        replayed, which torch does not count.
        A GPU's queue has to be empty, as it is once a loss has been read.
        """
        seconds = time.perf_counter() - self._started_at
        memory_bytes = max(self.peak_memory_bytes(), captured_bytes)
        own = _Reading(self._device, self._peak, memory_bytes, self._joules(), seconds)
        readings = all_of(own, self._context)
        flops_per_image = model_flops_per_image(self._recipe, self._num_classes, image_size)
        flops_per_second = flops_per_image * images / train_seconds
        metrics = {"model_tflops_per_second": flops_per_second / 1e12}

        # Workers that share a GPU share its peak and its power.
        devices = {reading.device: reading for reading in readings}.values()
        if all(reading.peak != _NO_PEAK for reading in devices):
            metrics["model_flops_utilisation"] = flops_per_second / sum(reading.peak for reading in devices)
        if all(reading.memory_bytes > 0 for reading in readings):
            name = "peak_memory_bytes" if self._is_gpu else "peak_resident_bytes"
            metrics[name] = max(reading.memory_bytes for reading in readings)
        if all(reading.joules != _NO_ENERGY for reading in devices):
            self._total_joules += sum(reading.joules for reading in devices)
            metrics["gpu_power_watts"] = sum(reading.joules / reading.seconds for reading in devices)
            metrics["gpu_energy_joules"] = self._total_joules
        return metrics

    def state(self) -> dict[str, float]:
        """The state to save in a checkpoint."""
        return {"joules": self._total_joules}

    def resume(self, state: Mapping[str, float]) -> None:
        """Restores a :meth:`state`, to count on from there."""
        self._total_joules = state["joules"]

    def _joules(self) -> float:
        """Since :meth:`start`. A counter that went back (the driver was loaded anew) says nothing."""
        after = self._energy.joules() if self._energy else None
        if after is None or self._joules_before is None or after < self._joules_before:
            return _NO_ENERGY
        return after - self._joules_before

    def _device_number(self) -> float:
        if not self._is_gpu:
            return float(self._context.rank)
        uuid = str(torch.cuda.get_device_properties(self._context.device).uuid)
        digest = hashlib.blake2b(uuid.encode(), digest_size=8).digest()
        return float(int.from_bytes(digest, "big") >> (64 - _HASH_BITS))

    def _forget_peak_memory(self) -> bool:
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats(self._context.device)
            return True
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # Linux sets the peak to what it is now: proc(5)
        except OSError:
            return False
        return True

    def peak_memory_bytes(self) -> float:
        """The peak since :meth:`start`, of this process or of its GPU memory; 0 where it is not known."""
        if self._is_gpu:
            return float(torch.cuda.max_memory_allocated(self._context.device))
        if self._forgot:
            with contextlib.suppress(OSError), open("/proc/self/status") as file:
                for line in file:
                    if line.startswith("VmHWM:"):
                        return float(line.split()[1]) * 1024
        return 0.0
