"""Journals like the ones that studies write, with made-up numbers."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nfnet_ray.recipe import Recipe
from nfnet_ray.tracking.events import (
    EpochEnded,
    Event,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialStarted,
    trial_proposed,
)
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal
from nfnet_ray.tracking.state import StudyState

CLIP_FACTOR = "optimizer.agc.clip_factor"
START = 1_795_440_000.0  # 23 November 2026


def study_started(
    space: Mapping[str, Sequence[Any]], seeds: Sequence[int] = (0,), epochs: int = 8, name: str = "agc_sweep"
) -> StudyStarted:
    """The first event of a study over the whole grid of ``space``; trial names are ``<name>-00`` and so on."""
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return {
        "event": "study_started",
        "time": START,
        "study": {
            "name": name,
            "question": "How strongly should AGC clip the gradients, and does it depend on the batch size?",
            "command": "python studies/agc_sweep.py --data data/imagenet_samples.beton",
            "metric": "validation_top1",
            "mode": "max",
            "space": {field: list(values) for field, values in space.items()},
            "seeds": list(seeds),
            "epochs": epochs,
            "halving": {"grace_epochs": 3, "reduction_factor": 3},
            "worker": {"workers": 1, "cpus": 1, "gpus": 0},
            "recipe": json.loads(json.dumps(Recipe().with_values({"schedule.epochs": epochs}).to_values())),
            "data": {
                "path": "data/imagenet_samples.beton",
                "name": "imagenet_samples",
                "fingerprint": "9f86d081884c",
                "classes": 10,
                "train_images": 1440,
                "validation_images": 360,
            },
            "hardware": {"description": "2 × CPU (x86-64), no GPU", "cpus": 2, "gpus": 0, "memory_gib": 23.4},
            "versions": {
                "nfnet_ray": "0.1.0",
                "torch": "2.15.0",
                "ray": "2.60.0",
                "python": "3.11.7",
                "commit": "4f2d1c0",
            },
        },
        "trials": [
            {"name": f"{name}-{number:02}", "point": point, "recipe": {**point, "seed": seed}}
            for number, (point, seed) in enumerate(itertools.product(points, seeds))
        ],
    }


def proposed_later(events: Sequence[Event]) -> list[Event]:
    """The same study with all trials but the first proposed while it runs, each just before it starts."""
    [started, *others] = events
    assert started["event"] == "study_started"
    plans = {plan["name"]: plan for plan in started["trials"]}
    told: list[Event] = [{**started, "trials": started["trials"][:1]}]
    for event in others:
        if (
            event["event"] == "trial_started"
            and event["attempt"] == 1
            and event["trial"] != next(iter(plans))
        ):
            number = list(plans).index(event["trial"])
            after = list(plans)[:number]
            told.append({**trial_proposed(plans[event["trial"]], number, after), "time": event["time"]})
        told.append(event)
    return told


def trial_events(
    trial: str,
    start: float,
    top1: Sequence[float],
    state: str = "finished",
    reason: str | None = None,
    seconds_per_epoch: float = 40.0,
) -> list[Event]:
    """One trial whose epochs, from 1 on, had these accuracies; a NaN among them makes the losses NaN too."""
    started: TrialStarted = {"event": "trial_started", "time": start, "trial": trial, "attempt": 1}
    events: list[Event] = [started]
    for number, accuracy in enumerate(top1, start=1):
        loss = math.nan if math.isnan(accuracy) else 2.4 * (1 - accuracy)
        epoch: EpochEnded = {
            "event": "epoch",
            "time": start + 5 + number * seconds_per_epoch,
            "trial": trial,
            "epoch": number,
            "metrics": {
                "validation_top1": accuracy,
                "validation_loss": loss,
                "train_loss": loss,
                "train_seconds": number * seconds_per_epoch,
                "data_wait_seconds": 0.1 * number,
                "eval_seconds": 1.5 * number,
                "checkpoint_seconds": 0.2 * number,
                "startup_seconds": 4.2,
                "images_per_second": 1440 / seconds_per_epoch,
                "learning_rate": 0.1 * (1 - number / (len(top1) + 1)),
                "agc_clipped_fraction": 0.3,
            },
        }
        events.append(epoch)
    end = start + 6 + len(top1) * seconds_per_epoch
    ended: TrialEnded = {
        "event": "trial_ended",
        "time": end,
        "trial": trial,
        "state": state,  # type: ignore[typeddict-item]
        "reason": reason,
        "epochs": len(top1),
    }
    return [*events, ended]


def agc_sweep(
    clip_factors: Sequence[float | None] = (0.005, 0.01, 0.02, 0.04, 0.08, None),
    batch_sizes: Sequence[int] = (64, 256),
    seeds: Sequence[int] = (0,),
    epochs: int = 8,
) -> list[Event]:
    """A whole study: large batches need strong clipping, and without any they diverge; one trial is stopped."""
    draw = random.Random(7)
    started = study_started({CLIP_FACTOR: clip_factors, "batch_size": batch_sizes}, seeds, epochs)
    events: list[Event] = [started]
    now = START + 10
    for trial in started["trials"]:
        clip_factor, batch_size = trial["point"][CLIP_FACTOR], trial["point"]["batch_size"]
        best_factor = 0.02 if batch_size <= 64 else 0.01
        distance = abs(math.log2((0.32 if clip_factor is None else clip_factor) / best_factor))
        final = 0.972 - 0.012 * distance - (0.02 if batch_size > 64 else 0)
        top1 = [
            round(360 * final * (1 - math.exp(-2.1 * (epoch + 0.4) / 2.2)) + draw.uniform(-2, 2)) / 360
            for epoch in range(epochs)
        ]
        seconds = draw.uniform(30, 34) * (0.8 if batch_size > 64 else 1)
        state, reason = "finished", None
        if clip_factor is None and batch_size > 64:
            top1 = [0.3, 0.21, math.nan]
            state, reason = "diverged", "train_loss was NaN in epoch 3"
        elif clip_factor == 0.005 and batch_size > 64:
            top1, state, reason = top1[:3], "stopped", "ASHA: below the best third after epoch 3"
        lines = trial_events(trial["name"], now, top1, state, reason, seconds)
        events += lines
        now = lines[-1]["time"] + 1
    ended: StudyEnded = {
        "event": "study_ended",
        "time": now,
        "state": "finished",
        "wall_seconds": now - START,
    }
    return [*events, ended]


def state_of(events: Iterable[Event]) -> StudyState:
    """The state of a study after these events."""
    state = StudyState()
    for event in events:
        state.apply(event)
    return state


def write_journal(directory: Path, events: Sequence[Event]) -> Path:
    """Append the events to the journal of the study in ``directory``, and return its path."""
    with Journal(directory / JOURNAL_FILE) as journal:
        for event in events:
            journal.append(event)
    return directory / JOURNAL_FILE
