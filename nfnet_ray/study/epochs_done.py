"""How far a running trial is inside its epoch: one number in a file, for an epoch of ImageNet takes hours.

It is only for showing. What is paid for is in the journal and in the checkpoints.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

PROGRESS_FILE = "epochs_done"


def note_progress(trial_directory: Path, epochs: float) -> None:
    """Replaces the number in one step, so that nobody reads half of it. A full disk is for checkpoints to tell of."""
    partial = trial_directory / f"{PROGRESS_FILE}.partial"
    with contextlib.suppress(OSError):
        trial_directory.mkdir(parents=True, exist_ok=True)
        partial.write_text(f"{epochs:.4f}")
        partial.replace(trial_directory / PROGRESS_FILE)


def noted_progress(trial_directory: Path) -> float:
    """Epochs that are done, fractions included; 0 where nothing has been noted."""
    try:
        return float((trial_directory / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return 0.0
