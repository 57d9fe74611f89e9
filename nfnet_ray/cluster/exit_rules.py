"""Decides when a failed training is tried again, and how a worker ends after saving a checkpoint.

The code runs in a worker. The driver imports this module too, so torch is imported in the functions.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.contexts import GroupContext
from nfnet_ray.cluster.messages.notes import AttemptStarted, CheckpointKept, FinalReport, StopReason
from nfnet_ray.cluster.messages.register_values import (
    ATTEMPTS,
    YIELD,
    AttemptCount,
    ErrorSeen,
    Name,
    last_error_of,
)
from nfnet_ray.places import in_words

LOST_WORKER_RETRIES = 3
"""The number of further attempts at the same checkpoint, since a lost process or node is not the training's fault."""

# Errors of the program or of the trained network. Machines, connections and storage raise OSError and RuntimeError.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)
_SIGNS_OF_MACHINES = ("onnection", "gloo", "NCCL", "CUDA", "cuDNN", "timed out", "imeout")


def is_fault(error: Exception) -> bool:
    """Whether an error comes from the program or the trained network, and not from a machine, so that it would recur.

    Too little memory counts as the network's fault, whether torch, CUDA, cuBLAS or cuDNN reports it.
    """
    from nfnet_ray.training.form.probe import is_out_of_memory

    return isinstance(error, _FAULTS) or is_out_of_memory(error)


def will_recur(error: Exception, context: GroupContext) -> bool:
    """Whether to end a training for an error, because it is a fault or has occurred at this checkpoint before."""
    if is_fault(error):
        return True
    import torch.distributed as dist

    # When a worker is lost the others fail too, and raise plain RuntimeErrors as well.
    of_machines = isinstance(error, OSError | EOFError | dist.DistError)
    if of_machines or any(sign in str(error) for sign in _SIGNS_OF_MACHINES):
        return False
    name: Name[ErrorSeen] = last_error_of(context.rank)
    count = context.register.get(ATTEMPTS)
    # The attempt was counted when it began.
    assert count is not None
    seen = ErrorSeen(step=count["step"], error=f"{type(error).__name__}: {error}")
    before = context.register.get(name)
    context.register.set(name, seen)
    return before == seen


def count_attempt(context: GroupContext, legs_before: int) -> int | None:
    """The number of this attempt; None after too many failures at one checkpoint. Collective: every worker calls it.

    ``legs_before`` is the number of legs that this process has trained before.
    """
    from nfnet_ray.training.collectives import first_workers

    attempt = None
    if context.rank == 0:
        newest = next(iter(context.store.entries()), None)
        step = newest.step if newest else 0
        before = context.register.get(ATTEMPTS) or AttemptCount(attempt=0, step=-1, count=0)
        count = before["count"] + 1 if before["step"] == step else 1
        attempt = before["attempt"] + 1
        context.register.set(ATTEMPTS, AttemptCount(attempt=attempt, step=step, count=count))
        context.mailbox.post(AttemptStarted(attempt, context.world_size, step, legs_before))
        if count > 1 + LOST_WORKER_RETRIES:
            attempt = None
    agreed: int | None = first_workers(attempt, context)
    return agreed


def exit_after_checkpoint(context: GroupContext, report: FinalReport) -> bool:
    """Decides what to do after a checkpoint that was saved because a worker had to stop. Collective.

    Returns True if the driver has asked for the stop: the leg is over, and the group can train another one. Otherwise
    Ray Train restarts the group. Workers that have to leave end their processes here, and the others return False.
    """
    from nfnet_ray.training.collectives import all_of, first_workers

    reason = context.stop_reason()
    known = all_of((reason, ray_internals.preempted_ranks()), context)
    reasons: list[StopReason] = [found for found, _ in known if found]
    preempted = {rank for _, ranks in known for rank in ranks}
    if "terminated" in reasons and first_workers(context.rank == 0 and context.is_asked_soon(), context):
        reasons = ["asked"]
    if "asked" in reasons:
        if context.rank == 0:
            context.report_end(report)
        return True
    if context.rank == 0:
        context.mailbox.post(CheckpointKept(reasons[0]))
        context.register.unset(YIELD)
    if reason == "terminated" or context.rank in preempted:
        # Ray considers a worker that returns as finished. A worker that dies on a machine that is taken back is
        # restarted elsewhere, and this does not count as a failure.
        os._exit(0)
    return False


def keep_trace(directory: str, error: Exception) -> str:
    """Writes the stack trace of an error to a file. Returns a line for the table with the error and that file."""
    trace = Path(directory) / "error.txt"
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text("".join(traceback.format_exception(error)))
        where = f"trace in {trace}"
    except OSError as why:
        where = f"its trace could not be kept: {in_words(why)}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line} ({where})"
