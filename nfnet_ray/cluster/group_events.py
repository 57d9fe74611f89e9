"""Reports events of a worker group, which Ray Train's controller sees, to the driver.

The code runs in the process of the controller.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.ray_internals import ControllerCallback, WorkerGroupCallback
from nfnet_ray.cluster.contexts import stop_on_sigterm
from nfnet_ray.cluster.mailbox import Mailbox, Register
from nfnet_ray.cluster.messages.configs import SlotConfig
from nfnet_ray.cluster.messages.notes import GroupResizing, WorkersLost
from nfnet_ray.cluster.messages.register_values import (
    ENDED,
    FAILED_STARTS,
    LAST_LOSS,
    LEG,
    READY,
    RESERVATION,
    RESTARTS,
    YIELD,
    FailedStarts,
)

SECONDS_TO_YIELD = 120.0
"""How long a group may take to finish its step and write a checkpoint."""
SECONDS_BETWEEN_READS = 0.2


class GroupEvents(ControllerCallback, WorkerGroupCallback):
    """Tells the driver that a group has lost workers, and lets the group save a checkpoint before it is resized.

    Between two legs nothing is reported. A later controller of the slot uses the same directory.
    """

    def __init__(self, slot: SlotConfig) -> None:
        # Names, and not the objects: the callback is pickled into the controller.
        self._slot, self._directory = slot["run"], slot["directory"]
        self._size: int | None = None

    def _running_leg(self) -> str | None:
        """The name of the mailbox and the register of the current leg; None between legs."""
        leg = Register(self._slot).get(LEG)
        if leg is None or Register(leg["mailbox"]).get(ENDED):
            return None
        return leg["mailbox"]

    def after_controller_start(self, train_run_context: Any) -> None:
        """Releases the machines that an earlier controller of the slot, which was killed, has reserved.

        Elastic workers are started on machines that Ray has reserved for them, and the reservation of a dead
        controller expires only after three minutes.
        """
        ray_internals.start_no_barrier()  # with the workers, later
        of_slot = Register(self._directory)
        before = of_slot.get(RESERVATION)
        of_slot.set(RESERVATION, ray_internals.reservation_name(train_run_context.run_id))
        if before:
            ray_internals.cancel_reservation(before)

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._size = len(worker_group)
        Register(self._slot).unset(RESTARTS)
        worker_group.execute(stop_on_sigterm)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if not worker_group_status.errors or self._size is None:
            return
        self._size = None
        leg = self._running_leg()
        if leg is None or Register(self._slot).get(RESTARTS):
            return
        preempted = worker_group_status.get_preemption_info() is not None
        reason = _reason(worker_group_status.errors)
        Register(leg).set(LAST_LOSS, reason)
        Mailbox(leg).post(WorkersLost(reason, preempted or worker_group_status.has_preempted_worker()))

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Notes that the workers could not be started, and frees their places. Ray Train then tries again."""
        del previous_state
        import ray

        error = getattr(current_state, "training_failed_error", None)
        failure = getattr(error, "controller_failure", None)
        cause = getattr(failure, "__cause__", None)
        # If a worker did not come up, that is the cause of an error of Ray Train. If a worker dies while it joins the
        # others, or cannot join them, that is the error itself. A start that waits for room is neither.
        seen = (cause, failure)
        has_died = any(isinstance(one, ray.exceptions.RayActorError) for one in seen)
        refused = next((one for one in seen if isinstance(one, ray.exceptions.RayTaskError)), None)
        if not has_died and refused is None:
            return
        self._size = None
        why = "a worker died" if has_died else last_line(refused)
        slot = Register(self._slot)
        with suppress(OSError, ray.exceptions.RayError):  # the cluster's head is away
            if isinstance(cause, ray.exceptions.RayActorError):
                ray_internals.remove_placement_groups_of_this_actor()
            before = slot.get(FAILED_STARTS) or FailedStarts(count=0, why="")
            slot.set(FAILED_STARTS, FailedStarts(count=before["count"] + 1, why=why))
        leg = self._running_leg()
        if leg is not None and not slot.get(RESTARTS):
            said = f"{why} while the workers started" if has_died else f"the workers could not start ({why})"
            Mailbox(leg).post(WorkersLost(said, preempted=False))

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Lets a group that trains save a checkpoint. Ray also calls this when workers are started."""
        leg = self._running_leg()
        if self._size is None or leg is None:
            return
        register = Register(leg)
        Mailbox(leg).post(GroupResizing(self._size, resize_decision.num_workers))
        register.set(YIELD, True)
        deadline = time.monotonic() + SECONDS_TO_YIELD
        while register.get(YIELD) and not register.get(ENDED) and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_READS)
        register.unset(YIELD)

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        del worker_group
        self._size = None
        Register(self._slot).unset(READY)


def _reason(errors: Mapping[int, Exception]) -> str:
    """Which worker died or failed. When one dies, the others fail because of it, and Ray may notice these first."""
    dead = sorted(rank for rank, error in errors.items() if ray_internals.is_death(error))
    if dead:
        return f"rank {' and '.join(map(str, dead))} died"
    rank, error = next(iter(errors.items()))
    last = last_line(error)
    if "onnection" in str(error):  # errors of gloo and NCCL: refused, reset, closed by peer
        return f"rank {rank} lost its connection to another one"
    return f"rank {rank} failed ({last})"


def last_line(error: object) -> str:
    """The last line of an error, which is the error itself if the text is a stack trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
