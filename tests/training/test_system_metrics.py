"""System metrics against hand calculations: of a node, of a GPU, of several nodes, and without counters."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.measurement import system as system_module
from nfnet_ray.training.measurement.system import SECONDS_BETWEEN_RECORDS, SystemMeter

BEFORE = {"user": 100.0, "nice": 0.0, "system": 20.0, "idle": 300.0, "iowait": 80.0, "guest": 50.0}
AFTER = {"user": 106.0, "nice": 1.0, "system": 22.0, "idle": 306.0, "iowait": 81.0, "guest": 55.0}


class Node:
    """A machine whose counters a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: str = "node-a") -> None:
        self.cpu, self.received, self.sent, self.now = BEFORE, 1e6, 2e6, 100.0
        monkeypatch.setattr(system_module.platform, "node", lambda: host)
        monkeypatch.setattr(system_module.time, "perf_counter", lambda: self.now)
        psutil = SimpleNamespace(
            cpu_times=lambda: SimpleNamespace(_asdict=lambda: self.cpu),
            net_io_counters=lambda: SimpleNamespace(bytes_recv=self.received, bytes_sent=self.sent),
            virtual_memory=lambda: SimpleNamespace(used=4e9, total=16e9),
            disk_usage=lambda _: SimpleNamespace(percent=31.0),
        )
        monkeypatch.setattr(system_module, "psutil", psutil)

    def work(self) -> None:
        """Passes 12 seconds: 9 of 16 core-seconds are busy; 5 MB come in, and 7 go out."""
        self.cpu, self.received, self.sent = AFTER, self.received + 5e6, self.sent + 7e6
        self.now += SECONDS_BETWEEN_RECORDS + 2


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def cpu() -> PlainContext:
    return PlainContext(device=torch.device("cpu"), threads=1)


def read(texts: dict[str, str]) -> Any:
    assert set(texts) == {"system"}
    return json.loads(texts["system"])


def test_a_record_has_what_the_node_did_since_the_one_before(node: Node) -> None:
    meter = SystemMeter(cpu())
    meter.start()
    node.work()
    meter.start()  # of the second epoch: it has begun already
    assert read(meter.record(is_last=False)) == {
        "node-a": {
            "cpu_utilization_percentage": 56.2,
            "system_memory_usage_megabytes": 4000.0,
            "system_memory_usage_percentage": 25.0,
            "disk_usage_percentage": 31.0,
            "network_receive_megabytes": 5.0,
            "network_transmit_megabytes": 7.0,
        }
    }
    node.cpu, node.now = {**AFTER, "idle": AFTER["idle"] + 10}, node.now + SECONDS_BETWEEN_RECORDS
    again = read(meter.record(is_last=False))["node-a"]
    assert again["cpu_utilization_percentage"] == 0.0
    assert again["network_receive_megabytes"] == 5.0  # since the start, as MLflow counts it


def test_short_epochs_share_a_record_but_the_last_one_has_its_own(node: Node) -> None:
    meter = SystemMeter(cpu())
    meter.start()
    node.now += SECONDS_BETWEEN_RECORDS / 2
    assert meter.record(is_last=False) == {}
    node.work()
    assert read(meter.record(is_last=False))["node-a"]["cpu_utilization_percentage"] == 56.2
    assert meter.record(is_last=False) == {}
    assert read(meter.record(is_last=True))["node-a"]["disk_usage_percentage"] == 31.0


class Nvml(SimpleNamespace):
    """A GPU that is number 3 of its node, half busy at one look and idle at the next."""

    def __init__(self, **functions: Any) -> None:
        self.millijoules, uses = 0, iter([50, 0] * 10)
        super().__init__(
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=lambda _: "handle",
            nvmlDeviceGetIndex=lambda _: 3,
            nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=20e9, total=80e9),
            nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=next(uses)),
            nvmlDeviceGetEnforcedPowerLimit=lambda _: 700_000,
            nvmlDeviceGetTotalEnergyConsumption=lambda _: self.millijoules,
        )
        self.__dict__.update(functions)


def on_gpu(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> SystemMeter:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234-ab"))
    return SystemMeter(PlainContext(device=torch.device("cuda"), threads=1))


def test_a_gpu_has_the_number_that_its_driver_gives_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    meter = on_gpu(monkeypatch, nvml)
    meter.start()
    meter.look()
    meter.look()  # too soon to say something new
    node.work()
    nvml.millijoules = 4_200_000
    found = read(meter.record(is_last=False))["node-a"]
    assert {name: value for name, value in found.items() if name.startswith("gpu_")} == {
        "gpu_3_memory_usage_megabytes": 20_000.0,
        "gpu_3_memory_usage_percentage": 25.0,
        "gpu_3_utilization_percentage": 25.0,
        "gpu_3_power_usage_watts": 350.0,
        "gpu_3_power_usage_percentage": 50.0,
    }


def failing(*_: Any) -> Any:
    raise RuntimeError("NVML: not supported")


@pytest.mark.parametrize("function", [name for name in vars(Nvml()) if name.startswith("nvml")])
def test_what_a_driver_does_not_tell_is_left_out(
    node: Node, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    meter = on_gpu(monkeypatch, Nvml(**{function: failing}))
    meter.start()
    node.work()
    found = read(meter.record(is_last=False))["node-a"]
    assert found["cpu_utilization_percentage"] == 56.2
    assert len([name for name in found if name.startswith("gpu_")]) in (0, 3, 4)


def test_a_system_that_tells_nothing_is_no_error(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ("cpu_times", "net_io_counters", "virtual_memory", "disk_usage")
    monkeypatch.setattr(system_module, "psutil", SimpleNamespace(**dict.fromkeys(everything, failing)))
    meter = SystemMeter(cpu())
    meter.start()
    node.work()
    assert meter.record(is_last=True) == {}


def test_each_node_of_a_run_has_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers in one process, two of them on one node: the gathering hands each the readings of all."""
    meters = []
    for rank, host in enumerate(("node-b", "node-a", "node-b")):
        node = Node(monkeypatch, host)
        context = SimpleNamespace(rank=rank, world_size=3, device=torch.device("cpu"))
        meters.append(SystemMeter(context))  # type: ignore[arg-type]
        meters[-1].start()
    node.work()
    readings: list[Any] = []
    monkeypatch.setattr(system_module, "all_of", lambda own, _: readings.append(own) or [own])
    for meter in meters:
        meter.record(is_last=True)
    monkeypatch.setattr(system_module, "all_of", lambda _own, _context: list(readings))
    told = [meter.record(is_last=True) for meter in meters]
    assert told[0] == told[1] == told[2]
    assert list(read(told[0])) == ["node-b", "node-a"]


def test_on_this_machine_they_are_within_their_bounds() -> None:
    meter = SystemMeter(cpu())
    meter.start()
    sum(range(300_000))
    [found] = read(meter.record(is_last=True)).values()
    for name, value in found.items():
        assert value >= 0, name
        assert value <= 100 or not name.endswith("_percentage"), name
    assert found["system_memory_usage_megabytes"] > 100
