"""What the training loop knows of the world outside: its Context."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch

from nfnet_ray.training.checkpoints.checkpoint import DEFAULT_KEPT, CheckpointStore, Kept

Metrics = Mapping[str, float]
SECONDS_BETWEEN_CHECKPOINTS = 600.0  # what a failure costs at most, beside the ends of epochs


class Context(Protocol):
    """One worker's place in the world. There is one implementation for plain processes and two for Ray."""

    @property
    def rank(self) -> int:
        """This worker's number, 0 to ``world_size - 1``."""

    @property
    def world_size(self) -> int:
        """How many workers train this model together; above 1, torch.distributed is initialised."""

    @property
    def replicas(self) -> int:
        """Into how many equal shares a batch falls: ``world_size``, or more while workers are missing.

        The workers that are there then take the shares of the others too, one after the other, so that
        order, batch and SAM's groups stay as they are.
        """

    @property
    def device(self) -> torch.device:
        """Where the model and the batches live."""

    @property
    def threads(self) -> int:
        """CPU threads of this worker, for arithmetic and for decoding."""

    @property
    def store(self) -> CheckpointStore | None:
        """Where this run's checkpoints lie, a place that all workers share; None: none are kept."""

    @property
    def seconds_between_checkpoints(self) -> float | None:
        """Within an epoch a checkpoint is due after so long; None: only at the ends of epochs."""

    def report(self, metrics: Metrics) -> None:
        """Hands one epoch's metrics to whoever watches. Called by every rank; may not return (early stop)."""

    def progress(self, epochs: float) -> None:
        """How many epochs are done, fractions included. Called after every step, so it has to be cheap."""

    def should_stop(self) -> bool:
        """Whether to keep a checkpoint and end, soon: a machine is taken back, or somebody wants it so.

        Asked at least every few seconds, and one worker's wish stops all.
        """


class PlainContext:
    """A Context for a notebook, a test or a bare machine: one process, no Ray.

    Args:
        device: default: a GPU if there is one.
        threads: default: one for each core.
        checkpoints: a folder or a URI to keep and find checkpoints in; without it nothing is kept.
        kept: which of them stay.
        seconds_between_checkpoints: within an epoch; None: only at the ends of epochs.
        on_report: called with each epoch's metrics.
    """

    rank = 0
    world_size = 1
    replicas = 1

    def __init__(
        self,
        *,
        device: torch.device | None = None,
        threads: int | None = None,
        checkpoints: str | Path | None = None,
        kept: Kept = DEFAULT_KEPT,
        seconds_between_checkpoints: float | None = SECONDS_BETWEEN_CHECKPOINTS,
        on_report: Callable[[Metrics], None] = lambda _metrics: None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.threads = threads or os.cpu_count() or 1
        self.store = CheckpointStore(checkpoints, kept) if checkpoints else None
        self.seconds_between_checkpoints = seconds_between_checkpoints
        self._on_report = on_report
        self._stop = threading.Event()

    def report(self, metrics: Metrics) -> None:
        self._on_report(metrics)

    def progress(self, epochs: float) -> None:
        """Nobody watches."""

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks the run to keep a checkpoint and end; from any thread."""
        self._stop.set()

    @contextmanager
    def stopped_by(self, *signals: signal.Signals) -> Iterator[None]:
        """While this lasts the first of the signals stops the run with a checkpoint; one more is as it was before.

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
