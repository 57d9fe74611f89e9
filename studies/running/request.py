"""A user's request, on a command line or from Python, for a study or for a single training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.digits import ALL_DIGITS, DigitsPart
from nfnet_ray.data.files.dataset import DatasetSummary
from nfnet_ray.errors import UserError
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.state import StudyState
from studies.running.program import MadeWeights
from studies.running.runner import Runner, WorkerDemand

DEFAULT_STORAGE = Path("runs")
CAPS = ("max_hours", "max_gpu_hours", "max_cost", "price_per_hour")


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """A request, with a field for each flag. None means that the flag was not given.

    A subclass adds the fields that it alone has, and says which study they mean and how it is run.
    """

    address: str | None = None
    storage: Path = DEFAULT_STORAGE
    tracking_uri: str | None = None
    name: str | None = None
    may_continue: bool = False
    resume: str | None = None
    extend: str | None = None
    data: Path | None = None
    verify: str = "quick"
    epochs: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """{dotted name of a Recipe field: value}, of ``--set``."""
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    plan: bool = False
    notes: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    notify: str | None = None
    """The address of a webhook. It is a secret, and never in the journal."""
    max_hours: float | None = None
    max_gpu_hours: float | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None
    price_per_kwh: float | None = None
    """For a plan only."""

    @property
    def begun(self) -> str | None:
        """The name of the study, begun earlier, that is resumed or extended."""
        return self.resume or self.extend

    @property
    def caps(self) -> dict[str, float]:
        """{name: value} of the caps and the price of an hour that were given; infinity removes a cap."""
        given = {name: getattr(self, name) for name in CAPS}
        return {name: value for name, value in given.items() if value is not None}

    def check_flags(self) -> None:
        """Raises UserError if a flag and ``--set`` give the same field of the Recipe two values."""
        for flag, (name, value) in self.same_as().items():
            if value is not None and name in self.settings and str(value) != str(self.settings[name]):
                raise UserError(
                    f"{flag} {value} and --set {name}={self.settings[name]} contradict each other: leave one out"
                )

    def same_as(self) -> dict[str, tuple[str, Any]]:
        """{flag: (the Recipe's field that it sets, its value)} of the flags that do what ``--set`` does."""
        return {"--epochs": ("schedule.epochs", self.epochs), "--data": ("data.path", self.data)}

    @property
    def digits(self) -> DigitsPart:
        """The digits that are used without ``data``."""
        return ALL_DIGITS

    @property
    def made_weights(self) -> MadeWeights | None:
        """Weights that are made on first use."""
        return None

    @property
    def program_file(self) -> Path | None:
        """The file that asks the question; None for a study that was built in Python."""
        return None

    @property
    def can_extend(self) -> bool:
        """Whether a study that has ended can be given more of what is asked for."""
        return False

    @property
    def allows_other_data(self) -> bool:
        """Whether a resumed study may use other data than it began with."""
        return False

    @abstractmethod
    def fixed(self) -> dict[str, Any]:
        """{flag: its value} of what a resumed study has in its journal, so that it cannot be given again."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """{dotted name of a Recipe field: the value that was asked for}."""

    @abstractmethod
    def new_study(self, data: DatasetSummary, values: dict[str, Any], *, is_built_in: bool) -> Study:
        """The study that is meant, on a data set that is the built-in one or the user's."""

    @abstractmethod
    def resumed(self, study: Study, progress: StudyState) -> Study:
        """A study as it is resumed; ``study`` is as its journal began."""

    def extended(self, study: Study, data: DatasetSummary) -> Study:
        """The study that ``study``, as it has grown, is to become."""
        del data
        raise UserError(
            f"{study.name} is a training run, which has nothing to extend: resume it with --resume"
        )

    @abstractmethod
    def demand(self, before: WorkerDemand | None) -> WorkerDemand:
        """The requested resources of the workers. ``before`` are those of a resumed study."""

    @abstractmethod
    def runner(self, home: Path, started: StudyStarted | None, /) -> Runner:
        """The object that runs the trials. ``started`` is the first event of a resumed study."""
