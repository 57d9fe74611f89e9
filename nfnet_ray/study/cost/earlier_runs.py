"""Reads from journals how fast earlier trials ran, so that a plan can be estimated from similar trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.models.published import resolve
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.plan import multiply_adds
from nfnet_ray.study.halving import with_schedule_of
from nfnet_ray.tracking.descriptions import Hardware, WorkerDescription
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.tracking.trial_progress import TrialProgress

# Only the newest studies are read: older ones ran older code, and each journal takes time to read.
MOST_STUDIES = 30


@dataclass(frozen=True)
class MeasuredTrial:
    """The time that each part of an earlier trial took.

    Attributes:
        kind: the values that two trials must share for their paces to be comparable (:func:`kind_of`).
        seconds_per_multiply_add: of training, including waiting for data; SAM's ascent counts as arithmetic.
        eval_seconds: the time for each validation image, over all evaluations of an epoch.
        checkpoint_seconds: the time for each epoch, including reports.
        startup_seconds: the time until the first batch, including a warm-up.
        memory_bytes: the peak memory of a worker, or of its GPU, in the trial's last epochs; None if unknown.
        watts: the power of all the trial's GPUs in its last epochs; None if unknown.
    """

    kind: tuple[Any, ...]
    seconds_per_multiply_add: float
    eval_seconds: float
    checkpoint_seconds: float
    startup_seconds: float
    memory_bytes: float | None
    watts: float | None


def kind_of(recipe: Recipe, worker: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the values that determine a trial's pace: network, image size, batch, precision and workers."""
    resolved = resolve(recipe)
    model = resolved.model
    return (
        model.name,
        tuple(sorted((name, repr(value)) for name, value in model.overrides.chosen().items())),
        model.trained,
        resolved.data.image_size,
        resolved.batch_size,
        resolved.precision,
        resolved.compile,
        resolved.activation_memory_budget,
        resolved.capture,
        worker["workers"],
        worker["cpus"],
        worker["gpus"],
    )


def earlier_trials(storage: Path, is_same: Callable[[Hardware], bool]) -> list[MeasuredTrial]:
    """Returns the trials, with at least one epoch, of the newest studies in ``storage`` on hardware that ``is_same``.

    Journals that cannot be read are skipped, because they do not concern the study that is planned.
    """
    journals = [path for path in storage.glob(f"*/{JOURNAL_FILE}") if path.is_file()]
    journals.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    measured: list[MeasuredTrial] = []
    for journal in journals[:MOST_STUDIES]:
        try:
            first = next(read_events(journal))[0]
            if first["event"] != "study_started" or not is_same(first["study"]["hardware"]):
                continue  # decided by the first line, as the rest may be long
            # All epochs are needed only for trials of several schedules.
            halving = first["study"]["halving"]
            brief = halving is None or halving.get("schedule", "truncated") == "truncated"
            measured += _measured(*StudyState.read(journal.parent, last_epochs_only=brief))
        except (StopIteration, UserError, KeyError, TypeError, ValueError):
            continue
    return measured


def _measured(state: StudyState, started: StudyStarted) -> Iterator[MeasuredTrial]:
    described = started["study"]
    told = described["data"]
    data = DatasetSummary(
        Path(told["path"]),
        told["train_images"],
        told["validation_images"],
        ("",) * told["classes"],
        told["fingerprint"],
        None,
    )
    for plan in state.plans.values():
        progress = state.trials[plan["name"]]
        if progress.epoch and progress.lanes == 1:  # a lane of a cohort has another pace
            recipe = Recipe.from_values({**described["recipe"], **plan["recipe"]})
            yield _of_trial(progress, recipe, data, described["worker"])


def _of_trial(
    progress: TrialProgress, recipe: Recipe, data: DatasetSummary, worker: WorkerDescription
) -> MeasuredTrial:
    metrics = progress.epochs[progress.epoch]

    def total(*phases: str) -> float:
        return math.fsum(metrics.get(f"{phase}_seconds") or 0.0 for phase in phases)

    def peak(*names: str) -> float | None:
        values = [epoch.get(name) for epoch in progress.epochs.values() for name in names]
        return max((value for value in values if value is not None), default=None)

    return MeasuredTrial(
        kind=kind_of(recipe, worker),
        seconds_per_multiply_add=total("train", "data_wait") / of_schedules(recipe, data, progress),
        eval_seconds=total("eval") / progress.epoch / data.validation_images,
        checkpoint_seconds=total("checkpoint", "report") / progress.epoch,
        startup_seconds=total("startup", "warmup"),
        memory_bytes=peak("peak_memory_bytes", "peak_resident_bytes"),
        watts=peak("gpu_power_watts"),
    )


def of_schedules(recipe: Recipe, data: DatasetSummary, progress: TrialProgress) -> float:
    """Returns the multiply-adds of a trial's training so far, schedule by schedule if it has trained several."""
    if progress.epochs[progress.epoch].get("schedule_epochs") is None:
        return multiply_adds(recipe, data, progress.epoch)
    schedules = Counter(metrics.get("schedule_epochs") for metrics in progress.epochs.values())
    return math.fsum(
        multiply_adds(recipe if length is None else with_schedule_of(recipe, int(length)), data, epochs)
        for length, epochs in schedules.items()
    )


def like(trials: Iterable[MeasuredTrial], kind: tuple[Any, ...]) -> list[MeasuredTrial]:
    """Returns the measured trials of one kind."""
    return [trial for trial in trials if trial.kind == kind]
