"""The Context: the interface through which the training loop sees its surroundings."""

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
# A failure loses at most this much training time. The end of an epoch is saved in any case.
SECONDS_BETWEEN_CHECKPOINTS = 600.0


class FormNotes(Protocol):
    """Notes that are left while forms are timed, for other runs and for a process that takes over after a failure."""

    def begin_compiling(self, form: str) -> bool:
        """Notes that this form is compiled and timed next.

        Returns False if the form has to be left out, because a process has ended twice while doing this.
        """

    def end_form(self) -> None:
        """Notes that a form has been timed, or has failed."""


class Context(Protocol):
    """The surroundings of one worker. There is one implementation for plain processes, and there are two for Ray."""

    @property
    def rank(self) -> int:
        """The number of this worker, 0 to ``world_size - 1``."""

    @property
    def world_size(self) -> int:
        """The number of workers that train this model together; above 1, torch.distributed is initialised."""

    @property
    def replicas(self) -> int:
        """The number of equal shares of a batch: ``world_size``, or more while workers are missing.

        The workers that are present then also compute the shares of the missing ones, one after the other, so that the
        order of images, the batch and SAM's groups do not change.
        """

    @property
    def device(self) -> torch.device:
        """The device of the model and the batches."""

    @property
    def gpu_share(self) -> float:
        """The share of its GPU that this worker may use: 1, or less if other workers use the same GPU."""

    @property
    def threads(self) -> int:
        """The number of CPU threads of this worker, for arithmetic and for decoding."""

    @property
    def shares_batches(self) -> bool:
        """Whether other processes of this node may train on the same batches, so that it pays to look for them."""

    @property
    def store(self) -> CheckpointStore | None:
        """The store of this run's checkpoints, which all workers share; None if no checkpoints are saved."""

    @property
    def compiled_files(self) -> CompiledFiles | None:
        """Code that other runs have compiled, which this run may load and add to; None if runs do not share it."""

    @property
    def kept_graphs(self) -> KeptGraphs | None:
        """The graphs that the previous run of this process has captured; None if each run captures its own.

        A run that uses them overwrites the network that the previous run has returned.
        """

    @property
    def seconds_between_checkpoints(self) -> float | None:
        """Seconds between checkpoints within an epoch; None: a checkpoint only at the end of each epoch."""

    def agreed_form(
        self,
        shape: str,
        choose: Callable[[FormNotes], Choice],
        sign_of_life: Callable[[], object],
    ) -> Choice:
        """The form in which this run trains, and every run of the same ``shape`` that is compared with it.

        The first of these runs calls ``choose``, which may take minutes and leaves notes through its argument. The
        others wait for the result. ``sign_of_life`` is called after each form, and every second while waiting. Only the
        first worker calls this method.
        """

    def report(self, metrics: Metrics, texts: Mapping[str, str]) -> None:
        """Reports one epoch's metrics. Every worker calls it. With early stopping it may never return.

        ``texts`` may have these keys:

        * ``correct_images``: a :class:`nfnet_ray.correct_images.CorrectImages`, if the run finishes or pauses here;
        * ``clipping``: a :class:`nfnet_ray.clipping.Clipping` of the steps since the last one;
        * ``conditions``: see :mod:`nfnet_ray.training.measurement.conditions`; in the first report of a process;
        * ``system``: how busy the nodes were (:mod:`nfnet_ray.training.measurement.system`).
        """

    def progress(self, epochs: float) -> None:
        """Notes the number of epochs done, with a fraction. It is called after every step, so it has to be cheap."""

    def should_stop(self) -> bool:
        """Whether to save a checkpoint and stop, because the machine is being reclaimed or somebody has asked for it.

        It is called at least every few seconds. If it returns True on one worker, all workers stop.
        """


class NotesForNobody:
    """The FormNotes of a run that is not compared with others."""

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
        device: where to train; by default a GPU if there is one.
        gpu_share: the share of the GPU that this process may use.
        threads: the number of CPU threads; by default one for each core that this process may use.
        checkpoints: a folder or a URI in which checkpoints are saved, and from which the run resumes; None saves none.
        kept: the number of checkpoints to keep.
        seconds_between_checkpoints: the time between checkpoints within an epoch; None saves only at the end of epochs.
        shares_batches: whether to share batches with other processes of this machine that train on the same ones
            (docs/data.md).
        on_report: a function that is called with each epoch's metrics.
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
        """{epoch: the units that AGC clipped since the previous entry}."""
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
        """Does nothing."""

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks the run to save a checkpoint and stop. May be called from any thread."""
        self._stop.set()

    @contextmanager
    def stopped_by(self, *signals: signal.Signals) -> Generator[None]:
        """A context in which the first of these signals stops the run with a checkpoint. A second one acts as usual.

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
