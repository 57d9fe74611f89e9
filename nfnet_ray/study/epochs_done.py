"""Stores a running trial's progress within its epoch as one number in a file, as an epoch of ImageNet takes hours.

The number is only displayed. Results are stored in the journal and in the checkpoints.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from nfnet_ray.whole_file import whole_file

PROGRESS_FILE = "epochs_done"


def note_progress(trial_directory: Path, epochs: float) -> None:
    """Writes the progress atomically, so that no reader sees half of it.

    A full disk is ignored here, because writing checkpoints reports it.
    """
    with contextlib.suppress(OSError):
        trial_directory.mkdir(parents=True, exist_ok=True)
        with whole_file(trial_directory / PROGRESS_FILE, "w", sync=False) as file:
            file.write(f"{epochs:.4f}")


def noted_progress(trial_directory: Path) -> float:
    """Returns the number of epochs done, with fractions; 0 if no progress has been stored."""
    try:
        return float((trial_directory / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return 0.0
