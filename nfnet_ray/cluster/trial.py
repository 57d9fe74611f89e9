"""A trial of one worker: the function that Ray Tune calls in an actor, which stays up for the next trial."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from ray import tune

from nfnet_ray.cluster.connection.gpu_driver import gpu_problem
from nfnet_ray.cluster.exit_rules import is_fault, keep_trace
from nfnet_ray.cluster.mailbox import Register, remove_run
from nfnet_ray.cluster.messages.configs import WorkerConfig, lanes_of
from nfnet_ray.cluster.messages.notes import FinalReport
from nfnet_ray.cluster.messages.register_values import STOP
from nfnet_ray.cluster.messages.tune_reports import of_lane, said_result
from nfnet_ray.cluster.worker import Memory, forget_graphs, train_alone, train_cohort_alone
from nfnet_ray.places import lost_place

T = TypeVar("T")

_memory = Memory(forget_graphs)
"""The memory of this process, over all trials that it trains."""


class _TrainingThread:
    """A thread in which all trials of this process are trained. Tune calls the function of each trial in a new thread.

    The algorithms that cuDNN has chosen for convolutions belong to the thread that ran the forward pass. In a new
    thread it would try all algorithms again, for each shape that is trained or evaluated (torch's Conv_v8.cpp).
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def result_of(self, act: Callable[[], T]) -> T:
        """Calls ``act`` there, and returns its result or raises its exception (SystemExit ends a trial of Tune)."""
        with self._lock:
            if self._thread is None:  # a daemon, like Tune's threads, so that the process can end
                self._thread = threading.Thread(target=self._run, name="training", daemon=True)
                self._thread.start()
        result: Future[T] = Future()
        self._asked.put((result, act))
        return result.result()

    def _run(self) -> None:
        while True:
            result, act = self._asked.get()
            try:
                result.set_result(act())
            except BaseException as error:
                result.set_exception(error)
            del result, act  # otherwise this thread would keep the last trial in memory


_training_thread = _TrainingThread()


def run_in_actor(space: dict[str, Any]) -> None:
    """Trains a trial of one worker, or several trials as one program. Tune calls it with a :func:`tune_space`."""
    started_at = time.perf_counter()
    configs = lanes_of(space)
    if _starts_too_late(configs):
        return
    if _memory.has_grown:
        os._exit(0)  # to Tune the trial has lost its worker, so it starts another one
    try:
        if len(configs) == 1:
            reports = [_training_thread.result_of(lambda: train_alone(configs[0], started_at))]
        else:
            reports = _training_thread.result_of(lambda: train_cohort_alone(configs, started_at))
    except Exception as error:
        import torch

        # Otherwise every trial would fail on this node, each freeing the place for the next one at once.
        bad_gpus = _bad_gpus(configs[0])
        stops_study = bad_gpus is not None or lost_place(error) is not None
        reports = [
            FinalReport("failed", bad_gpus or keep_trace(config["directory"], error), stops_study=stops_study)
            for config in configs
        ]
        if torch.cuda.is_initialized() and not is_fault(error):
            raise  # the process may be broken, and the next trial must not get it
    finally:
        with suppress(Exception):  # the cluster's head may be away, and nothing else depends on it
            for config in configs:
                remove_run(config["mailbox"])
    growth = _memory.growth("its process")
    if growth:
        tune.report(said_result(f"{growth}: a new one trains the next trial"))
    _report(configs, reports)


def _bad_gpus(config: WorkerConfig) -> str | None:
    """Why torch cannot use the GPUs of this node, which may have joined after the check, and what to do."""
    import ray.util
    import torch

    if not config["resources"]["gpus"] or torch.cuda.is_initialized():
        return None
    problem = gpu_problem(of_all=False)
    if problem is None:
        return None
    node = f"node {ray.util.get_node_ip_address()}"
    return (
        f"{node}: torch cannot use its GPUs: {problem}; put that right, or take the node out of the cluster"
    )


def _starts_too_late(configs: Sequence[WorkerConfig]) -> bool:
    """Whether the study is being stopped. Tune then starts waiting trials in the places of those that have stopped."""
    if not Register(configs[0]["mailbox"]).get(STOP):
        return False
    _report(configs, [FinalReport("stopped")] * len(configs))
    return True


def _report(configs: Sequence[WorkerConfig], reports: Sequence[FinalReport]) -> None:
    for config, report in zip(configs, reports, strict=True):
        tune.report(of_lane(config["name"] if len(configs) > 1 else None, report.to_result()))
