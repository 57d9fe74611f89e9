"""``python -m studies export NAME FOLDER``: a study as a few small files."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from nfnet_ray.analysis.files.exported import BITS_FILE, FORMAT, STUDY_FILE
from nfnet_ray.analysis.files.tables import write_csv
from nfnet_ray.analysis.record import StudyRecord, study_record
from nfnet_ray.command_line.terminal import say
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words
from nfnet_ray.printable import display_path
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import TrialProgress
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import count, storage_size

_FOLDERS = re.compile(r"(?<![^\s=:'\"])(?:\.\.|~|)/(?:[^\s'\"/]+/)*(?=[^\s'\"/])")


def export(directory: Path, folder: Path, console: Console) -> None:
    """Writes the study of a directory into a folder. Raises UserError if that is a study's own folder or no folder."""
    if (folder / JOURNAL_FILE).exists():
        raise UserError(f"{display_path(folder)} is a study's own folder; choose another one")
    state, started = StudyState.read(directory)
    try:
        export_study(study_record(state, started), state, started, folder)
    except OSError as error:
        raise UserError(
            f"{display_path(folder)} cannot be written ({in_words(error)}); choose another folder"
        ) from error
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    say(
        console, f"wrote {count(len(state.trials), 'trial')} to {display_path(folder)} ({storage_size(size)})"
    )


def export_study(record: StudyRecord, state: StudyState, started: StudyStarted, folder: Path) -> None:
    """Writes a study into a folder, which is made if it is missing; files of an earlier export are replaced.

    Of absolute paths in the study's description and command only the last part is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    in_tables = set(record.trials["trial"])
    trials = [
        {
            **plan,
            "part": part,
            "recipe": _without_folders(plan["recipe"]),
            "state": state.trials[plan["name"]].state,
            "reason": state.trials[plan["name"]].reason,
            "paused": sorted(state.trials[plan["name"]].paused.items()),
            "conditions": sorted(state.trials[plan["name"]].conditions.items()),
            "sessions": state.trials[plan["name"]].sessions,
        }
        | ({} if plan["name"] in in_tables else {"epochs": _epochs(state.trials[plan["name"]])})
        for part, plans in (("setting", state.plans), ("contender", state.further), ("rerun", state.reruns))
        for plan in plans.values()
    ]
    document = {
        "format": FORMAT,
        "started": {**_without_folders(started), "trials": []},
        "ended": state.ended,
        "accelerator_seconds": round(state.accelerator_seconds, 1),
        "trials": trials,
        "contenders": {"trials": state.repeating, "dropped": state.dropped} if state.has_contenders else None,
        "confirmation": {"trials": state.confirming} if state.has_winners and state.reruns else None,
        "sessions": [asdict(session) for session in state.sessions],
    }
    with whole_file(folder / STUDY_FILE) as file:
        file.write(json.dumps(document, indent=1, allow_nan=False, default=str).encode() + b"\n")
    write_csv(record, folder)
    with whole_file(folder / BITS_FILE) as file:
        np.savez_compressed(file, **_bits(record))


def _epochs(trial: TrialProgress) -> list[dict[str, float]]:
    """The epochs of a trial that takes part in no answer, such as a rerun, which the tables leave out."""
    return [
        {name: value for name, value in metrics.items() if value is not None} | {"epoch": epoch}
        for epoch, metrics in sorted(trial.epochs.items())
    ]


def _bits(record: StudyRecord) -> dict[str, Any]:
    rows = [
        (trial, epoch, CorrectImages.from_text(text))
        for trial, texts in record.correct_images.items()
        for epoch, text in sorted(texts.items())
    ]
    images = len(rows[0][2].correct) if rows else 0
    packed = [
        [np.packbits(part) for part in (one.correct, one.measured)] for _, _, one in rows
    ]  # (R, 2, bytes)
    both = np.array(packed, np.uint8).reshape(len(rows), 2, -(-images // 8))
    return {
        "trial": np.array([trial for trial, _, _ in rows], str),
        "epoch": np.array([epoch for _, epoch, _ in rows], np.int64),
        "correct": both[:, 0],
        "measured": both[:, 1],
        "images": np.int64(images),
    }


def _without_folders(value: Any) -> Any:
    """The same with only the last part of each absolute path in its texts."""
    if isinstance(value, dict):
        return {name: _without_folders(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(inner) for inner in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value
