"""How fast earlier trials ran, from their journals: what a plan estimates by where there are any like its own."""

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

# The newest ones: older ones ran with older code, and each journal takes time to read.
MOST_STUDIES = 30


@dataclass(frozen=True)
class MeasuredTrial:
    """How long the parts of an earlier trial took.

    Attributes:
        kind: what has to be the same for its pace to be that of another trial (:func:`kind_of`).
        seconds_per_multiply_add: of training, with the waiting for data; SAM's ascent counts as arithmetic.
        eval_seconds: for each validation image, of all evaluations of an epoch.
        checkpoint_seconds: for each epoch, with the reports.
        startup_seconds: until its first batch, with a warm-up.
        memory_bytes: the peak of a worker, or of its GPU's memory, in its last epochs; None where it is unknown.
        watts: of all its GPUs, in its last epochs; None where it is unknown.
    """

    kind: tuple[Any, ...]
    seconds_per_multiply_add: float
    eval_seconds: float
    checkpoint_seconds: float
    startup_seconds: float
    memory_bytes: float | None
    watts: float | None


def kind_of(recipe: Recipe, worker: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values that decide the pace of a trial: network, image size, batch, precision, and its workers' resources."""
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
    """The trials of the newest studies in ``storage`` that ran on hardware which ``is_same``, with at least an epoch.

    Journals that cannot be read are left out: they are somebody else's problem.
    """
    journals = [path for path in storage.glob(f"*/{JOURNAL_FILE}") if path.is_file()]
    journals.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    measured: list[MeasuredTrial] = []
    for journal in journals[:MOST_STUDIES]:
        try:
            first = next(read_events(journal))[0]
            if first["event"] != "study_started" or not is_same(first["study"]["hardware"]):
                continue  # after one line: the rest may be long
            # Only a trial of several schedules needs all of its epochs.
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
        if progress.epoch and progress.lanes == 1:  # the seconds of a lane are not those of a trial alone
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
    """Multiply-adds of a trial's training so far, schedule by schedule if it has trained several."""
    if progress.epochs[progress.epoch].get("schedule_epochs") is None:
        return multiply_adds(recipe, data, progress.epoch)
    schedules = Counter(metrics.get("schedule_epochs") for metrics in progress.epochs.values())
    return math.fsum(
        multiply_adds(recipe if length is None else with_schedule_of(recipe, int(length)), data, epochs)
        for length, epochs in schedules.items()
    )


def like(trials: Iterable[MeasuredTrial], kind: tuple[Any, ...]) -> list[MeasuredTrial]:
    """The measured trials of one kind."""
    return [trial for trial in trials if trial.kind == kind]
