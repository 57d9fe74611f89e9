"""The cost of a run against hand calculations: arithmetic, memory, power; over workers; and without a counter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nfnet_ray.models import create_model
from nfnet_ray.models.published import published_recipe, with_published_values
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.measurement import meter as meter_module
from nfnet_ray.training.measurement.gpus import peak_flops_per_second
from nfnet_ray.training.measurement.meter import (
    Meter,
    NvmlEnergyCounter,
    model_flops_per_image,
)
from tests.preloaded import run_program
from tests.training.two_workers import two_workers

PICO = with_published_values(Recipe().with_values({"model.name": "nfnet_pico", "data.image_size": 32}))


def test_the_flops_of_an_image_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for trained in ("all", "classifier"):
        model = create_model("nfnet_pico", 5)
        if trained == "classifier":
            model.requires_grad_(False)
            model.classifier.requires_grad_(True)
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 3, 32, 32)).sum().backward()
        counted = counter.get_total_flops()
        # The stem's input has no gradient, and the frozen body's classifier has one of its weight: a few percent.
        flops = model_flops_per_image(PICO.with_values({"model.trained": trained}), 5, 32)
        assert flops == pytest.approx(counted, rel=0.03)


def test_sam_is_no_part_of_the_models_flops() -> None:
    with_sam = PICO.with_values({"optimizer.sam.rho": 0.1})
    assert model_flops_per_image(with_sam, 5, 32) == model_flops_per_image(PICO, 5, 32)


def test_the_published_network_takes_its_published_multiply_adds() -> None:
    # Facts of the official count_flops: 6.977 G multiply-adds of NFNet-F0 at 192 pixels.
    assert model_flops_per_image(published_recipe("nfnet_f0"), 1000, 192) == pytest.approx(
        6.977e9 * 2 * 3, rel=1e-3
    )


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("Tesla V100-SXM2-16GB", "float32", 15.7),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),  # it has no such arithmetic
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "bfloat16", 312),
        ("NVIDIA A100-SXM4-40GB", "float32", 19.5),  # without TF32
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA B200", "bfloat16", 2250),
        ("NVIDIA GB200", "float32", 80),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA A10G", "bfloat16", 70),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362.05),
        ("NVIDIA GeForce RTX 3090", "bfloat16", 71),
        ("NVIDIA GeForce RTX 3090 Ti", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "float32", None),
        ("", "float32", None),
    ],
)
def test_peaks_are_those_of_the_data_sheet_and_never_guessed(
    name: str, precision: Any, teraflops: float | None
) -> None:
    assert peak_flops_per_second(name, precision) == (
        None if teraflops is None else pytest.approx(teraflops * 1e12)
    )


# A GPU that is not there: torch says its name, memory and UUID, and a module in NVML's place keeps a counter.


class FakeNvml(SimpleNamespace):
    """Millijoules are what the test says."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self.asked: list[Any] = []
        self.millijoules: Any = 0
        super().__init__(
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=lambda uuid: self.asked.append(uuid) or f"handle of {uuid}",
            nvmlDeviceGetTotalEnergyConsumption=self._energy,
        )
        self.__dict__.update(functions)

    def _energy(self, handle: str) -> int:
        assert handle == "handle of GPU-1234-ab"
        if isinstance(self.millijoules, Exception):
            raise self.millijoules
        return int(self.millijoules)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PlainContext:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234-ab"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 7_000)
    return PlainContext(device=torch.device("cuda"), threads=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: now[0])
    return now


def use(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_an_epoch_on_a_gpu(gpu: PlainContext, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    use(monkeypatch, nvml)
    recipe = PICO.with_values({"precision": "bfloat16"})
    meter, flops = Meter(recipe, 5, gpu), model_flops_per_image(recipe, 5, 32)
    assert nvml.asked == ["GPU-1234-ab"]
    nvml.millijoules = 50_000
    meter.start()
    clock[0] += 20  # of which 16 are training; the rest was waiting for data
    nvml.millijoules = 1_050_000
    metrics = meter.stop(images=4_000, train_seconds=16, image_size=32)
    assert metrics == {
        "model_tflops_per_second": pytest.approx(flops * 250 / 1e12),
        "model_flops_utilisation": pytest.approx(flops * 250 / 121e12),
        "peak_memory_bytes": 7_000,
        "gpu_power_watts": 50,
        "gpu_energy_joules": 1_000,
    }
    meter.start()
    clock[0] += 10
    nvml.millijoules = 1_650_000
    # A replayed step takes memory that torch does not count.
    metrics = meter.stop(images=4_000, train_seconds=10, image_size=32, captured_bytes=9_000)
    assert (metrics["gpu_energy_joules"], metrics["peak_memory_bytes"]) == (1_600, 9_000)

    resumed = Meter(recipe, 5, gpu)
    resumed.resume(meter.state())
    resumed.start()
    clock[0] += 1
    nvml.millijoules = 1_651_000
    assert resumed.stop(images=1, train_seconds=1, image_size=32)["gpu_energy_joules"] == 1_601


def test_a_counter_that_goes_back_leaves_power_out_and_the_sum_as_it_was(
    gpu: PlainContext, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml()
    use(monkeypatch, nvml)
    meter = Meter(PICO, 5, gpu)
    sums = []
    for before, after in ((5_000, 9_000), (9_000, 2_000), (2_000, 3_000)):
        nvml.millijoules = before
        meter.start()
        clock[0] += 1
        nvml.millijoules = after
        sums.append(meter.stop(images=1, train_seconds=1, image_size=32).get("gpu_energy_joules"))
    assert sums == [4, None, 5]


def failing(*_: Any) -> Any:
    raise RuntimeError("NVML: not supported")


@pytest.mark.parametrize(
    "nvml",
    [
        None,  # `import pynvml` raises ModuleNotFoundError
        FakeNvml(nvmlInit=failing),
        FakeNvml(nvmlDeviceGetHandleByUUID=failing),
        FakeNvml(nvmlDeviceGetTotalEnergyConsumption=failing),
        SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda _: 1),
    ],
    ids=["no module", "no driver", "no such GPU", "no counter", "no function"],
)
def test_without_nvml_power_is_left_out_and_nothing_else(
    gpu: PlainContext, monkeypatch: pytest.MonkeyPatch, nvml: Any
) -> None:
    use(monkeypatch, nvml)
    meter = Meter(PICO, 5, gpu)
    meter.start()
    assert set(meter.stop(images=1, train_seconds=1, image_size=32)) == {
        "model_tflops_per_second",
        "model_flops_utilisation",
        "peak_memory_bytes",
    }


def test_a_counter_that_is_lost_meanwhile_is_no_error(
    gpu: PlainContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml()
    use(monkeypatch, nvml)
    counter = NvmlEnergyCounter(gpu.device)
    assert counter.joules() == 0
    nvml.millijoules = RuntimeError("GPU is lost")
    assert counter.joules() is None


def test_an_unknown_gpu_has_no_utilisation(gpu: PlainContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA B999")
    use(monkeypatch, None)
    meter = Meter(PICO, 5, gpu)
    meter.start()
    assert set(meter.stop(images=1, train_seconds=1, image_size=32)) == {
        "model_tflops_per_second",
        "peak_memory_bytes",
    }


class Counter:
    """An energy counter that jumps by some joules between two readings."""

    def __init__(self, joules: float) -> None:
        self._joules, self._readings = joules, 0

    def joules(self) -> float:
        self._readings += 1
        return self._joules * self._readings


@pytest.mark.parametrize(
    ("uuids", "watts", "gpus"), [("ab", 30, 2), ("aa", 20, 1)], ids=["two GPUs", "one shared"]
)
def test_workers_are_put_together_by_device(
    gpu: PlainContext,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    uuids: str,
    watts: float,
    gpus: int,
) -> None:
    """Two workers in one process: the gathering hands each the readings of both."""
    meters = []
    for rank, (uuid, joules) in enumerate(zip(uuids, (10.0, 20.0), strict=True)):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _, uuid=uuid: SimpleNamespace(uuid=uuid)
        )
        context = SimpleNamespace(rank=rank, world_size=2, device=gpu.device)
        meters.append(Meter(PICO, 5, context, Counter(joules)))  # type: ignore[arg-type]
    for number, meter in enumerate(meters):
        monkeypatch.setattr(meter, "peak_memory_bytes", lambda number=number: 1_000.0 * (number + 1))
        meter.start()
    clock[0] += 1
    own = [meter_module._Reading(m._device, m._peak, m.peak_memory_bytes(), m._joules(), 1.0) for m in meters]
    monkeypatch.setattr(meter_module, "all_of", lambda _own, _context: own)
    for meter in meters:
        metrics = meter.stop(images=100, train_seconds=1, image_size=32)
        assert metrics["gpu_power_watts"] == metrics["gpu_energy_joules"] == watts
        assert metrics["peak_memory_bytes"] == 2_000
        one = model_flops_per_image(PICO, 5, 32) * 100 / 30.3e12  # L4, float32
        assert metrics["model_flops_utilisation"] == pytest.approx(one / gpus)


IMPORTS = """\
import torch, torch.distributed as dist
from types import SimpleNamespace
from nfnet_ray.recipe import Recipe
from nfnet_ray.training.measurement.meter import Meter
"""
WORK = """\
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
recipe = Recipe().with_values({"model.name": "nfnet_pico", "data.image_size": 32})
place = SimpleNamespace(rank=rank, world_size=2, device=torch.device("cpu"))
meter = Meter(recipe, 5, place, SimpleNamespace(joules=iter(([0.0, 1.0], [0.0, 2.0])[rank]).__next__))
meter.peak_memory_bytes = lambda: (3.0, 4.0)[rank]
meter.start()
metrics = meter.stop(images=10, train_seconds=2, image_size=32)
print(metrics["gpu_energy_joules"], metrics["peak_resident_bytes"], metrics["gpu_power_watts"])
dist.destroy_process_group()
"""


def test_workers_tell_each_other(tmp_path: Path) -> None:
    first, second = two_workers(IMPORTS, WORK, tmp_path)
    assert first == second
    joules, peak, watts = map(float, first.split())
    assert (joules, peak) == (3, 4)
    assert watts > 0


# In a process of its own: one that has run other tests holds free memory, and takes 300 MB without growing.
PEAKS = """\
import numpy as np, torch
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.measurement.meter import Meter
recipe = Recipe().with_values({"model.name": "nfnet_pico", "data.image_size": 32})
meter = Meter(recipe, 5, PlainContext(device=torch.device("cpu"), threads=1))
for megabytes in (300, 1, 200):
    meter.start()
    block = np.ones(megabytes << 20, np.uint8)
    del block
    metrics = meter.stop(images=10, train_seconds=0.5, image_size=32)
    assert set(metrics) == {"model_tflops_per_second", "peak_resident_bytes"}
    print(metrics["peak_resident_bytes"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak")
def test_on_a_cpu_the_peak_is_that_of_the_epoch() -> None:
    process = run_program(PEAKS)
    assert process.returncode == 0, process.stderr
    peaks = [float(line) for line in process.stdout.splitlines()]
    assert peaks[0] - peaks[1] > 250 << 20
    assert 150 << 20 < peaks[2] - peaks[1] < 250 << 20
