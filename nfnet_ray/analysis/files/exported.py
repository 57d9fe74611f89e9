"""Exports a study as a few small files for others, without checkpoints, reports and the paths of one machine.

=============== =====================================================================================================
study.json      the question, data, space, Recipe, hardware and versions; each trial's setting and how it ended; the
                epochs of reruns, and of trials that an extension has left out
trials.csv      a row for each trial: swept fields (``none`` is a value), seed, state, last and best top-1, seconds
epochs.csv      a row for each trial and epoch: each metric, to 6 significant digits
bits.npz        which validation images were correct where trials finished or paused: ``trial`` (R,) and ``epoch`` (R,),
                ``correct`` and ``measured`` (R, ceil(images / 8)) uint8, ``images``: read a row with
                ``numpy.unpackbits(row, count=images)``
=============== =====================================================================================================

:func:`nfnet_ray.analysis.load_study` reads such a folder in the same way as a study's own. What AGC clipped is not
exported.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from nfnet_ray.analysis.files.tables import EPOCHS_FILE
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import Event, StudyStarted
from nfnet_ray.tracking.state import Session, StudyState

STUDY_FILE, BITS_FILE = "study.json", "bits.npz"
FORMAT = 1
"""The version of the format of these files."""
_OF_OTHER_FILES = (OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""The errors that reading raises if a file is missing, empty, cut off or not an archive."""
_PARTS = ("setting", "contender", "rerun")
"""The kinds of trials in a study: a trial of a setting, a further seed of a contender, a rerun of a winner."""


def is_exported(directory: Path) -> bool:
    """Whether a folder contains an exported study."""
    return (directory / STUDY_FILE).is_file()


def read_exported(folder: Path) -> tuple[StudyState, StudyStarted]:
    """Returns the state of an exported study, and the event with which it was started.

    Raises:
        UserError: a file is missing, or was not written by a compatible version.
    """
    state = StudyState()
    try:
        document = json.loads((folder / STUDY_FILE).read_text())
        if document["format"] != FORMAT:
            raise UserError(
                f"{folder}: an export of format {document['format']}, and this version reads {FORMAT}"
            )
        for event in _events(document, folder):
            state.apply(event)
        # Exports of earlier versions contain only the first driver.
        if "sessions" in document:
            state.sessions = [Session(**session) for session in document["sessions"]]
        for told in document["trials"]:
            trial = state.trials[told["name"]]
            trial.sessions = told.get("sessions", trial.sessions)
            trial.conditions = dict(told.get("conditions", ()))
        if state.started is None:
            raise ValueError(f"{STUDY_FILE} does not say how the study began")
    except (*_OF_OTHER_FILES, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not an exported study that can be read ({error!r})") from error
    return state, state.started


def _events(document: dict[str, Any], folder: Path) -> Iterator[Event]:
    """Yields the events of a journal that would lead to the same tables."""
    import pandas as pd

    now = document["started"]["time"]
    curves = pd.read_csv(folder / EPOCHS_FILE, dtype={"trial": str})
    if not {"trial", "epoch"} <= set(curves):
        raise ValueError(f"{EPOCHS_FILE} has no columns trial and epoch")
    texts: dict[tuple[str, int], str] = {}
    with (folder / BITS_FILE).open("rb") as file:
        bits = dict(np.load(file, allow_pickle=False))
    for trial, epoch, *packed in zip(
        bits["trial"], bits["epoch"], bits["correct"], bits["measured"], strict=True
    ):
        correct, measured = (np.unpackbits(part, count=int(bits["images"])).astype(bool) for part in packed)
        texts[str(trial), int(epoch)] = CorrectImages(correct, measured).to_text()
    rows: dict[str, list[dict[str, Any]]] = {}
    for read in curves.to_dict("records"):
        rows.setdefault(read.pop("trial"), []).append(cast(dict[str, Any], read))
    for told in document["trials"]:
        rows.setdefault(told["name"], told.get("epochs", []))
    # Exports of earlier versions contain only trials of settings, which have no "part".
    parts = {part: [t for t in document["trials"] if t.get("part", "setting") == part] for part in _PARTS}
    plans = {part: [_plan(told) for told in trials] for part, trials in parts.items()}
    contenders, confirmation = document.get("contenders"), document.get("confirmation")
    yield cast(Event, {**document["started"], "trials": plans["setting"]})
    yield from _events_of(parts["setting"], rows, texts, now)
    for part, event, chosen in (
        ("contender", "contenders_chosen", contenders),
        ("rerun", "confirmation_planned", confirmation),
    ):
        added: dict[str, Any] = {"event": event, "time": now, "left_out": []}
        if plans[part]:  # trials that are no longer part of the study need an earlier event
            yield cast(Event, {**added, "trials": plans[part], "dropped": {}})
            yield from _events_of(parts[part], rows, texts, now)
        if chosen is not None or plans[part]:
            names = chosen["trials"] if chosen else []
            kept = [plan for plan in plans[part] if plan["name"] in names]
            yield cast(Event, {**added, "trials": kept, "dropped": (chosen or {}).get("dropped", {})})
    if document["ended"] is not None:
        yield cast(Event, document["ended"])


def _plan(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in ("name", "point", "recipe")}


def _events_of(
    trials: Sequence[Mapping[str, Any]],
    rows: Mapping[str, list[dict[str, Any]]],
    texts: Mapping[tuple[str, int], str],
    now: float,
) -> Iterator[Event]:
    """Yields the events of some trials, one trial after the other."""
    for told in trials:
        trial, paused = told["name"], dict(told["paused"])
        epochs = rows.get(trial, [])
        if told["state"] is None and not epochs:
            continue
        yield {"event": "trial_started", "time": now, "trial": trial, "attempt": 1}
        for row in epochs:
            epoch = int(row.pop("epoch"))
            metrics = {name: value for name, value in row.items() if not math.isnan(value)}
            event: dict[str, Any] = {"event": "epoch", "time": now, "trial": trial, "epoch": epoch}
            event["metrics"] = {**metrics, "epoch": epoch}
            if (trial, epoch) in texts:
                event["correct_images"] = texts[trial, epoch]
            yield cast(Event, event)
        for rung, epoch in paused.items():
            yield {"event": "trial_paused", "time": now, "trial": trial, "epoch": epoch, "rung": rung}
        if told["state"] not in (None, "running", "paused"):
            yield cast(
                Event,
                {
                    "event": "trial_ended", "time": now, "trial": trial, "state": told["state"],
                    "reason": told["reason"], "epochs": len(epochs),
                },
            )  # fmt: skip
