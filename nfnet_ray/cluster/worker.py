"""The code of a worker: it trains a leg alone, up to its final report, or leg after leg as one of a group.

The driver imports this module too, so torch is imported in the functions.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nfnet_ray.cluster.contexts import GroupContext, TuneContext, must_leave
from nfnet_ray.cluster.exit_rules import (
    LOST_WORKER_RETRIES,
    count_attempt,
    exit_after_checkpoint,
    keep_trace,
    will_recur,
)
from nfnet_ray.cluster.mailbox import Register
from nfnet_ray.cluster.messages.configs import SlotConfig, WorkerConfig, beside_checkpoints
from nfnet_ray.cluster.messages.notes import FinalReport, WorkerHung, WorkersReplaced
from nfnet_ray.cluster.messages.register_values import (
    CLOSE,
    ENDED,
    FAILED_STARTS,
    LAST_LOSS,
    LEG,
    READY,
    RESTARTS,
)
from nfnet_ray.cluster.messages.tune_reports import said_result
from nfnet_ray.errors import StopsStudyError, UserError
from nfnet_ray.models.own.source import COPIES_FOLDER, use_copies_in
from nfnet_ray.recipe import Recipe

if TYPE_CHECKING:
    from nfnet_ray.training.form.kept import KeptGraphs
    from nfnet_ray.training.measurement.clock import Clock
    from nfnet_ray.training.run import Spent
    from nfnet_ray.training.watchdog import Hang, Watchdog


SECONDS_BETWEEN_LOOKS = 0.1
"""The time between two looks for the next leg, each of which takes about a millisecond of the cluster's head."""

# A process is replaced if its memory has grown by this number of bytes since its first leg, and to this multiple. After
# legs of different networks some hundred megabytes remain, and new processes cost seconds.
LEAST_GROWTH_BYTES = 2**30
LEAST_GROWTH = 2.0

logger = logging.getLogger(__name__)


def train_alone(config: WorkerConfig, started_at: float) -> FinalReport:
    """Trains a leg in a Tune trial of one worker. ``started_at`` is the start of the trial by ``time.perf_counter``."""
    _import_training()
    from nfnet_ray.training.measurement.clock import Clock

    clock, context = Clock(started_at), TuneContext(config, kept_graphs=_kept_graphs())
    with context.listening(), _watchdog(clock, config):
        report = _train(config, context, clock)
    _leave_if_preempted([report.outcome], [context])
    return report


def train_cohort_alone(configs: Sequence[WorkerConfig], started_at: float) -> list[FinalReport]:
    """Trains legs as one program, and returns a report for each."""
    _import_training()
    from ray import tune

    from nfnet_ray.training.cohort import train_cohort
    from nfnet_ray.training.measurement.clock import Clock

    forget_graphs()
    first = configs[0]
    clock, contexts = Clock(started_at), [TuneContext(config, config["name"]) for config in configs]
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context.listening())
        stack.enter_context(_watchdog(clock, first))
        try:
            outcomes = train_cohort(
                [Recipe.from_values(config["recipe"]) for config in configs],
                contexts,
                clock,
                until_epoch=first["until_epoch"],
                spent=list(map(_spent, configs)),
                data_fingerprint=first["data_fingerprint"],
                force_resume=first["force"],
                say=lambda text: tune.report(said_result(text)),
            )
        except UserError as error:
            return [_refusal(error)] * len(configs)
    _leave_if_preempted([outcome.state for outcome in outcomes], contexts)
    return [FinalReport(outcome.state, outcome.reason, outcome.epochs) for outcome in outcomes]


@functools.cache
def _import_training() -> None:
    """Imports the training code and torch, once in a process.

    The garbage collector is off meanwhile, since imports make hardly any garbage. Later collections skip the modules:
    each leg begins with a collection, and this saves 0.2 s.
    """
    gc.disable()
    try:
        import nfnet_ray.training  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()


@functools.cache
def _kept_graphs() -> KeptGraphs:
    """The kept graphs of this process, over all trials of one worker that it trains."""
    from nfnet_ray.training.form.kept import KeptGraphs

    return KeptGraphs()


def forget_graphs() -> None:
    """Frees the graphs that the last trial has left. The next trial then captures its own."""
    _kept_graphs().drop()


def _leave_if_preempted(outcomes: Sequence[str], contexts: Sequence[TuneContext]) -> None:
    """Ends the process if it has saved a checkpoint because its machine is taken back.

    To Tune the trial has then lost its worker, so it starts another one where there is room.
    """
    if "stopped" in outcomes and any(context.is_preempted for context in contexts):
        os._exit(0)


def _watchdog(clock: Clock, config: WorkerConfig) -> Watchdog:
    """The watchdog of a Tune trial: after a hang the process ends, and Tune starts the trial again."""
    from nfnet_ray.training.checkpoints.storage import storage_at
    from nfnet_ray.training.watchdog import SECONDS_OF_SILENCE, Watchdog

    def keep(hang: Hang) -> None:
        stacks = hang.stacks.encode()
        storage_at(stacks_place(config)).write("rank-0.txt", lambda file: file.write(stacks))

    return Watchdog(clock, config["hang_seconds"] or SECONDS_OF_SILENCE, keep)


def _spent(config: WorkerConfig) -> Spent | None:
    from nfnet_ray.training.run import Spent

    return Spent(**config["spent"]) if config["spent"] else None


def _refusal(error: UserError) -> FinalReport:
    """The final report of a leg that a UserError has ended."""
    return FinalReport("failed", str(error), stops_study=isinstance(error, StopsStudyError), refused=True)


def work_in_slot(plain: dict[str, Any]) -> None:
    """Trains one leg after another until the slot is closed. It runs in each worker of a TorchTrainer.

    If it raises an exception, Ray Train restarts all workers, which resume the leg unless it was over.
    """
    import ray.train

    slot, rank = cast(SlotConfig, plain), ray.train.get_context().get_world_rank()
    memory, legs = Memory(), 0
    if rank == 0:
        Register(slot["run"]).unset(FAILED_STARTS)
        Register(slot["run"]).set(READY, True)
    leg = _next_leg(slot, rank, None)
    while leg is not None and train_in_group(leg, slot, legs, memory):
        legs += 1
        leg = _next_leg(slot, rank, leg)


def _next_leg(slot: SlotConfig, rank: int, last: WorkerConfig | None) -> WorkerConfig | None:
    """Waits for the leg after ``last``. Returns None when the slot is closed."""
    register = Register(slot["run"])
    while True:
        if must_leave(rank):
            os._exit(0)  # Ray Train starts the group again
        try:
            leg = register.get(LEG)
            is_new = leg is not None and (last is None or leg["mailbox"] != last["mailbox"])
            if leg is not None and is_new and not Register(leg["mailbox"]).get(ENDED):
                return leg
            if register.get(CLOSE):
                return None
        except Exception as error:  # the head may be away for a while
            logger.warning("the cluster's head does not answer (%s)", error)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def train_in_group(config: WorkerConfig, slot: SlotConfig, legs_before: int, memory: Memory) -> bool:
    """Trains a leg as a worker of a group whose processes have trained ``legs_before`` legs before.

    Returns whether the group can train another leg; False if Ray Train restarts it. Raises an exception if new
    processes are needed: after any error, and if memory has grown.
    """
    started_at = time.perf_counter()
    _import_training()
    from nfnet_ray.training.collectives import all_of
    from nfnet_ray.training.measurement.clock import Clock
    from nfnet_ray.training.watchdog import SECONDS_OF_SILENCE, Watchdog

    clock, context = Clock(started_at), GroupContext(config)
    attempt = count_attempt(context, legs_before)
    if attempt is None:
        last_loss = context.register.get(LAST_LOSS)
        why = last_loss or "for an unknown reason"
        reason = f"its workers died {1 + LOST_WORKER_RETRIES} times at the same checkpoint ({why})"
        if context.rank == 0:
            context.report_end(FinalReport("failed", reason))
        return True

    def report_hang(hang: Hang) -> None:
        _keep_stacks(hang, config, context, attempt)

    hang_seconds = config["hang_seconds"] or SECONDS_OF_SILENCE
    with context.listening(), Watchdog(clock, hang_seconds, report_hang):
        try:
            report = _train(config, context, clock)
        except Exception as error:
            if isinstance(error, UserError):
                report = _refusal(error)
            elif will_recur(error, context):
                report = FinalReport("failed", keep_trace(config["directory"], error))
            else:
                raise
            # The leg is over, but other workers may wait for this one in an exchange.
            Register(slot["run"]).set(RESTARTS, True)
            context.report_end(report)
            raise
        if report.outcome == "stopped":
            return exit_after_checkpoint(context, report)
        growth = next(filter(None, all_of(memory.growth(f"rank {context.rank}"), context)), None)
        if growth:
            Register(slot["run"]).set(RESTARTS, True)
        if context.rank == 0:
            if growth:
                context.mailbox.post(WorkersReplaced(growth))
            context.report_end(report)
        if growth:
            all_of(None, context)  # no worker ends before the first one has reported
            raise RuntimeError(growth)
    return True


class Memory:
    """Compares the memory that a process holds between two legs with the memory after its first leg.

    ``let_go`` frees memory that is kept only for the next leg.
    """

    def __init__(self, let_go: Callable[[], None] = lambda: None) -> None:
        self._let_go = let_go
        self._first: int | None = None
        self.has_grown = False
        """Whether the process used too much memory after a leg, so that a new one has to train the next leg."""

    def growth(self, whose: str) -> str | None:
        """Returns a sentence if the memory has grown too much, else None. Call it after each leg."""
        if self._first is None:
            gc.collect()
            self._first = held_bytes()
        most = max(LEAST_GROWTH * self._first, self._first + LEAST_GROWTH_BYTES)
        if held_bytes() < most:
            return None
        self._let_go()
        gc.collect()  # only here, because between legs it takes a tenth of a second
        give_back_memory()
        held = held_bytes()
        self.has_grown = held >= most
        if not self.has_grown:
            return None
        return f"the memory of {whose} has grown from {self._first / 2**30:.1f} to {held / 2**30:.1f} GiB"


def give_back_memory() -> None:
    """Returns freed memory that glibc's allocator keeps to the system: 1.5 of 1.9 GiB after a step of NFNet-F1."""
    with suppress(AttributeError, OSError):  # other C libraries have no malloc_trim(3)
        ctypes.CDLL(None).malloc_trim(0)


def held_bytes() -> int:
    """The bytes that this process alone holds in the machine's and its GPU's memory; 0 if unknown."""
    import torch

    held = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
    with suppress(OSError), open("/proc/self/status") as status:  # not on macOS
        for line in status:
            # This excludes images that all processes of a node share: proc(5).
            if line.startswith("RssAnon:"):
                return held + int(line.split()[1]) * 1024
    return held


def _train(config: WorkerConfig, context: TuneContext | GroupContext, clock: Clock) -> FinalReport:
    recipe = Recipe.from_values(config["recipe"])
    if recipe.model.is_own:
        use_copies_in(Path(config["directory"]).parents[1] / COPIES_FOLDER)
    if recipe.compile:
        keep_compiled()
    from nfnet_ray.training import train

    try:
        outcome = train(
            recipe,
            context,
            clock,
            until_epoch=config["until_epoch"],
            until_seconds=config["until_seconds"],
            spent=_spent(config),
            data_fingerprint=config["data_fingerprint"],
            force_resume=config["force"],
        )
    except UserError as error:
        if error.others_wait:
            raise
        return _refusal(error)
    return FinalReport(outcome.state, outcome.reason, outcome.epochs)


def keep_compiled() -> None:
    """Sets torch.compile's cache to a folder that survives this process and a restart of the machine.

    If there is no writable home, as in a container with an arbitrary user id, it is the folder for temporary files.
    """
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return
    cache: Path | None = None
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nfnet_ray" / "inductor"
        wanted.mkdir(parents=True, exist_ok=True)
        cache = wanted if os.access(wanted, os.W_OK) else None
    if cache is None:
        from nfnet_ray.data.loading.resident import own_folder

        cache = own_folder() / "inductor"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


def _keep_stacks(hang: Hang, config: WorkerConfig, context: GroupContext, attempt: int) -> None:
    """Tells the driver that this worker hangs, and writes its stacks to a file."""
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
    return beside_checkpoints(config["checkpoints"], "stacks")
