"""The cost of a run: floating-point operations per second, their share of the device's peak, memory and power.

    meter = Meter(recipe, num_classes, context)
    for each epoch:
        meter.start()                                # before the first batch is waited for
        …                                            # training
        metrics |= meter.stop(images, train_seconds, image_size) # every worker; the same numbers on each of them
    state["meter"] = meter.state()                   # meter.resume(state["meter"]) after a restart

docs/cost.md defines each metric, and lists what it leaves out.
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
BACKWARD_PER_FORWARD = 2  # one for the gradient of the weights, one for the gradient of the activations

# Sent between workers in place of a number that is not known.
_NO_PEAK = 0.0
_NO_ENERGY = -1.0
_HASH_BITS = 52  # a float64 holds integers of 52 bits exactly


def model_flops_per_image(recipe: Recipe, num_classes: int, image_size: int) -> float:
    """The number of floating-point operations that the network's mathematics needs to train on one image.

    Each multiply-add of a convolution or linear layer counts as two operations in the forward pass and four in the
    backward pass. A frozen body (``model.trained``) has no backward pass. The number leaves out SAM's ascent, ESAM's
    forward pass over all images, recomputed activations, the optimiser, and the augmentation. ``image_size`` is the
    side of the image in pixels.
    """
    forward = FLOPS_PER_MULTIPLY_ADD * count_multiply_adds(
        recipe.model.name, image_size, num_classes, recipe.model.overrides.chosen()
    )
    return float(forward * (1 + BACKWARD_PER_FORWARD if recipe.model.trained == "all" else 1))


class EnergyCounter(Protocol):
    """Reads the energy that a device has used so far."""

    def joules(self) -> float | None:
        """The joules used since some fixed moment in the past; None if the counter cannot be read."""


class NvmlEnergyCounter:
    """The energy counter that the driver keeps for a CUDA device (Volta and later).

    Returns None, and raises nothing, without a driver, without ``nvidia-ml-py``, without a counter, and for a slice of
    a GPU (MIG).
    """

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        # By UUID and not by number: NVML ignores CUDA_VISIBLE_DEVICES, which Ray sets for each worker.
        with contextlib.suppress(Exception):  # the counter serves a metric, and must never stop a training
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
            self._nvml = pynvml

    def joules(self) -> float | None:
        """The joules used since the driver was loaded. The counter has a resolution of a millijoule."""
        if self._nvml is None:
            return None
        with contextlib.suppress(Exception):  # as above
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        return None


@dataclass(frozen=True)
class _Reading:
    """One worker's measurements of an epoch. ``device`` is a number that is different for each device."""

    device: float
    peak: float
    memory_bytes: float
    joules: float
    seconds: float


class Meter:
    """Measures the training of each epoch between :meth:`start` and :meth:`stop`.

    ``energy`` is for tests. By default, NVML's counter is read on a GPU, and the energy of a CPU is not measured.
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
        """Begins to measure an epoch's training: resets the peak of the memory, and reads the energy counter."""
        self._forgot = self._forget_peak_memory()
        self._joules_before = self._energy.joules() if self._energy else None
        self._started_at = time.perf_counter()

    def stop(
        self, images: int, train_seconds: float, image_size: int, captured_bytes: float = 0.0
    ) -> dict[str, float]:
        """Ends the epoch, and returns the metrics that can be measured, the same on all workers.

        Collective: every worker calls it. A GPU's queue must be empty, as it is once a loss has been read.

        Args:
            images: the number of images of the epoch, over all workers.
            train_seconds: the seconds of the clock's phase ``train`` in this epoch.
            image_size: the side of the epoch's images in pixels.
            captured_bytes: the peak memory of a step that is replayed as a graph, which torch does not count.
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
        """Restores a :meth:`state`, from which counting continues."""
        self._total_joules = state["joules"]

    def _joules(self) -> float:
        """The energy since :meth:`start`; unknown if the counter went back, as when the driver was loaded anew."""
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
                file.write("5")  # Linux resets the peak to the present value: proc(5)
        except OSError:
            return False
        return True

    def peak_memory_bytes(self) -> float:
        """The peak since :meth:`start` of this process's GPU memory, on a CPU of its resident memory; 0: unknown."""
        if self._is_gpu:
            return float(torch.cuda.max_memory_allocated(self._context.device))
        if self._forgot:
            with contextlib.suppress(OSError), open("/proc/self/status") as file:
                for line in file:
                    if line.startswith("VmHWM:"):
                        return float(line.split()[1]) * 1024
        return 0.0
