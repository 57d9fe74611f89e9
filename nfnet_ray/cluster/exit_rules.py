"""When a training that failed is tried again, and how a worker ends once it has kept a checkpoint.

Runs in a worker. The driver imports this module too, so torch is imported in the functions.
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
"""Attempts after the first at one checkpoint: a lost process or node is not the training's fault."""

# Errors of the program or of the network. Machines, networks and storage raise OSError and RuntimeError.
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
    """Whether an error is the program's or the network's, so that it would recur, and not a machine's.

    Too little memory is the network's fault, whoever says so: torch, CUDA, cuBLAS or cuDNN.
    """
    from nfnet_ray.training.form.probe import is_out_of_memory

    return isinstance(error, _FAULTS) or is_out_of_memory(error)


def will_recur(error: Exception, context: GroupContext) -> bool:
    """Whether to end a training for an error: it is a fault, or this worker raised it at this checkpoint before."""
    if is_fault(error):
        return True
    import torch.distributed as dist

    # When another worker is lost the others fail too, and what they raise are plain RuntimeErrors as well.
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
    """The attempt's number, or None after too many failures at one checkpoint. Collective: every worker calls it.

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
    """Decides what follows a checkpoint that was kept because a worker had to stop. Collective.

    Returns whether the driver has asked for it, so that the leg is over and the group can take another one. Otherwise
    Ray Train starts the group again: the workers that have to leave end their processes here, and the others return.
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
        # To Ray a worker that returns has finished. One that dies on a machine that is taken back is started
        # again elsewhere, which counts as nobody's failure.
        os._exit(0)
    return False


def keep_trace(directory: str, error: Exception) -> str:
    """Writes the stack trace of an error to a file. Returns one line for the table: the error, and where that is."""
    trace = Path(directory) / "error.txt"
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text("".join(traceback.format_exception(error)))
        where = f"trace in {trace}"
    except OSError as why:
        where = f"its trace could not be kept: {in_words(why)}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line} ({where})"
