"""A slot: the TorchTrainer of a worker group that stays up and trains one leg after another.

``TorchTrainer`` starts the workers, and restarts them when one is lost, when a machine is taken back, and, with
``min_workers``, when machines come and go. The workers then resume their leg from its last checkpoint.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.exit_rules import LOST_WORKER_RETRIES, keep_trace
from nfnet_ray.cluster.mailbox import Register, remove_run
from nfnet_ray.cluster.messages.configs import SlotConfig, WorkerConfig
from nfnet_ray.cluster.messages.register_values import CLOSE, FAILED_STARTS, LEG, READY
from nfnet_ray.cluster.worker import work_in_slot

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

MOST_FAILED_STARTS = 10
"""The number of failed starts in a row after which the slot gives up. A machine that is taken back while workers start
costs one start, and the next start finds another machine. If every start fails, as on a machine whose GPUs cannot be
used, more attempts would only cost money."""
SECONDS_TO_FINISH = 15.0
"""How long Ray may take to clean up after workers that have ended."""

# A check of the workers costs Ray Train a message to each of them. A fixed group waits for its machines anyway, but an
# elastic one should not wait long for machines that have left.
_SETTINGS = {
    ray_internals.TRAIN_HEALTH_CHECK_INTERVAL: "1",
    ray_internals.TRAIN_PREEMPTION_POLL_INTERVAL: "2",
}
_ELASTIC_SETTINGS = {ray_internals.TRAIN_GROUP_START_TIMEOUT: "20"}
# The timeout of a collective, as a multiple of the watchdogs' time. It is longer so that a watchdog acts first, whose
# stacks say more than an error of gloo or NCCL. Before the first step a watchdog waits three times as long
# (training/watchdog.py).
_COLLECTIVE_PER_HANG = 4


def torch_trainer(slot: SlotConfig) -> TorchTrainer:
    """The TorchTrainer of a slot. It restarts workers without limit; the workers or Slot give up."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    from nfnet_ray.cluster.group_events import GroupEvents
    from nfnet_ray.training.watchdog import SECONDS_OF_SILENCE

    resources = WorkerResources(**slot["resources"])
    least = resources.min_workers or resources.workers
    is_elastic = least < resources.workers
    for name, value in (_SETTINGS | (_ELASTIC_SETTINGS if is_elastic else {})).items():
        os.environ.setdefault(name, value)  # Ray Train reads them here and hands them to its processes
    each = {"CPU": float(resources.cpus)} | ({"GPU": resources.gpus} if resources.gpus else {})
    # Ray's annotations are of the classes of its V1, which is not elastic.
    configs: Any = train
    scaling: dict[str, Any] = {
        "num_workers": (least, resources.workers) if is_elastic else resources.workers,
        "use_gpu": resources.gpus > 0,
        "resources_per_worker": each,
        "elastic_resize_monitor_interval_s": slot["resize_seconds"],
    }
    callbacks: list[Any] = [GroupEvents(slot)]
    # NCCL refuses two workers on one GPU ("Duplicate GPU detected", ray#48012); gloo copies through the host's memory.
    # A single worker exchanges nothing, and torch 2.15 would start NCCL for it, which looks for networks and takes
    # memory of the GPU; earlier versions start it at the first exchange.
    backend = "gloo" if 0 < resources.gpus < 1 or resources.workers == 1 else None
    timeout_seconds = math.ceil(_COLLECTIVE_PER_HANG * max(slot["hang_seconds"] or 0, SECONDS_OF_SILENCE))
    trainer = TorchTrainer(
        work_in_slot,
        train_loop_config=dict(slot),
        torch_config=TorchConfig(backend=backend, timeout_s=timeout_seconds),
        scaling_config=configs.ScalingConfig(**scaling),
        run_config=configs.RunConfig(
            name="train",
            storage_path=slot["directory"],
            # No limit, because Ray counts failures over the whole run, regardless of progress. The workers count the
            # failures at one checkpoint instead (exit_rules.py).
            failure_config=configs.FailureConfig(max_failures=-1),
            callbacks=callbacks,
        ),
    )
    ray_internals.start_without_helpers(trainer)
    return trainer


class Slot:
    """A worker group that is started now, stays up, and trains the legs that are assigned to it.

    Ray Train restarts workers, but not its own controller, and not after an internal error. This class does both.
    """

    def __init__(self, config: SlotConfig) -> None:
        self.config = config
        self._register = Register(config["run"])
        self._failures, self._was_ready = 0, False
        self._undelivered: WorkerConfig | None = None
        self.runs = [config["run"]]
        """The names of the registers that still exist: that of the slot, and those of its latest legs."""
        self._fit = _Fit(config)

    def is_ready(self) -> bool:
        """Whether the workers are known to be up."""
        with suppress(OSError):  # the cluster's head is away
            return self._register.get(READY) is True
        return False

    def hand(self, leg: WorkerConfig) -> None:
        """Assigns a leg to the workers, which get it as soon as they are up. They must not have another leg."""
        self._undelivered = leg
        self.runs.append(leg["mailbox"])
        self._deliver()
        # The register of the previous leg has to stay: it tells restarted workers that this leg is over.
        while len(self.runs) > 3:
            with suppress(OSError):  # the head of the cluster may be away; nothing else depends on this
                remove_run(self.runs.pop(1))

    def _deliver(self) -> None:
        if self._undelivered is not None:
            with suppress(OSError):  # the cluster's head is away
                self._register.set(LEG, self._undelivered)
                self._undelivered = None

    def keep_up(self) -> str | None:
        """Restarts the controller if it has ended, and then returns the reason why it had.

        Raises WorkersDoNotStart if it has ended too often before its workers were up, or if the workers have failed to
        start too often.
        """
        self._deliver()
        with suppress(OSError):  # the cluster's head is away
            failed = self._register.get(FAILED_STARTS)
            if failed is not None and failed["count"] >= MOST_FAILED_STARTS:
                raise WorkersDoNotStart(
                    f"its workers could not be started {failed['count']} times in a row ({failed['why']})"
                )
        if not self._fit.is_over():
            self._was_ready = self._was_ready or self.is_ready()
            if self._failures and not self._was_ready:
                self._free_places()
            return None
        reason = f"Ray Train's controller ended ({self._fit.error})"
        self._failures, self._was_ready = 1 if self._was_ready else self._failures + 1, False
        if self._failures > LOST_WORKER_RETRIES:
            raise WorkersDoNotStart(reason)
        self._register.unset(READY)
        self._free_places()
        self._fit = _Fit(self.config)
        return reason

    def _free_places(self) -> None:
        """Frees the cores of workers whose controller died, which the head of the cluster may learn only later."""
        import ray

        with suppress(OSError, ray.exceptions.RayError):  # the cluster's head is away; keep_up tries again
            ray_internals.remove_orphaned_placement_groups(ray.get_runtime_context().get_job_id())

    def close(self) -> None:
        """Asks the workers to end."""
        self._register.set(CLOSE, True)

    def join(self, seconds: float) -> None:
        """Waits until everything of the slot has ended, but at most for this time."""
        self._fit.join(seconds)

    def is_over(self) -> bool:
        """Whether the controller has ended, and the thread that waits for it."""
        return self._fit.is_over()

    def abandon(self) -> None:
        """Notes that the controller is being killed, so that no reason and no trace are recorded."""
        self._fit.is_abandoned = True


class WorkersDoNotStart(Exception):
    """The workers do not start, in spite of several attempts, or Ray Train's controller does not stay up."""


def close_all(slots: Sequence[Slot]) -> None:
    """Ends the slots whose workers are up, by letting them return. :func:`none_outlives_ray` ends the others."""
    with suppress(OSError):  # the cluster's head is away
        up = [slot for slot in slots if slot.is_ready()]
        for slot in slots:
            slot.close()
        deadline = time.monotonic() + SECONDS_TO_FINISH
        for slot in up:
            slot.join(max(0.0, deadline - time.monotonic()))
        for run in [run for slot in slots for run in slot.runs]:
            remove_run(run)


@contextmanager
def none_outlives_ray(slots: Sequence[Slot]) -> Generator[None]:
    """A context at whose end the controllers of slots that are still up are killed, also after an exception.

    Their threads wait in ``fit``. If one returned from there after the end of the session, Ray would end this process
    at once, with exit code 1 and without a message (core_worker_process.cc).
    """
    import ray

    try:
        yield
    finally:
        if not all(slot.is_over() for slot in slots):
            for slot in slots:
                slot.abandon()
            with suppress(OSError, ray.exceptions.RayError):  # the cluster's head is away
                ray_internals.end_controllers(ray.get_runtime_context().get_job_id())
            deadline = time.monotonic() + SECONDS_TO_FINISH
            for slot in slots:
                slot.join(max(0.0, deadline - time.monotonic()))


class _Fit:
    """``TorchTrainer.fit`` in a thread, where it does not replace the handler of Ctrl-C."""

    def __init__(self, slot: SlotConfig) -> None:
        self.error = ""
        self.is_abandoned = False
        self._slot = slot
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            torch_trainer(self._slot).fit()
            self.error = "without an error"
        except Exception as error:
            if not self.is_abandoned:
                self.error = keep_trace(self._slot["directory"], error)

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
