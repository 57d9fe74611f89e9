"""What the training loop knows of the world outside: its Context."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from nfnet_ray.training.checkpoint import CheckpointDirectory, State

Metrics = Mapping[str, float]


class Context(Protocol):
    """One worker's place in the world. There is one implementation for plain processes and two for Ray."""

    @property
    def rank(self) -> int:
        """This worker's number, 0 to ``world_size - 1``."""

    @property
    def world_size(self) -> int:
        """How many workers train this model together; above 1, torch.distributed is initialised."""

    @property
    def device(self) -> torch.device:
        """Where the model and the batches live."""

    @property
    def threads(self) -> int:
        """CPU threads of this worker, for arithmetic and for decoding."""

    def save_checkpoint(self, epoch: int, state: State) -> None:
        """Keeps ``state`` after ``epoch`` finished epochs. Called by rank 0 alone."""

    def latest_checkpoint(self) -> State | None:
        """The last state that was kept for this run, or None."""

    def report(self, metrics: Metrics) -> None:
        """Hands one epoch's metrics to whoever watches. Called by every rank; may not return (early stop)."""

    def progress(self, epochs: float) -> None:
        """How many epochs are done, fractions included. Called after every step, so it has to be cheap."""

    def should_stop(self) -> bool:
        """Whether to end after the running epoch."""


class PlainContext:
    """A Context for a notebook, a test or a bare machine: one process, no Ray.

    ``checkpoints`` is a directory to keep and find checkpoints in; without it nothing is kept.
    ``on_report`` is called with each epoch's metrics.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        *,
        device: torch.device | None = None,
        threads: int | None = None,
        checkpoints: Path | None = None,
        on_report: Callable[[Metrics], None] = lambda _metrics: None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.threads = threads or os.cpu_count() or 1
        self._checkpoints = CheckpointDirectory(checkpoints) if checkpoints else None
        self._on_report = on_report

    def save_checkpoint(self, epoch: int, state: State) -> None:
        if self._checkpoints:
            self._checkpoints.save(epoch, state)

    def latest_checkpoint(self) -> State | None:
        return self._checkpoints.load_latest() if self._checkpoints else None

    def report(self, metrics: Metrics) -> None:
        self._on_report(metrics)

    def progress(self, epochs: float) -> None:
        """Nobody watches."""

    def should_stop(self) -> bool:
        return False
