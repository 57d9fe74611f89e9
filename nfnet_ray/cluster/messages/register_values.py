"""Values that all processes of a run can read and set in a :class:`~nfnet_ray.cluster.mailbox.Register`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypedDict, TypeVar

from nfnet_ray.cluster.messages.configs import WorkerConfig

T = TypeVar("T")


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
"""The number of epochs that are done, with fractions."""
HAS_TRAINED: Name[bool] = Name("has_trained")
"""Set after the first step: from then on there is something to keep."""
ATTEMPTS: Name[AttemptCount] = Name("attempts")
LAST_LOSS: Name[str] = Name("last_loss")
"""Why workers were lost last, for the message that ends a training after too many losses."""
ENDED: Name[bool] = Name("ended")
"""The leg is over: a group that is started again must not train it."""
RESERVATION: Name[str] = Name("reservation")
"""The name under which the training's controller has reserved machines."""


def last_error_of(rank: int) -> Name[ErrorSeen]:
    """The name of a worker's last error that may be due to the program or to a machine."""
    return Name(f"last_error-{rank}")


def form_of(shape: str) -> Name[dict[str, Any]]:
    """The name of the form that a study's trials of a shape are trained in."""
    return Name(f"form/{shape}")


def claim_of(shape: str) -> Name[str]:
    """The name of the claim of the leg that times the forms: its mailbox, and a count of its signs of life."""
    return Name(f"claim/{shape}")


def begun_of(shape: str) -> Name[dict[str, int]]:
    """The name of {form: how many processes have begun to compile it and not finished} for a shape."""
    return Name(f"begun/{shape}")


def compiled_of(file: str) -> Name[str]:
    """The name of the hash of a file of compiled code that a worker has written."""
    return Name(f"compiled/{file}")


# The values of a slot, which outlive its legs.

LEG: Name[WorkerConfig] = Name("leg")
"""The leg that the slot's workers train now, or have trained last."""
READY: Name[bool] = Name("ready")
"""The slot's workers are up, and have joined each other."""
CLOSE: Name[bool] = Name("close")
"""The workers end, because no leg is left."""
FAILED_STARTS: Name[FailedStarts] = Name("failed_starts")
"""How often starting the slot's workers has failed since they were last up."""
RESTARTS: Name[bool] = Name("restarts")
"""The workers end with an error because the next leg needs new processes; no leg has lost its workers."""
