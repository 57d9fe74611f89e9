"""Explains why workers wait for resources: what they request, what the nodes have, and what of it is free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.resources import WorkerResources, worker_in_words, workers_that_fit_on
from nfnet_ray.wording import agree, count

SECONDS_BETWEEN_CHECKS = 2.0
SECONDS_BEFORE_EXPLAINING = 10.0
"""Far longer than Ray takes to start a worker for which there is room."""
SECONDS_BETWEEN_EXPLANATIONS = 300.0
"""An autoscaler takes minutes to start a node."""

Machines = Sequence[tuple[float, float]]
"""(cores, GPUs) of each node."""


@contextmanager
def waiting_is_explained(
    wanted: Callable[[], int],
    worker: WorkerResources,
    say: Callable[[str], None],
    mark_cut_off: Callable[[str], None],
) -> Generator[None]:
    """While this lasts, says why when fewer than ``wanted()`` workers have a place and the others do not fit.

    Calls ``mark_cut_off`` with a reason if no node is up any more, not even that of this driver, which is then cut off
    from Ray: it would wait for ever. A local Ray ends so when it has not run for half a minute, on a machine that slept
    or was overloaded.

    Needs a :func:`nfnet_ray.cluster.connection.session.ray_session`.
    """
    over = threading.Event()

    def watch() -> None:
        since, explained_at = time.monotonic(), float("-inf")
        had_node_at = time.monotonic()
        while not over.wait(SECONDS_BETWEEN_CHECKS):
            try:
                machines, free, placed = _nodes(worker)
            except Exception:  # the head does not answer: others report that, or it will be back
                had_node_at = time.monotonic()
                continue
            now = time.monotonic()
            if not machines:
                if now - had_node_at > SECONDS_BEFORE_EXPLAINING:
                    mark_cut_off("no node of Ray is up any more; look into Ray's logs")
                    return
                continue
            had_node_at = now
            reason = lack_of_room(wanted() - placed, worker, machines, free)
            if reason is None:
                since = now
            elif (
                now - since > SECONDS_BEFORE_EXPLAINING and now - explained_at > SECONDS_BETWEEN_EXPLANATIONS
            ):
                explained_at = now
                say(reason)

    thread = threading.Thread(target=watch, name="placement", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(SECONDS_BETWEEN_CHECKS)


def lack_of_room(missing: int, worker: WorkerResources, machines: Machines, free: Machines) -> str | None:
    """Why ``missing`` workers cannot start, in one line; None if they can, or will in a moment."""
    if missing <= workers_that_fit_on(free, worker.cpus, worker.gpus):
        return None
    each, least = worker_in_words(worker), worker.min_workers or worker.workers
    fitting = workers_that_fit_on(machines, worker.cpus, worker.gpus)
    if fitting >= least:
        why = "it starts when others leave room, or when an autoscaler adds nodes"
    else:
        why = (
            "no node that is up is that large"
            if fitting == 0
            else f"the nodes that are up take {fitting} of them"
        )
        why += ": ask for less (--cpus-per-worker, --gpus-per-worker), or wait if an autoscaler adds nodes"
    waiting = "a worker that asks" if missing == 1 else f"{missing} workers that ask"
    return (
        f"Waiting for room: {waiting} for {each} {agree(missing, 'has', 'have')} no place. Ray has "
        f"{_in_words(machines)} on {count(len(machines), 'node')}, of which "
        f"{_in_words(free)} are free; {why}."
    )


def _in_words(machines: Machines) -> str:
    cpus, gpus = (sum(machine[kind] for machine in machines) for kind in (0, 1))
    return f"{cpus:g} CPU" + (f" + {gpus:g} GPU" if any(machine[1] for machine in machines) else "")


def _nodes(worker: WorkerResources) -> tuple[Machines, Machines, int]:
    """All resources of the nodes, those that are free, and how many workers of this driver have been placed."""
    import ray

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    free = ray_internals.free_resources()
    bundles = ray_internals.placed_bundles(ray.get_runtime_context().get_job_id())
    placed = sum(bundle.get("CPU", 0) == worker.cpus for bundle in bundles)
    return _machines(nodes), _machines({node: free.get(node, {}) for node in nodes}), placed


def _machines(resources: dict[str, dict[str, float]]) -> Machines:
    return [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in resources.values()]
