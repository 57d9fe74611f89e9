"""What runs in a worker: its Context, and how a training that Ray started ends.

The driver imports this module too, so torch is imported in the functions, where a training runs.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from nfnet_ray.cluster.mailbox import Mailbox
from nfnet_ray.errors import StopsStudyError, UserError
from nfnet_ray.places import in_words
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.epochs_done import note_progress
from nfnet_ray.study.study import METRIC

if TYPE_CHECKING:
    import torch

    from nfnet_ray.training.clock import Clock
    from nfnet_ray.training.watchdog import Hang

METRICS = "metrics"  # key of all of an epoch's metrics; what a scheduler reads stands beside it
OUTCOME, REASON = "outcome", "outcome_reason"  # keys of a trial's last report, beside its epoch
STOPS_STUDY = (
    "stops_study"  # another, if no other trial can do better: storage is full, or the data has changed
)
# Names in the mailbox.
STOP, YIELD, PROGRESS, TRIES, LAST_LOSS = "stop", "yield", "progress", "tries", "last_loss"
FAULT, LAST_ERROR = "fault", "last_error"
HAS_TRAINED = "has_trained"  # set from the first step on: from then on there is something to keep
PROGRESS_INTERVAL_SECONDS = 5.0
SECONDS_BETWEEN_NOTES = 1.0  # that the first worker looks for in the mailbox
# systemd and Slurm tell the driver and its workers at once; Tune looks at what the driver wants ten times a second.
SECONDS_UNTIL_THE_DRIVER_ASKS = 3.0
LOST_WORKER_RETRIES = 3  # a lost process or node is not the training's fault: it goes on from its checkpoint

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

logger = logging.getLogger(__name__)

StopReason = Literal["asked", "resized", "preempted", "terminated"]


@dataclass(frozen=True)
class WorkerResources:
    """Workers of one trial, and what each of them is given. It may go on with ``min_workers`` of them."""

    workers: int
    cpus: int
    gpus: float
    min_workers: int | None = None


class WorkerConfig(TypedDict):
    """A training as the plain values that Ray carries to where it runs.

    ``directory`` is the training's own; ``checkpoints`` a path or URI that all workers share. ``mailbox`` names
    the :class:`Mailbox` of a worker group, and ``through_tune`` says where its reports go. What is None is the
    training room's own default.
    """

    name: str
    recipe: dict[str, Any]
    data_fingerprint: str
    directory: str
    checkpoints: str
    resources: dict[str, Any]
    seconds_between_checkpoints: float | None
    hang_seconds: float | None
    force: bool
    mailbox: str
    through_tune: bool
    resize_seconds: float


class _WorkerContext:
    """What the contexts of all kinds of training share."""

    def __init__(self, config: WorkerConfig, rank: int, world_size: int, device: torch.device) -> None:
        from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore
        from nfnet_ray.training.context import SECONDS_BETWEEN_CHECKPOINTS

        self.rank, self.world_size, self.device = rank, world_size, device
        self.replicas = int(config["resources"]["workers"])
        self.threads = int(config["resources"]["cpus"])
        self.directory = Path(config["directory"])
        self.store = CheckpointStore(config["checkpoints"])
        seconds = config["seconds_between_checkpoints"]
        self.seconds_between_checkpoints = SECONDS_BETWEEN_CHECKPOINTS if seconds is None else seconds
        self.mailbox = Mailbox(config["mailbox"])
        self._wish: StopReason | None = None
        self._epochs: float | None = None
        self._noted_at: float | None = None
        self._over = threading.Event()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts the first worker reads the mailbox, and notes progress."""
        thread = threading.Thread(target=self._listen, name="mailbox", daemon=True)
        if self.rank == 0:
            thread.start()
        try:
            yield
        finally:
            self._over.set()

    def _listen(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_NOTES):
            try:
                self._read_wishes()
                if self._epochs is None:
                    continue
                if self._noted_at is None:
                    self.mailbox.set(HAS_TRAINED, True)
                if self._noted_at is None or time.monotonic() - self._noted_at > PROGRESS_INTERVAL_SECONDS:
                    self._noted_at = time.monotonic()
                    self._note_progress(self._epochs)
            except Exception as error:  # the head may be away for a while; what it has to say can wait
                logger.warning("the cluster's head does not answer (%s)", error)

    def _read_wishes(self) -> None:
        if self.mailbox.get(STOP):
            self._wish = "asked"

    def _note_progress(self, epochs: float) -> None:
        note_progress(self.directory, epochs)

    def progress(self, epochs: float) -> None:
        self._epochs = epochs

    def should_stop(self) -> bool:
        return self._wish is not None


class TuneContext(_WorkerContext):
    """The Context of a trial with one worker: metrics go straight to Tune, which may not return."""

    def __init__(self, config: WorkerConfig) -> None:
        import torch

        gpu = config["resources"]["gpus"] > 0
        super().__init__(config, rank=0, world_size=1, device=torch.device("cuda" if gpu else "cpu"))

    def report(self, metrics: Mapping[str, Any]) -> None:
        from ray import tune

        tune.report(report_of(metrics))


class GroupContext(_WorkerContext):
    """The Context of a worker of a TorchTrainer. It stops when somebody asks, and when its machine is taken back."""

    def __init__(self, config: WorkerConfig) -> None:
        import ray.train
        import ray.train.torch

        place = ray.train.get_context()
        device = ray.train.torch.get_device()
        super().__init__(config, place.get_world_rank(), place.get_world_size(), device)
        self._through_tune = config["through_tune"]

    def _read_wishes(self) -> None:
        if self.mailbox.get(STOP):
            self._wish = "asked"
        elif self.mailbox.get(YIELD):
            self._wish = "resized"

    def _note_progress(self, epochs: float) -> None:
        self.mailbox.set(PROGRESS, epochs)
        if self._through_tune:
            super()._note_progress(epochs)

    def report(self, metrics: Mapping[str, Any]) -> None:
        if self._through_tune:
            import ray.train

            ray.train.report(report_of(metrics))
        elif self.rank == 0:
            self.mailbox.post("epoch", metrics=dict(metrics))

    def should_stop(self) -> bool:
        return self.stop_reason() is not None

    def is_asked_soon(self) -> bool:
        """Whether the driver wants the run to stop, now or in a moment: what ends all processes ends it too."""
        deadline = time.monotonic() + SECONDS_UNTIL_THE_DRIVER_ASKS
        with suppress(Exception):  # the cluster's head is away
            while time.monotonic() < deadline:
                if self.mailbox.get(STOP):
                    return True
                time.sleep(0.1)
        return False

    def stop_reason(self) -> StopReason | None:
        """Why this worker wants to stop; another one may have another reason, or none."""
        if _terminated.is_set():
            return "terminated"
        return "preempted" if preempted_ranks() else self._wish


def preempted_ranks() -> list[int]:
    """Workers whose machines are about to be taken back, as this worker was told.

    ``ray.train.get_preemption_info`` is a barrier of all workers, at every call; what it hands round is read here.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return list(info.preempted_ranks) if info else []


_terminated = threading.Event()


def hear_sigterm() -> None:
    """From now on a first SIGTERM to this process lets it keep a checkpoint. For the main thread."""

    def hear(number: int, _frame: FrameType | None) -> None:
        _terminated.set()
        signal.signal(number, before)

    before = signal.signal(signal.SIGTERM, hear)
    # A local Ray starts its processes deaf to it (own_ray.py).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def report_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What Tune is told: a last word as it is; an epoch with its metrics in one place, apart from Tune's own."""
    if OUTCOME in metrics:
        return dict(metrics)
    return {"epoch": metrics["epoch"], METRIC: metrics[METRIC], METRICS: dict(metrics)}


def train_alone(config: WorkerConfig, started_at: float) -> dict[str, Any]:
    """Trains in a Tune trial of one worker; how that ended, as the trial's last report."""
    from nfnet_ray.training.checkpoints.storage import storage_at
    from nfnet_ray.training.clock import Clock
    from nfnet_ray.training.watchdog import SECONDS_OF_SILENCE, Watchdog

    def keep(hang: Hang) -> None:
        stacks = hang.stacks.encode()
        storage_at(stacks_place(config)).write("rank-0.txt", lambda file: file.write(stacks))

    clock, context = Clock(started_at), TuneContext(config)
    hang_seconds = config["hang_seconds"] or SECONDS_OF_SILENCE
    with context.listening(), Watchdog(clock, hang_seconds, keep):  # Tune then starts it again
        return _train(config, context, clock)


def train_in_group(plain: dict[str, Any]) -> None:
    """What each worker of a TorchTrainer does. When it raises, Ray Train starts all workers again."""
    started_at = time.perf_counter()
    config = cast(WorkerConfig, plain)
    from nfnet_ray.training.checkpoints.saving import first_workers
    from nfnet_ray.training.clock import Clock
    from nfnet_ray.training.watchdog import SECONDS_OF_SILENCE, Watchdog

    clock, context = Clock(started_at), GroupContext(config)

    tries = _count_try(context)
    fault = first_workers(context.mailbox.get(FAULT), context)
    if fault is not None:  # of the attempt before; it would come again
        _say_last_word(context, {OUTCOME: "failed", REASON: fault, "epoch": 0})
        return
    if tries is None:
        loss = f" ({context.mailbox.get(LAST_LOSS) or 'for no reason that is known'})"
        reason = f"its workers died {1 + LOST_WORKER_RETRIES} times at the same checkpoint{loss}"
        _say_last_word(context, {OUTCOME: "failed", REASON: reason, "epoch": 0})
        return

    def tell(hang: Hang) -> None:
        _keep_stacks(hang, config, context, tries)

    hang_seconds = config["hang_seconds"] or SECONDS_OF_SILENCE
    with context.listening(), Watchdog(clock, hang_seconds, tell):
        try:
            last_word = _train(config, context, clock)
        except Exception as error:
            if not _comes_again(error, context):
                raise
            reason = kept_trace(config, error)
            if (
                context._through_tune
            ):  # where all workers have to report together, which they do when started again
                context.mailbox.set(FAULT, reason)
                raise
            context.mailbox.post("ended", **{OUTCOME: "failed", REASON: reason})
            return
        if last_word[OUTCOME] != "stopped":
            _say_last_word(context, last_word)
            return
    _leave(context, last_word)


def is_fault(error: Exception) -> bool:
    """Whether an error is of the program or of the network, so that it would come again, and not of a machine."""
    import torch

    return isinstance(error, (*_FAULTS, torch.OutOfMemoryError))


def _comes_again(error: Exception, context: GroupContext) -> bool:
    """Whether to end a training for an error: it is a fault, or it came on this worker at this checkpoint before."""
    if is_fault(error):
        return True
    import torch.distributed as dist

    # When another worker is lost the others fail too: what they raise is plain RuntimeErrors as well.
    of_machines = isinstance(error, OSError | EOFError | dist.DistError)
    if of_machines or any(sign in str(error) for sign in _SIGNS_OF_MACHINES):
        return False
    name = f"{LAST_ERROR}-{context.rank}"
    told = {"step": context.mailbox.get(TRIES)["step"], "error": f"{type(error).__name__}: {error}"}
    before = context.mailbox.get(name)
    context.mailbox.set(name, told)
    return bool(before == told)


def _say_last_word(context: GroupContext, word: Mapping[str, Any]) -> None:
    if context._through_tune:
        context.report(word)
    elif context.rank == 0:
        context.mailbox.post("ended", **word)


def _leave(context: GroupContext, last_word: Mapping[str, Any]) -> None:
    """Ends a worker that has kept a checkpoint because one of them was asked to stop."""
    from nfnet_ray.training.checkpoints.saving import all_of, first_workers

    reason = context.stop_reason()
    told = all_of((reason, preempted_ranks()), context)
    reasons = [wish for wish, _ in told if wish]
    doomed = {rank for _, ranks in told for rank in ranks}
    if "terminated" in reasons and first_workers(context.rank == 0 and context.is_asked_soon(), context):
        reasons = ["asked"]
    if "asked" in reasons:
        _say_last_word(context, last_word)
    elif context.rank == 0:
        context.mailbox.post("kept", reason=reasons[0])
        context.mailbox.unset(YIELD)
    if "asked" not in reasons and (reason == "terminated" or context.rank in doomed):
        # To Ray a worker that returns has finished. One that dies on a machine that is taken back is started
        # again elsewhere, which counts as nobody's failure.
        os._exit(0)


def _count_try(context: GroupContext) -> int | None:
    """Which attempt this is; None if those before died one after the other at the same checkpoint. All together."""
    from nfnet_ray.training.checkpoints.saving import first_workers

    tries = None
    if context.rank == 0:
        newest = next(iter(context.store.entries()), None)
        step = newest.step if newest else 0
        before = context.mailbox.get(TRIES) or {"attempt": 0, "step": -1, "count": 0}
        count = before["count"] + 1 if before["step"] == step else 1
        tries = before["attempt"] + 1
        context.mailbox.set(TRIES, {"attempt": tries, "step": step, "count": count})
        context.mailbox.post("attempt", attempt=tries, workers=context.world_size, step=step)
        if count > 1 + LOST_WORKER_RETRIES:
            tries = None
    agreed: int | None = first_workers(tries, context)
    return agreed


def _train(config: WorkerConfig, context: TuneContext | GroupContext, clock: Clock) -> dict[str, Any]:
    """Trains; how that ended, as the training's last report."""
    recipe = Recipe.from_values(config["recipe"])
    if recipe.compile:
        keep_compiled()
    from nfnet_ray.training import train

    try:
        outcome = train(
            recipe,
            context,
            clock,
            data_fingerprint=config["data_fingerprint"],
            force_resume=config["force"],
        )
    except UserError as error:  # the same on every worker
        word = {OUTCOME: "failed", REASON: str(error), "epoch": 0, "refused": True}
        return word | ({STOPS_STUDY: True} if isinstance(error, StopsStudyError) else {})
    return {OUTCOME: outcome.state, REASON: outcome.reason, "epoch": outcome.epochs}


def kept_trace(config: WorkerConfig, error: Exception) -> str:
    """One line for the table; the trace is kept in a file."""
    trace = Path(config["directory"]) / "error.txt"
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text("".join(traceback.format_exception(error)))
        where = f"trace in {trace}"
    except OSError as why:
        where = f"its trace could not be kept: {in_words(why)}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line} ({where})"


def keep_compiled() -> None:
    """Has torch.compile keep what it makes where it survives this process, and a restart of the machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "nfnet_ray" / "inductor"))


def _keep_stacks(hang: Hang, config: WorkerConfig, context: GroupContext, attempt: int) -> None:
    """Puts a hanging worker's stacks where the driver can find them, and tells it."""
    from nfnet_ray.training.checkpoints.storage import storage_at

    place, name = stacks_place(config), f"attempt-{attempt}-rank-{context.rank}.txt"
    context.mailbox.post(
        "hung",
        rank=context.rank,
        workers=context.world_size,
        phase=hang.phase,
        beats=hang.beats,
        waits_for_others=hang.waits_for_others,
        seconds=hang.silent_seconds,
        place=place,
    )
    storage_at(place).write(name, lambda file: file.write(hang.stacks.encode()))


def stacks_place(config: WorkerConfig) -> str:
    """Where the stacks of workers that hang are kept: beside the checkpoints."""
    place = config["checkpoints"]
    folder, mark, options = place.partition("?") if "://" in place else (place, "", "")
    return f"{folder.rstrip('/').removesuffix('/checkpoints')}/stacks{mark}{options}"
