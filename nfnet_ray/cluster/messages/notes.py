"""What workers and Ray Train's controller tell the driver, as JSON values through the mailbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nfnet_ray.tracking.events import TrialOutcome

StopReason = Literal["asked", "resized", "preempted", "terminated"]
"""Why a worker stops at a checkpoint: the driver asked, the group gets another size, its machine is taken back, or
its process was sent SIGTERM."""

Ending = Literal["finished", "paused", "stopped", "diverged", "failed"]
"""How a training may end: as ``nfnet_ray/training/loop.py`` says, or by an error."""


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
    """From the first worker of a group: an epoch has ended."""

    metrics: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FormChosen:
    """From the first worker: it has timed the forms of its ``shape``, and waits for the driver's choice."""

    shape: str
    choice: dict[str, Any]


@dataclass(frozen=True)
class WorkerSays:
    """From the first worker: a sentence for the person who watches the study."""

    text: str


@dataclass(frozen=True)
class WorkerHung:
    """From the watchdog of one of ``workers`` workers that hangs. The one at fault has the fewest ``heartbeats``."""

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


@dataclass(frozen=True)
class FinalReport:
    """How a training ended: the last report of its workers, as a note or through Tune."""

    outcome: Ending
    """``stopped``: it was asked to stop, and has kept a checkpoint if there was anything to keep."""
    reason: str | None = None
    epochs: int = 0
    stops_study: bool = False
    """Whether no other trial can do better: the storage is full, or the data has changed."""
    refused: bool = False
    """Whether it is an error that a person can put right, for which the command exits with 2."""

    @property
    def trial_outcome(self) -> TrialOutcome:
        """The trial's state in the journal; an interrupted trial is run again when the study resumes."""
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
        """The final report in a report to Tune; None if it is another kind of report."""
        if "outcome" not in result:
            return None
        return FinalReport(
            result["outcome"],
            result["outcome_reason"],
            result["epoch"],
            result["stops_study"],
            result["refused"],
        )


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
