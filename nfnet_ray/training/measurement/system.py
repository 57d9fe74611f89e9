"""MLflow's system metrics of each node on which a run has workers: how busy its processors, GPUs and network are.

    system = SystemMeter(context)           # all workers together
    system.start()                          # before the first batch
    for each epoch:
        …                                   # system.look() every few steps
        texts |= system.record(is_last)     # all workers together; on each of them the same

The names and their meaning are those of ``mlflow.system_metrics``. ``cpu_utilization_percentage`` and the like describe
the whole node. ``gpu_3_utilization_percentage`` describes the node's GPU number 3, if a worker of the run uses it.
Means are over the time since the last record. No thread is needed: the system's counters are read at both ends of that
time, and a GPU is sampled between two steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import psutil
import torch

from nfnet_ray.training.collectives import all_of
from nfnet_ray.training.context import Context
from nfnet_ray.training.measurement.meter import NvmlEnergyCounter

SECONDS_BETWEEN_RECORDS = 10.0
"""The shortest time between two records, so that a study of many short epochs has a small journal. It is also the
interval of ``mlflow.system_metrics``."""
_SECONDS_BETWEEN_LOOKS = 1.0  # NVML averages the use of a GPU over at most that long (nvmlUtilization_t)
_MEGABYTE = 1e6  # as MLflow counts them

_SystemMetrics = dict[str, float]


class _Counters(NamedTuple):
    """Counters of the node since it was started."""

    busy_seconds: float
    all_seconds: float
    received_bytes: float
    sent_bytes: float


class _Reading(NamedTuple):
    """One worker's part of a record."""

    host: str
    seconds: float
    of_node: _SystemMetrics
    of_gpu: _SystemMetrics


class SystemMeter:
    """Measures the node and the GPU of this worker. Metrics that cannot be read are left out; no error is raised."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._host = platform.node()
        self._gpu = _Gpu(context.device) if context.device.type == "cuda" else None
        self._before: _Counters | None = None
        self._at_start: _Counters | None = None
        self._since = 0.0
        self._has_started = False

    def start(self) -> None:
        """Begins to measure at the first call. Later calls do nothing."""
        if self._has_started:
            return
        self._has_started = True
        self._at_start = _counters()
        self._begin()

    def look(self) -> None:
        """Samples the GPU, at most once a second."""
        if self._gpu:
            self._gpu.look(_SECONDS_BETWEEN_LOOKS)

    def record(self, is_last: bool) -> dict[str, str]:
        """``{"system": {host: {name: value}} as JSON}``; {} too soon after the last record, unless it ``is_last``.

        Collective: every worker calls it.
        """
        own = _Reading(
            self._host,
            time.perf_counter() - self._since,
            self._of_node(),
            self._gpu.metrics() if self._gpu else {},
        )
        readings = all_of(own, self._context)
        # The first worker's clock decides, so that all workers decide alike.
        if not is_last and readings[0].seconds < SECONDS_BETWEEN_RECORDS:
            return {}
        self._begin()
        found: dict[str, _SystemMetrics] = {}
        # Workers of one node read the same counters at almost the same moment. The first worker's values are used.
        for reading in readings:
            for name, value in {**reading.of_node, **reading.of_gpu}.items():
                found.setdefault(reading.host, {}).setdefault(name, round(value, 1))
        return {"system": json.dumps(found, separators=(",", ":"))} if found else {}

    def _begin(self) -> None:
        self._before, self._since = _counters(), time.perf_counter()
        if self._gpu:
            self._gpu.begin()

    def _of_node(self) -> _SystemMetrics:
        metrics: _SystemMetrics = {}
        now = _counters()
        if now and self._before and (passed := now.all_seconds - self._before.all_seconds) > 0:
            busy = (now.busy_seconds - self._before.busy_seconds) / passed
            metrics["cpu_utilization_percentage"] = 100 * min(1.0, max(0.0, busy))
        with contextlib.suppress(Exception):  # this serves a metric, and must never stop a training
            memory = psutil.virtual_memory()
            metrics["system_memory_usage_megabytes"] = memory.used / _MEGABYTE
            metrics["system_memory_usage_percentage"] = 100 * memory.used / memory.total
            metrics["disk_usage_percentage"] = psutil.disk_usage(os.sep).percent
        if now and self._at_start:
            received = now.received_bytes - self._at_start.received_bytes
            sent = now.sent_bytes - self._at_start.sent_bytes
            metrics["network_receive_megabytes"] = received / _MEGABYTE
            metrics["network_transmit_megabytes"] = sent / _MEGABYTE
        return metrics


class _Gpu:
    """One GPU, sampled through NVML. Has no metrics without a driver or ``nvidia-ml-py``, and for a slice (MIG)."""

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        self._counter = NvmlEnergyCounter(device)
        self._looks: list[_SystemMetrics] = []
        self._looked_at = 0.0
        self._joules_before: float | None = None
        self._since = 0.0
        with contextlib.suppress(Exception):  # as above
            import pynvml

            pynvml.nvmlInit()
            # By UUID, for the reason given in NvmlEnergyCounter.
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
            self._number = pynvml.nvmlDeviceGetIndex(self._handle)
            self._nvml = pynvml

    def begin(self) -> None:
        """Discards all samples, and begins a new time to average over."""
        self._looks.clear()
        self._joules_before, self._since = self._counter.joules(), time.perf_counter()

    def look(self, seconds_between: float) -> None:
        """Takes a sample of the GPU, if the last one is at least ``seconds_between`` old."""
        now = time.perf_counter()
        if self._nvml is None or now - self._looked_at < seconds_between:
            return
        self._looked_at = now
        seen: _SystemMetrics = {}
        with contextlib.suppress(Exception):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            seen["memory_usage_megabytes"] = memory.used / _MEGABYTE
            seen["memory_usage_percentage"] = 100 * memory.used / memory.total
        with contextlib.suppress(Exception):
            seen["utilization_percentage"] = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
        self._looks.append(seen)

    def metrics(self) -> _SystemMetrics:
        """The means of the samples since :meth:`begin`."""
        self.look(0.0)
        means = {
            name: sum(look[name] for look in looks) / len(looks)
            for name in dict.fromkeys(name for look in self._looks for name in look)
            if (looks := [look for look in self._looks if name in look])
        }
        seconds, joules = time.perf_counter() - self._since, self._counter.joules()
        if joules is not None and self._joules_before is not None and joules >= self._joules_before:
            means["power_usage_watts"] = watts = (joules - self._joules_before) / max(seconds, 1e-9)
            with contextlib.suppress(Exception):
                limit = self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000
                means["power_usage_percentage"] = 100 * watts / limit
        return {f"gpu_{self._number}_{name}": value for name, value in means.items()} if self._nvml else {}


def _counters() -> _Counters | None:
    """The node's counters; None if the system does not provide them."""
    with contextlib.suppress(Exception):  # as above
        times: Mapping[str, float] = psutil.cpu_times()._asdict()
        # Linux counts the time of guests in user and nice as well.
        parts = {name: seconds for name, seconds in times.items() if not name.startswith("guest")}
        idle = parts.get("idle", 0.0) + parts.get("iowait", 0.0)
        network = psutil.net_io_counters()
        total = sum(parts.values())
        return _Counters(total - idle, total, network.bytes_recv, network.bytes_sent)
    return None
