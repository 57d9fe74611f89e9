"""The plan of a study, as ``nfnet_ray.run(..., plan=True)`` returns it: the numbers that ``--plan`` prints."""

from __future__ import annotations

from dataclasses import dataclass, field

from nfnet_ray.study.cost.forecast import Span
from nfnet_ray.study.study import Study
from nfnet_ray.wording import clock_time, count


@dataclass(frozen=True, repr=False)
class StudyPlan:
    """The trials of a study and their cost; for a study that has begun, those that are left.

    A :class:`~nfnet_ray.study.cost.forecast.Span` has the ends ``low`` and ``high`` of an estimate. None: unknown, as
    no earlier run is like it and no trial could be measured.

    Attributes:
        study: the study; ``study.trials()`` are its trials with their Recipes.
        trials: number of trials that have not ended, without those that results will add.
        images: training images that these will see if none is stopped early.
        multiply_adds: what their training takes then.
        parameters: of the network of the study's own Recipe.
        trials_at_once: number of trials that run at once.
        measured: where the pace is from, in words.
        hours: until the end, if early stopping lets as few trials continue as it can.
        most_hours: if no trial is stopped early.
        accelerator_hours: of all trials; GPU-hours, or worker-hours without GPUs.
        most_accelerator_hours: if no trial is stopped early.
        cost: at ``price_per_hour``; None without a price, too.
        kwh: of the GPUs.
        memory_bytes: the peak of one worker, on its GPU if it has one.
        disk_bytes: for checkpoints, at most.
        text: what was printed; ``print(plan)`` prints it again.
    """

    study: Study
    trials: int
    images: int
    multiply_adds: float
    parameters: int
    trials_at_once: int = 0
    measured: str = ""
    hours: Span | None = None
    most_hours: float | None = None
    accelerator_hours: Span | None = None
    most_accelerator_hours: float | None = None
    cost: Span | None = None
    kwh: Span | None = None
    memory_bytes: float | None = None
    disk_bytes: int = 0
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        """How much there is to train, and for how long, on a line: a notebook shows this."""
        ends = [] if self.hours is None else [self.hours.low, self.hours.high]
        time = " to ".join(dict.fromkeys(clock_time(3600 * end) for end in ends)) or "unknown"
        trials = f"{count(self.trials, 'trial')} to train, {self.trials_at_once} at once"
        return f"<{type(self).__name__} {self.study.name!r}: {trials}; time: {time}>"
