"""Checkpoints of one run in one directory: complete or not there at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

State = Mapping[str, Any]
KEPT = 2  # the last one, and the one before it in case the last is damaged


class CheckpointDirectory:
    """Writes and finds the checkpoints ``epoch_00003.pt`` of one run.

    A file is written under another name, synced, and renamed when it is complete, so that a crash at any
    moment leaves the checkpoint before it intact.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, epoch: int, state: State) -> None:
        """Keeps ``state`` (tensors and plain values) as the checkpoint after ``epoch`` finished epochs."""
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / f"epoch_{epoch:05d}.pt"
        partial = target.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        for old in self._newest_first()[KEPT:]:
            old.unlink(missing_ok=True)

    def load_latest(self) -> State | None:
        """The newest checkpoint that can be read, on the CPU; None where there is none."""
        for path in self._newest_first():
            try:
                state: State = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises many kinds for a damaged file
                logger.warning("checkpoint %s is damaged (%s): using the one before it", path, error)
            else:
                return state
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.path.glob("epoch_*.pt"), reverse=True)
