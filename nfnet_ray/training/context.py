"""The Context: everything that the training loop knows about the world outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch

from nfnet_ray.clipping import Clipping
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.processor import available_cpus
from nfnet_ray.training.checkpoints.checkpoint import DEFAULT_KEPT, CheckpointStore, Kept
from nfnet_ray.training.form.artifacts import CompiledFiles
from nfnet_ray.training.form.forms import Choice
from nfnet_ray.training.form.kept import KeptGraphs

Metrics = Mapping[str, float]
# The training time that a failure loses at most, since the end of an epoch is saved anyway.
SECONDS_BETWEEN_CHECKPOINTS = 600.0


class FormNotes(Protocol):
    """What the timing of forms notes for others, and for a process that takes over."""

    def begin_compiling(self, form: str) -> bool:
        """Notes that this form is compiled and timed next.

        False: it must be left out, since twice a process has ended while it did this.
        """

    def end_form(self) -> None:
        """Notes that a form was timed, or has failed."""


class Context(Protocol):
    """One worker's surroundings. There is one implementation for plain processes and two for Ray."""

    @property
    def rank(self) -> int:
        """This worker's number, 0 to ``world_size - 1``."""

    @property
    def world_size(self) -> int:
        """The number of workers that train this model together; above 1, torch.distributed is initialised."""

    @property
    def replicas(self) -> int:
        """The number of equal shares of a batch: ``world_size``, or more while workers are missing.

        The workers that are there then also take the shares of the missing ones, one after the other, so that the
        order, the batch and SAM's groups do not change.
        """

    @property
    def device(self) -> torch.device:
        """The device of the model and the batches."""

    @property
    def gpu_share(self) -> float:
        """The part of its GPU that this worker may use: 1, or less where other workers use the same GPU."""

    @property
    def threads(self) -> int:
        """CPU threads of this worker, for arithmetic and for decoding."""

    @property
    def shares_batches(self) -> bool:
        """Whether other processes of this node may train on the same batches, so that looking for them pays."""

    @property
    def store(self) -> CheckpointStore | None:
        """The store of this run's checkpoints, which all workers share; None: none are kept."""

    @property
    def compiled_files(self) -> CompiledFiles | None:
        """What other runs have compiled, and this one may read and add to; None: it compiles for itself alone."""

    @property
    def kept_graphs(self) -> KeptGraphs | None:
        """What the run before has captured in this process; None: each run captures for itself.

        A run that uses it overwrites the network that the run before has returned.
        """

    @property
    def seconds_between_checkpoints(self) -> float | None:
        """Seconds between checkpoints within an epoch; None: checkpoint only at the end of each epoch."""

    def agreed_form(
        self,
        shape: str,
        choose: Callable[[FormNotes], Choice],
        sign_of_life: Callable[[], object],
    ) -> Choice:
        """The form in which all runs of a ``shape`` are trained that are compared with this one.

        The first of them finds it out with ``choose``, which takes its time, and tells its argument what it does. Only
        the first worker calls this. ``sign_of_life`` is called after each form, and every second while it waits for
        another run.
        """

    def report(self, metrics: Metrics, texts: Mapping[str, str]) -> None:
        """Reports one epoch's metrics. Every worker calls it; it may not return (early stopping).

        ``texts`` may have ``correct_images``, a :class:`nfnet_ray.correct_images.CorrectImages` where the run finishes
        or pauses, ``clipping``, a :class:`nfnet_ray.clipping.Clipping` of the steps since the one before, and
        ``conditions``, those of :mod:`nfnet_ray.training.measurement.conditions`, in the first report of a process, and
        ``system``, how busy the nodes were (:mod:`nfnet_ray.training.measurement.system`).
        """

    def progress(self, epochs: float) -> None:
        """Notes the number of epochs done, a fraction included. Called after every step, so it has to be cheap."""

    def should_stop(self) -> bool:
        """Whether to save a checkpoint and stop soon: the machine is being reclaimed, or someone asked for it.

        Called at least every few seconds. If one worker returns True, all stop.
        """


class NotesForNobody:
    """The FormNotes of a run that is compared with no other one."""

    def __init__(self, sign_of_life: Callable[[], object] = lambda: None) -> None:
        self._sign_of_life = sign_of_life

    def begin_compiling(self, form: str) -> bool:
        del form
        return True

    def end_form(self) -> None:
        self._sign_of_life()


class PlainContext:
    """A Context for a notebook, a test or a bare machine: one process, no Ray.

    Args:
        device: default: a GPU if there is one.
        gpu_share: the part of the GPU that this process may use.
        threads: default: one for each core that this process may use.
        checkpoints: a folder or a URI of checkpoints, to save and to resume from; without it nothing is saved.
        kept: the number of checkpoints that are not removed.
        seconds_between_checkpoints: within an epoch; None: only at the ends of epochs.
        shares_batches: with other processes of this machine that train on the same ones (docs/data.md).
        on_report: called with each epoch's metrics.
    """

    rank = 0
    world_size = 1
    replicas = 1
    compiled_files = None
    kept_graphs: KeptGraphs | None = None

    def __init__(
        self,
        *,
        device: torch.device | None = None,
        gpu_share: float = 1.0,
        threads: int | None = None,
        checkpoints: str | Path | None = None,
        kept: Kept = DEFAULT_KEPT,
        seconds_between_checkpoints: float | None = SECONDS_BETWEEN_CHECKPOINTS,
        shares_batches: bool = False,
        on_report: Callable[[Metrics], None] = lambda _metrics: None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.gpu_share = gpu_share
        self.threads = threads or available_cpus()
        self.store = CheckpointStore(checkpoints, kept) if checkpoints else None
        self.seconds_between_checkpoints = seconds_between_checkpoints
        self.shares_batches = shares_batches
        self._on_report = on_report
        self.correct_images: CorrectImages | None = None
        """The validation images that were correct when the run finished or paused."""
        self.clipping: dict[int, Clipping] = {}
        """{epoch: what AGC clipped since the record before}."""
        self._stop = threading.Event()

    def agreed_form(
        self,
        shape: str,
        choose: Callable[[FormNotes], Choice],
        sign_of_life: Callable[[], object],
    ) -> Choice:
        del shape
        return choose(NotesForNobody(sign_of_life))

    def report(self, metrics: Metrics, texts: Mapping[str, str]) -> None:
        if "correct_images" in texts:
            self.correct_images = CorrectImages.from_text(texts["correct_images"])
        if "clipping" in texts:
            self.clipping[int(metrics["epoch"])] = Clipping.from_text(texts["clipping"])
        self._on_report(metrics)

    def progress(self, epochs: float) -> None:
        """Nobody watches."""

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks the run to save a checkpoint and stop; may be called from any thread."""
        self._stop.set()

    @contextmanager
    def stopped_by(self, *signals: signal.Signals) -> Generator[None]:
        """Within it, the first signal stops the run with a checkpoint; a second one has its usual effect.

        For the main thread: ``with context.stopped_by(signal.SIGTERM, signal.SIGINT): train(recipe, context)``.
        """

        def ask(number: int, _frame: FrameType | None) -> None:
            self._stop.set()
            signal.signal(number, before[signal.Signals(number)])

        before = {number: signal.signal(number, ask) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
