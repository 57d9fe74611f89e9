"""How far a running trial is inside its epoch: one number in a file, for an epoch of ImageNet takes hours.

It is for display only: results are in the journal and in the checkpoints.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nfnet_ray.whole_file import whole_file

PROGRESS_FILE = "epochs_done"


def note_progress(trial_directory: Path, epochs: float) -> None:
    """Replaces the number in one step, so that nobody reads half of it. A full disk is for checkpoints to tell of."""
    with contextlib.suppress(OSError):
        trial_directory.mkdir(parents=True, exist_ok=True)
        with whole_file(trial_directory / PROGRESS_FILE, "w", sync=False) as file:
            file.write(f"{epochs:.4f}")


def noted_progress(trial_directory: Path) -> float:
    """Epochs that are done, fractions included; 0 if nothing has been noted."""
    try:
        return float((trial_directory / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return 0.0
