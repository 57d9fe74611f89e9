"""What workers are given: the configuration of a leg, and of a slot. It travels with the function that Ray runs."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.study.decisions import Leg
from nfnet_ray.study.halving import with_schedule_of
from nfnet_ray.study.study import Trial
from nfnet_ray.tracking.trial_progress import TrialProgress

SECONDS_BETWEEN_RESIZES = 60.0
"""The default of Ray Train's ``elastic_resize_monitor_interval_s``; a resize costs the start of a worker group."""

SECONDS = "_seconds"
"""The end of the names of the clock's phases among the metrics."""

COMPILED_FOLDER = "compiled"
"""The folder in a study's directory for the compiled code of its trials; a training has it beside the checkpoints."""


class ResourceValues(TypedDict):
    """:class:`WorkerResources` as plain values."""

    workers: int
    cpus: int
    gpus: float
    min_workers: int | None


class SpentValues(TypedDict):
    """:class:`nfnet_ray.training.run.Spent` as plain values."""

    clock: dict[str, float]
    joules: float


class WorkerConfig(TypedDict):
    """A leg, as the plain values that its workers are given. None means the default of ``training/``."""

    name: str
    """The trial's name."""
    recipe: dict[str, Any]
    data_fingerprint: str
    """The fingerprint of the data with which the study began."""
    directory: str
    """The trial's own folder."""
    checkpoints: str
    """A path or URI that all workers share."""
    resources: ResourceValues
    seconds_between_checkpoints: float | None
    hang_seconds: float | None
    force: bool
    """Whether to resume with other settings or other data."""
    mailbox: str
    """The name of the leg's :class:`~nfnet_ray.cluster.mailbox.Mailbox` and Register: no other leg has it."""
    until_epoch: int | None
    """The epoch after which the training pauses; None: it runs to its end."""
    until_seconds: float | None
    """The seconds of training after which it pauses, at the end of an epoch; None: there is no such limit."""
    epochs_before: int
    """The epochs of the complete schedules that the trial has trained before this one."""
    schedule_epochs: int | None
    """The length of this schedule, if the trial trains several."""
    spent: SpentValues | None
    """The time and energy that these epochs have taken."""
    forms: dict[str, dict[str, Any]]
    """{shape of a step: the form chosen for it}, as the study's journal has them (:mod:`nfnet_ray.cluster.forms`)."""
    forms_register: str
    """The name of the Register in which the study's trials agree on further forms."""
    compiled: str
    """A path or URI, which all workers share, of the folder for compiled code."""


class SlotConfig(TypedDict):
    """A slot, as the plain values that its worker group is given: what all of its legs have in common."""

    run: str
    """The name of the slot's Register, in which the workers find their next leg."""
    directory: str
    """The folder in which Ray Train keeps its own notes on the group."""
    resources: ResourceValues
    hang_seconds: float | None
    resize_seconds: float


@dataclass(frozen=True)
class TrainingOptions:
    """How a training run is guarded against failures. None means the default of ``training/``.

    ``checkpoints`` is a path or URI that all nodes share, by default in the training's own directory.
    """

    checkpoints: str | None = None
    checkpoint_seconds: float | None = None
    hang_seconds: float | None = None
    force: bool = False


def worker_config(
    trial: Trial,
    data_fingerprint: str,
    directory: Path,
    resources: WorkerResources,
    options: TrainingOptions | None = None,
    *,
    leg: Leg | None = None,
    before: TrialProgress | None = None,
    forms: Mapping[str, Mapping[str, Any]] | None = None,
    forms_register: str | None = None,
    compiled: str | None = None,
) -> WorkerConfig:
    """The configuration of a trial's workers.

    Args:
        data_fingerprint: the fingerprint of the data with which the study began.
        directory: the trial's own folder.
        leg: the part of the training that the workers do, by default all of it.
        before: how far the trial is.
        forms: the forms of steps that are chosen already.
        forms_register: where the trial agrees with others on further forms; None: it chooses its own.
        compiled: the folder for compiled code, by default beside the checkpoints.
    """
    options = options or TrainingOptions()
    length = leg.schedule_epochs if leg else None
    # Each complete schedule is a training of its own, with checkpoints of its own.
    folder = directory / "checkpoints" if length is None else directory / "checkpoints" / f"epochs-{length}"
    # Random, so that no other driver reads it.
    mailbox = f"{trial.name}-{secrets.token_hex(8)}"
    checkpoints = options.checkpoints or str(folder)
    return {
        "name": trial.name,
        "recipe": (trial.recipe if length is None else with_schedule_of(trial.recipe, length)).to_values(),
        "data_fingerprint": data_fingerprint,
        "directory": str(directory),
        "checkpoints": checkpoints,
        "resources": cast(ResourceValues, asdict(resources)),
        "seconds_between_checkpoints": options.checkpoint_seconds,
        "hang_seconds": options.hang_seconds,
        "force": options.force,
        "mailbox": mailbox,
        "until_epoch": leg.until if leg and length is None else None,
        "until_seconds": leg.until_seconds if leg else None,
        "epochs_before": leg.epochs_before if leg else 0,
        "schedule_epochs": length,
        "spent": _spent(before, leg.epochs_before) if leg and before and leg.epochs_before else None,
        "forms": {shape: dict(choice) for shape, choice in (forms or {}).items()},
        "forms_register": forms_register or mailbox,
        "compiled": compiled or beside_checkpoints(checkpoints, COMPILED_FOLDER),
    }


def beside_checkpoints(place: str, name: str) -> str:
    """The path or URI of a folder next to the checkpoints of a trial.

    >>> beside_checkpoints("runs/agc/trials/x/checkpoints/epochs-3", "stacks")
    'runs/agc/trials/x/stacks'
    >>> beside_checkpoints("s3://bucket/checkpoints?region=eu", "stacks")
    's3://bucket/stacks?region=eu'
    """
    folder, mark, options = place.partition("?") if "://" in place else (place, "", "")
    above = re.sub(r"/checkpoints(/epochs-\d+)?$", "", folder.rstrip("/"))
    return f"{above}/{name}{mark}{options}"


def slot_config(
    number: int, directory: Path, resources: WorkerResources, hang_seconds: float | None = None
) -> SlotConfig:
    """The configuration of the worker group in slot ``number``; ``directory`` is where Ray Train keeps its notes."""
    return {
        "run": f"slot-{number}-{secrets.token_hex(8)}",
        "directory": str(directory),
        "resources": cast(ResourceValues, asdict(resources)),
        "hang_seconds": hang_seconds,
        "resize_seconds": SECONDS_BETWEEN_RESIZES,
    }


def _spent(trial: TrialProgress, epoch: int) -> SpentValues:
    """The time and energy of a trial up to an epoch, at which it has paused."""
    metrics = trial.epochs[epoch]
    phases = {
        name.removesuffix(SECONDS): value
        for name, value in metrics.items()
        if name.endswith(SECONDS) and value is not None
    }
    clock = phases | {"taken_at": trial.held_since, "is_pause": 1.0}
    return {"clock": clock, "joules": metrics.get("gpu_energy_joules") or 0.0}


def tune_space(configs: Sequence[WorkerConfig]) -> dict[str, Any]:
    """The parameters of a Tune trial that trains a leg, or several legs as one program."""
    return {"trial": configs[0], **({"beside": list(configs[1:])} if len(configs) > 1 else {})}


def lanes_of(space: Mapping[str, Any]) -> list[WorkerConfig]:
    """The configurations of the legs in a :func:`tune_space`."""
    return [space["trial"], *space.get("beside", ())]
