"""What the processes of a run tell each other: every kind of message is a type, and is made here.

Knows no Ray. The :class:`WorkerConfig` of a Tune trial and the :class:`SlotConfig` of a worker group travel with the
function that Ray runs; notes and values go through :mod:`nfnet_ray.cluster.mailbox`; the reports of a Tune trial go
through Tune, as plain dictionaries.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast

from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.metric import METRIC
from nfnet_ray.study.decisions import Leg
from nfnet_ray.study.halving import with_schedule_of
from nfnet_ray.study.study import Trial
from nfnet_ray.tracking.events import TrialOutcome
from nfnet_ray.tracking.trial_progress import TrialProgress

T = TypeVar("T")

SECONDS_BETWEEN_RESIZES = 60.0
"""The default of Ray Train's ``elastic_resize_monitor_interval_s``; a resize costs the start of a worker group."""

SECONDS = "_seconds"
"""The end of the names of the clock's phases among the metrics."""

COMPILED_FOLDER = "compiled"
"""In a study's directory: what its trials compile, for each other. In a training's, it is beside the checkpoints."""

StopReason = Literal["asked", "resized", "preempted", "terminated"]
"""Why a worker stops at a checkpoint: the driver asked, the group gets another size, its machine is taken back, or
its process was sent SIGTERM."""

# --- from the driver to its workers ---------------------------------------------------------------


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
    """A leg as the plain values that its workers are given. None means the default of the training room."""

    name: str
    """The trial's."""
    recipe: dict[str, Any]
    data_fingerprint: str
    """Of the data that the study began with."""
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
    """The seconds of training after which it pauses, at the end of an epoch; None: it does not look at them."""
    epochs_before: int
    """The epochs of the complete schedules that the trial has trained before this one."""
    schedule_epochs: int | None
    """The length of this schedule, if the trial trains several."""
    spent: SpentValues | None
    """What these have taken."""
    forms: dict[str, dict[str, Any]]
    """{shape: the choice of a form}, as far as the study's journal has them (:mod:`nfnet_ray.cluster.forms`)."""
    forms_register: str
    """The name of the Register in which the study's trials agree on others."""
    compiled: str
    """A path or URI that all workers share, for what they compile."""


class SlotConfig(TypedDict):
    """A slot as the plain values that its worker group is given: all that its legs have in common."""

    run: str
    """The name of the slot's Register, in which the workers find their next leg."""
    directory: str
    """Where Ray Train keeps its own notes on the group."""
    resources: ResourceValues
    hang_seconds: float | None
    resize_seconds: float


@dataclass(frozen=True)
class TrainingOptions:
    """How a training run guards itself. None means the default of the training room.

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

    ``data_fingerprint`` is that of the data that the study began with, ``directory`` the trial's own folder, ``leg``
    the part of the training that they do, by default all of it, and ``before`` how far the trial is. ``forms`` are
    those that are chosen already; without a ``forms_register`` the trial agrees with no other one. What is compiled is
    kept in ``compiled``, by default beside the checkpoints.
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
    """What Tune is given for a leg, or for legs that are trained as one program."""
    return {"trial": configs[0], **({"beside": list(configs[1:])} if len(configs) > 1 else {})}


def lanes_of(space: Mapping[str, Any]) -> list[WorkerConfig]:
    """The configurations of a :func:`tune_space`."""
    return [space["trial"], *space.get("beside", ())]


# --- reports to Tune ------------------------------------------------------------------------------

LANE = "lane"
"""Key of the name of the trial that a report is of, where several are trained as one program."""
TEXTS = "texts"
"""Key of what is known of an epoch besides its metrics."""
METRICS = "metrics"
"""Key of all metrics of an epoch, apart from Tune's own; the one that a scheduler compares is next to it."""

SAID = "said"
"""Key of a line for the person who watches the study."""
FORM_SHAPE, FORM = "form_shape", "form"
"""Keys of the report of a form that a trial has chosen; its values are text, so that Tune keeps no statistics."""

Ending = Literal["finished", "paused", "stopped", "diverged", "failed"]
"""Those of ``nfnet_ray/training/loop.py``, and an error."""


def epoch_result(metrics: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The report of an epoch, as Tune is given it.

    Its metrics are pairs, and not a dictionary: of each number in a dictionary Tune keeps averages and extremes with
    the trial for as long as the study lasts. For 24 metrics that took 77 kB of the driver's memory in each leg of a
    trial; as pairs they take 14 kB.
    """
    result = {"epoch": metrics["epoch"], METRIC: metrics[METRIC], METRICS: tuple(metrics.items())}
    return {**result, TEXTS: dict(texts)} if texts else result


def form_result(shape: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """The report of the form that a trial has chosen, as Tune is given it."""
    return {FORM_SHAPE: shape, FORM: json.dumps(choice)}


def form_in(result: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The shape and the choice in what Tune was given; None if it is another report."""
    return (result[FORM_SHAPE], json.loads(result[FORM])) if FORM in result else None


def said_result(text: str) -> dict[str, Any]:
    """The report of a line that a person should read, as Tune is given it."""
    return {SAID: text}


def of_lane(lane: str | None, result: dict[str, Any]) -> dict[str, Any]:
    """A report to Tune with the name of the trial that it is of, where Tune cannot know."""
    return result if lane is None else {**result, LANE: lane}


def metrics_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics in the report of an epoch."""
    return dict(result[METRICS])


def with_epochs_of_trial(
    metrics: Mapping[str, Any], epochs_before: int, schedule_epochs: int | None
) -> dict[str, Any]:
    """The metrics of an epoch, which a trial counts over all schedules that it has trained.

    ``schedule_epochs`` is the length of the schedule if the trial trains several, one after the other; it has trained
    ``epochs_before`` epochs with the ones before.
    """
    if schedule_epochs is None:
        return dict(metrics)
    own = {"schedule_epoch": metrics["epoch"], "schedule_epochs": schedule_epochs}
    return {**metrics, **own, "epoch": metrics["epoch"] + epochs_before}


@dataclass(frozen=True)
class FinalReport:
    """How a training ended: the last that its workers report. It is a note too."""

    outcome: Ending
    """``stopped``: it was asked to stop, and has kept a checkpoint if there was anything to keep."""
    reason: str | None = None
    epochs: int = 0
    stops_study: bool = False
    """Whether no other trial can do better: the storage is full, or the data has changed."""
    refused: bool = False
    """Whether it is an error of use, for which the command exits with 2."""

    @property
    def trial_outcome(self) -> TrialOutcome:
        """What the journal says of the trial; an interrupted one is run again when the study resumes."""
        if self.stops_study or self.outcome == "stopped" or self.outcome == "paused":
            return "interrupted"
        return self.outcome

    def to_result(self) -> dict[str, Any]:
        """The report as Tune is given it."""
        return {
            "outcome": self.outcome,
            "outcome_reason": self.reason,
            "epoch": self.epochs,
            "stops_study": self.stops_study,
            "refused": self.refused,
        }

    @staticmethod
    def from_result(result: Mapping[str, Any]) -> FinalReport | None:
        """The final report in what Tune was given; None if it is the report of an epoch."""
        if "outcome" not in result:
            return None
        return FinalReport(
            result["outcome"],
            result["outcome_reason"],
            result["epoch"],
            result["stops_study"],
            result["refused"],
        )


# --- notes from the workers and the controller to the driver --------------------------------------


@dataclass(frozen=True)
class AttemptStarted:
    """From the first worker: a group of ``workers`` trains from the checkpoint of ``step``.

    ``legs_before`` is the number of legs that these processes have trained before this one.
    """

    attempt: int
    workers: int
    step: int
    legs_before: int = 0


@dataclass(frozen=True)
class EpochEnded:
    """From the first worker of a group."""

    metrics: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FormChosen:
    """From the first worker: it has timed the forms of its ``shape``, and waits until the driver says which holds."""

    shape: str
    choice: dict[str, Any]


@dataclass(frozen=True)
class WorkerSays:
    """From the first worker: a line that a person should read."""

    text: str


@dataclass(frozen=True)
class WorkerHung:
    """From the watchdog of one of ``workers`` workers. The one to blame has the fewest ``heartbeats``."""

    rank: int
    workers: int
    phase: str
    heartbeats: int
    waits_for_others: bool
    silent_seconds: float
    stacks: str
    """The folder or URI with the stacks of the workers' threads."""


@dataclass(frozen=True)
class CheckpointKept:
    """From the first worker: the group has kept a checkpoint because of ``reason``, and ends."""

    reason: StopReason


@dataclass(frozen=True)
class GroupResizing:
    """From the controller: the group will be started again with another number of workers."""

    before: int
    after: int


@dataclass(frozen=True)
class WorkersLost:
    """From the controller: workers died or failed. ``preempted``: because a machine was taken back."""

    reason: str
    preempted: bool


@dataclass(frozen=True)
class WorkersReplaced:
    """From the first worker: the leg is over, and new processes will train the next one, because of ``reason``."""

    reason: str


Note = (
    AttemptStarted
    | EpochEnded
    | FormChosen
    | WorkerSays
    | WorkerHung
    | CheckpointKept
    | GroupResizing
    | WorkersLost
    | WorkersReplaced
    | FinalReport
)
_NOTES: dict[str, type[Note]] = {
    kind.__name__: kind
    for kind in (
        AttemptStarted,
        EpochEnded,
        FormChosen,
        WorkerSays,
        WorkerHung,
        CheckpointKept,
        GroupResizing,
        WorkersLost,
        WorkersReplaced,
        FinalReport,
    )
}


def note_to_values(note: Note) -> dict[str, Any]:
    """A note as JSON values."""
    return {"kind": type(note).__name__, **asdict(note)}


def note_from_values(values: Mapping[str, Any]) -> Note:
    """The note that became those JSON values."""
    fields = dict(values)
    return _NOTES[fields.pop("kind")](**fields)


# --- values that all processes of a run can read --------------------------------------------------


@dataclass(frozen=True)
class Name(Generic[T]):
    """The name of a value in a :class:`~nfnet_ray.cluster.mailbox.Register`, with the type of that value."""

    text: str


class AttemptCount(TypedDict):
    """``attempt`` is the latest; ``count`` attempts in a row have begun at the checkpoint of ``step``."""

    attempt: int
    step: int
    count: int


class ErrorSeen(TypedDict):
    """An error that a worker raised, and the step of the checkpoint that its attempt began at."""

    step: int
    error: str


class FailedStarts(TypedDict):
    """``count`` starts of a slot's workers in a row have failed, the last one for the reason ``why``."""

    count: int
    why: str


STOP: Name[bool] = Name("stop")
"""The driver wants the workers to keep a checkpoint and to end."""
YIELD: Name[bool] = Name("yield")
"""The controller wants a checkpoint before it resizes the group; the workers unset it when it is kept."""
PROGRESS: Name[float] = Name("progress")
"""Epochs that are done, fractions included."""
HAS_TRAINED: Name[bool] = Name("has_trained")
"""Set after the first step: from then on there is something to keep."""
ATTEMPTS: Name[AttemptCount] = Name("attempts")
LAST_LOSS: Name[str] = Name("last_loss")
"""Why workers were lost the last time, for the sentence that ends a training after too many losses."""
ENDED: Name[bool] = Name("ended")
"""The leg is over: a group that is started again must not train it."""
RESERVATION: Name[str] = Name("reservation")
"""Under which name the training's controller has reserved machines."""


def last_error_of(rank: int) -> Name[ErrorSeen]:
    """The name of the last error that could be the program's or a machine's, of one worker."""
    return Name(f"last_error-{rank}")


def form_of(shape: str) -> Name[dict[str, Any]]:
    """The name of the form that a study's trials of a shape are trained in."""
    return Name(f"form/{shape}")


def claim_of(shape: str) -> Name[str]:
    """The name of who finds it out: the mailbox of its leg, and a number that grows with each sign of life."""
    return Name(f"claim/{shape}")


def begun_of(shape: str) -> Name[dict[str, int]]:
    """The name of {form: how many processes have begun to compile it and not come to an end} of a shape."""
    return Name(f"begun/{shape}")


def compiled_of(file: str) -> Name[str]:
    """The name of the hash of a file of compiled code that a worker has written."""
    return Name(f"compiled/{file}")


# --- values of a slot -----------------------------------------------------------------------------

LEG: Name[WorkerConfig] = Name("leg")
"""What the slot's workers have to train now, or have trained last."""
READY: Name[bool] = Name("ready")
"""The slot's workers are up, and have joined each other."""
CLOSE: Name[bool] = Name("close")
"""The workers end, because no leg is left."""
FAILED_STARTS: Name[FailedStarts] = Name("failed_starts")
"""How often the slot's workers were started in vain since they were up last."""
RESTARTS: Name[bool] = Name("restarts")
"""The workers end by an error because the next leg needs new processes; no leg has lost its workers by it."""
