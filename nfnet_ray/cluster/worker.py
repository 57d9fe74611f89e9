"""What runs in a worker: a training, alone or as one of a group, up to its final report.

The driver imports this module too, so torch is imported in the functions.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nfnet_ray.cluster.contexts import GroupContext, TuneContext
from nfnet_ray.cluster.exit_rules import (
    LOST_WORKER_RETRIES,
    count_attempt,
    exit_after_checkpoint,
    keep_trace,
    will_recur,
)
from nfnet_ray.cluster.messages import FAULT, LAST_LOSS, FinalReport, WorkerConfig, WorkerHung
from nfnet_ray.errors import StopsStudyError, UserError
from nfnet_ray.recipe import Recipe

if TYPE_CHECKING:
    from nfnet_ray.training.measurement.clock import Clock
    from nfnet_ray.training.watchdog import Hang


def train_alone(config: WorkerConfig, started_at: float) -> FinalReport:
    """Trains in a Tune trial of one worker. ``started_at`` is the trial's start by ``time.perf_counter``."""
    from nfnet_ray.training.checkpoints.storage import storage_at
    from nfnet_ray.training.measurement.clock import Clock
    from nfnet_ray.training.watchdog import SECONDS_OF_SILENCE, Watchdog

    def keep(hang: Hang) -> None:
        stacks = hang.stacks.encode()
        storage_at(stacks_place(config)).write("rank-0.txt", lambda file: file.write(stacks))

    clock, context = Clock(started_at), TuneContext(config)
    hang_seconds = config["hang_seconds"] or SECONDS_OF_SILENCE
    # After a hang the process ends, and Tune starts the trial again.
    with context.listening(), Watchdog(clock, hang_seconds, keep):
        return _train(config, context, clock)


def train_in_group(plain: dict[str, Any]) -> None:
    """What each worker of a TorchTrainer runs. When it raises, Ray Train starts all workers again."""
    started_at = time.perf_counter()
    config = cast(WorkerConfig, plain)
    from nfnet_ray.training.collectives import first_workers
    from nfnet_ray.training.measurement.clock import Clock
    from nfnet_ray.training.watchdog import SECONDS_OF_SILENCE, Watchdog

    clock, context = Clock(started_at), GroupContext(config)

    attempt = count_attempt(context)
    # Of the attempt before: the same error would be raised again.
    known_fault = context.register.get(FAULT)
    fault = first_workers(known_fault, context)
    if fault is not None:
        context.report_end(FinalReport("failed", fault))
        return
    if attempt is None:
        last_loss = context.register.get(LAST_LOSS)
        why = last_loss or "for an unknown reason"
        reason = f"its workers died {1 + LOST_WORKER_RETRIES} times at the same checkpoint ({why})"
        context.report_end(FinalReport("failed", reason))
        return

    def report_hang(hang: Hang) -> None:
        _keep_stacks(hang, config, context, attempt)

    hang_seconds = config["hang_seconds"] or SECONDS_OF_SILENCE
    with context.listening(), Watchdog(clock, hang_seconds, report_hang):
        try:
            report = _train(config, context, clock)
        except Exception as error:
            if not will_recur(error, context):
                raise
            reason = keep_trace(config, error)
            if context.through_tune:
                # All workers have to report to Tune together, which they do when they are started again.
                context.register.set(FAULT, reason)
                raise
            context.mailbox.post(FinalReport("failed", reason))
            return
        if report.outcome != "stopped":
            context.report_end(report)
            return
    exit_after_checkpoint(context, report)


def _train(config: WorkerConfig, context: TuneContext | GroupContext, clock: Clock) -> FinalReport:
    recipe = Recipe.from_values(config["recipe"])
    if recipe.compile:
        keep_compiled()
    from nfnet_ray.training import train

    try:
        outcome = train(
            recipe,
            context,
            clock,
            until_epoch=config["until_epoch"],
            data_fingerprint=config["data_fingerprint"],
            force_resume=config["force"],
        )
    except UserError as error:  # the same on every worker
        stops_study = isinstance(error, StopsStudyError)
        return FinalReport("failed", str(error), stops_study=stops_study, refused=True)
    return FinalReport(outcome.state, outcome.reason, outcome.epochs)


def keep_compiled() -> None:
    """Has torch.compile keep its results where they survive this process, and a restart of the machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "nfnet_ray" / "inductor"))


def _keep_stacks(hang: Hang, config: WorkerConfig, context: GroupContext, attempt: int) -> None:
    """Tells the driver that this worker hangs, and puts its stacks where a person can find them."""
    from nfnet_ray.training.checkpoints.storage import storage_at

    place, name = stacks_place(config), f"attempt-{attempt}-rank-{context.rank}.txt"
    context.mailbox.post(
        WorkerHung(
            rank=context.rank,
            workers=context.world_size,
            phase=hang.phase,
            heartbeats=hang.heartbeats,
            waits_for_others=hang.waits_for_others,
            silent_seconds=hang.silent_seconds,
            stacks=place,
        )
    )
    storage_at(place).write(name, lambda file: file.write(hang.stacks.encode()))


def stacks_place(config: WorkerConfig) -> str:
    """The folder or URI for the stacks of workers that hang: next to the checkpoints."""
    place = config["checkpoints"]
    folder, mark, options = place.partition("?") if "://" in place else (place, "", "")
    return f"{folder.rstrip('/').removesuffix('/checkpoints')}/stacks{mark}{options}"
