"""What Ray Train's controller tells of a worker group, put into the mailbox of the run.

Runs in the controller's process. Ray's public callback hears of reports and exceptions alone, so this is one of its
developer interface; ``RunConfig(callbacks=...)`` takes both.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from nfnet_ray.cluster.mailbox import Mailbox
from nfnet_ray.cluster.worker import LAST_LOSS, YIELD, hear_sigterm

SECONDS_TO_YIELD = 120.0  # for a step, and for a checkpoint to be written

logger = logging.getLogger(__name__)


class GroupEvents(ControllerCallback, WorkerGroupCallback):
    """Notes that a group has started or has lost workers; lets it keep a checkpoint before it is resized."""

    def __init__(self, mailbox: str) -> None:
        self._name = mailbox
        self._size: int | None = None

    @property
    def _mailbox(self) -> Mailbox:
        return Mailbox(self._name)

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._size = len(worker_group)
        worker_group.execute(hear_sigterm)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if worker_group_status.errors and self._size is not None:
            self._size = None
            preempted = worker_group_status.get_preemption_info() is not None
            error = _last_line(next(iter(worker_group_status.errors.values())))
            self._mailbox.set(LAST_LOSS, error)
            self._mailbox.post(
                "lost",
                ranks=sorted(worker_group_status.errors),
                preempted=preempted or worker_group_status.has_preempted_worker(),
                error=error,
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


def _last_line(error: BaseException) -> str:
    """What a person can use of an error: its own last line, not the traces of Ray around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
