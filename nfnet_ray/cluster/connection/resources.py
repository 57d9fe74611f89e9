"""Cores and GPUs: what each worker is given, and how many workers fit on a cluster."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.descriptions import accelerators

# Ray counts resources in ten-thousandths (src/ray/common/constants.h, kResourceUnitScaling).
_UNITS = 10_000


@dataclass(frozen=True)
class Resources:
    """The resources of all nodes of a cluster; ``machines`` is (cores, GPUs) of each, ``description`` for people."""

    nodes: int
    cpus: float
    gpus: float
    memory_gib: float
    description: str
    machines: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class WorkerResources:
    """The workers of one trial, and the cores and GPUs of each. It can run with as few as ``min_workers`` of them."""

    workers: int
    cpus: int
    gpus: float
    min_workers: int | None = None

    @property
    def accelerators(self) -> float:
        """The accelerators that all workers hold: their GPUs, where a worker without GPUs counts as one."""
        return accelerators(self.workers, self.gpus)


def worker_resources(
    resources: Resources,
    workers: int,
    cpus: int | None = None,
    gpus: float | None = None,
    min_workers: int | None = None,
) -> WorkerResources:
    """The resources of each worker of a trial: as requested, else a GPU if there are any, and a share of the cores."""
    if gpus is None:
        gpus = _gpu_for_each(resources, min_workers or workers)
    check_gpu_share(gpus)
    if cpus is None:
        slots = sum(workers_on_gpus(there, gpus) for _, there in resources.machines) if gpus else 0
        cpus = most_cpus(resources, slots, gpus) if slots else 1
    return WorkerResources(workers, cpus, gpus, min_workers)


def training_resources(
    resources: Resources,
    workers: int,
    min_workers: int | None,
    cpus: int | None = None,
    gpus: float | None = None,
) -> WorkerResources:
    """The resources of each worker of a training with the cluster to itself: as requested, else a GPU and all cores."""
    if gpus is None:
        gpus = _gpu_for_each(resources, min_workers or workers)
    check_gpu_share(gpus)
    if cpus is None:
        cpus = most_cpus(resources, workers, gpus)
    return WorkerResources(workers, cpus, gpus, min_workers)


def _gpu_for_each(resources: Resources, least: int) -> float:
    """One GPU for each of ``least`` workers, and none on a cluster that has none.

    Raises UserError if it has too few: to train on its cores would take weeks, and is not what anybody expects.
    """
    if 0 < resources.gpus < least:
        raise UserError(
            f"{least} workers would need {least} GPUs, and Ray has {resources.description}: ask for fewer workers, or "
            "say with --gpus-per-worker what each of them gets: a part of a GPU, or 0"
        )
    return 1.0 if resources.gpus else 0.0


def most_cpus(resources: Resources, workers: int, gpus: float) -> int:
    """The most cores that each worker can have without reducing the number of workers that fit; at least 1.

    Counted machine by machine: the cores of a head that has no GPU are of no use to a worker that needs one. Workers
    with GPUs are not spread over more machines for the sake of cores: gradients would go over the network, and not from
    GPU to GPU.
    """
    placed = min(workers, workers_that_fit(resources, 1, gpus))
    least = _machines_taken(resources, placed, 1, gpus)
    most = int(max((cpus for cpus, _ in resources.machines), default=1))
    return max(
        (
            cpus
            for cpus in range(1, most + 1)
            if workers_that_fit(resources, cpus, gpus) >= placed
            and (not gpus or _machines_taken(resources, placed, cpus, gpus) <= least)
        ),
        default=1,
    )


def _machines_taken(resources: Resources, workers: int, cpus: int, gpus: float) -> int:
    """The least number of machines on which this number of workers fits."""
    taken = 0
    for fitting in sorted(
        (workers_that_fit_on([one], cpus, gpus) for one in resources.machines), reverse=True
    ):
        if workers <= 0:
            break
        workers, taken = workers - fitting, taken + 1
    return taken


def workers_that_fit(resources: Resources, cpus: int, gpus: float) -> int:
    """How many workers fit on the machines."""
    return workers_that_fit_on(resources.machines, cpus, gpus)


def workers_that_fit_on(machines: Iterable[tuple[float, float]], cpus: int, gpus: float) -> int:
    """How many workers fit on machines of (cores, GPUs)."""
    return sum(
        int(min(machine_cpus // cpus, workers_on_gpus(machine_gpus, gpus) if gpus else math.inf))
        for machine_cpus, machine_gpus in machines
    )


def workers_on_gpus(there: float, gpus: float) -> int:
    """How many workers with ``gpus`` each fit on that many GPUs. A share of a GPU is never spread over two of them."""
    if gpus >= 1:
        return int(there // gpus)
    return int(there) * workers_on_a_gpu(gpus)


def workers_on_a_gpu(gpus: float) -> int:
    """How many workers share one GPU: 4 at a quarter each, 3 at 0.3 or a third, 1 at one or more."""
    # 1 // 0.1 is 9: Ray counts in ten-thousandths, and so do we.
    return max(1, _UNITS // round(gpus * _UNITS)) if 0 < gpus < 1 else 1


def check_gpu_share(gpus: float) -> None:
    """Raises UserError for a number of GPUs that a worker cannot use, or that Ray cannot give it."""
    if gpus > 1:
        raise UserError(
            f"--gpus-per-worker {gpus:g}: a worker computes on one GPU; give 1 or a part of one, and for more GPUs ask "
            "for more workers"
        )
    if 0 < gpus < 1 / _UNITS:
        raise UserError(
            f"--gpus-per-worker {gpus:g} is too small a part of a GPU; Ray gives {1 / _UNITS:g} at least"
        )


def check_workers_fit(resources: Resources, worker: WorkerResources, flag: str = "--workers") -> None:
    """Raises UserError if not even the fewest workers that are allowed fit on the machines that are up.

    ``flag`` is the command line's flag for their number.
    """
    least = worker.min_workers or worker.workers
    if workers_that_fit(resources, worker.cpus, worker.gpus) < least:
        raise UserError(
            f"{least} x {worker_in_words(worker)} do not fit: Ray has {resources.description}; ask for fewer with "
            f"{flag}, --cpus-per-worker or --gpus-per-worker"
        )


def concurrent_trials(resources: Resources, worker: WorkerResources) -> int:
    """How many trials fit at once on the nodes that are up, with all workers. Raises UserError if none does with the
    fewest.
    """
    fitting, least = (
        workers_that_fit(resources, worker.cpus, worker.gpus),
        worker.min_workers or worker.workers,
    )
    if fitting < least:
        raise UserError(
            f"a trial needs {least} x {worker_in_words(worker)} and Ray has {resources.description}: ask for "
            "fewer with --workers-per-trial, --cpus-per-worker or --gpus-per-worker; on an autoscaling cluster, say "
            "with --trials-at-once how many trials to request"
        )
    return max(1, fitting // worker.workers)


def worker_in_words(worker: WorkerResources) -> str:
    """The resources of a worker for a person: ``(2 CPU + 1 GPU)``."""
    return f"({worker.cpus} CPU" + (f" + {worker.gpus:g} GPU)" if worker.gpus else ")")
