"""What Ray Train's controller tells of a worker group, put into the mailbox of the run.

Runs in the controller's process. Ray's public callback hears of reports and exceptions alone, so this is one of its
developer interface; ``RunConfig(callbacks=...)`` takes both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from nfnet_ray.cluster.mailbox import Mailbox
from nfnet_ray.cluster.worker import LAST_LOSS, YIELD, hear_sigterm

SECONDS_TO_YIELD = 120.0  # for a step, and for a checkpoint to be written


class GroupEvents(ControllerCallback, WorkerGroupCallback):
    """Notes that a group has started or has lost workers; lets it keep a checkpoint before it is resized."""

    def __init__(self, mailbox: str, training: str) -> None:
        self._name, self._training = mailbox, training
        self._size: int | None = None

    @property
    def _mailbox(self) -> Mailbox:
        return Mailbox(self._name)

    def after_controller_start(self, train_run_context: Any) -> None:
        """Withdraws what a controller of the same training that was killed had asked machines for.

        Elastic workers are started on machines that Ray has reserved for them, and what a dead controller reserved
        expires only after three minutes.
        """
        of_training, request = Mailbox(self._training), f"train-{train_run_context.run_id}"
        before = of_training.get("request")
        of_training.set("request", request)
        if before:
            with contextlib.suppress(
                ValueError, ray.exceptions.RayError
            ):  # no such actor: nothing is reserved
                coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
                ray.get(coordinator.cancel_request.remote(requester_id=before), timeout=10)

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._size = len(worker_group)
        worker_group.execute(hear_sigterm)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if worker_group_status.errors and self._size is not None:
            self._size = None
            preempted = worker_group_status.get_preemption_info() is not None
            dead = sorted(
                rank
                for rank, error in worker_group_status.errors.items()
                if isinstance(error, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError)
            )
            reason = _reason(dead, worker_group_status.errors)
            self._mailbox.set(LAST_LOSS, reason)
            self._mailbox.post(
                "lost",
                reason=reason,
                preempted=preempted or worker_group_status.has_preempted_worker(),
            )

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Called when workers are started, too; only a group that runs has something to keep."""
        if self._size is None:
            return
        self._mailbox.post("resizing", before=self._size, after=resize_decision.num_workers)
        self._mailbox.set(YIELD, True)
        deadline = time.monotonic() + SECONDS_TO_YIELD
        while self._mailbox.get(YIELD) and time.monotonic() < deadline:
            time.sleep(0.2)
        self._mailbox.unset(YIELD)

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        del worker_group
        self._size = None


def _reason(dead: list[int], errors: Mapping[int, Exception]) -> str:
    """Who died or failed. When one dies the others fail, for want of it, and Ray may hear of them first."""
    if dead:
        return f"rank {' and '.join(map(str, dead))} died"
    rank, error = next(iter(errors.items()))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    if "onnection" in str(error):  # of gloo and of NCCL: refused, reset, closed by peer
        return f"rank {rank} lost its connection to another one"
    return f"rank {rank} failed ({last})"
