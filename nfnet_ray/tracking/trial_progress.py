"""The progress of one trial of a study, and the states in which it can end."""

from __future__ import annotations

from collections.abc import Mapping, Reversible
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from nfnet_ray.tracking.epoch_metrics import Metrics, brief, images_per_second, packed
from nfnet_ray.tracking.events import EpochEnded, TrialOutcome

ENDED_FOR_GOOD: tuple[TrialOutcome, ...] = ("finished", "stopped", "diverged")
"""States in which a resumed study does not continue a trial; failed and interrupted trials are run again."""
ENDED: tuple[TrialOutcome, ...] = (*ENDED_FOR_GOOD, "failed")
"""States of trials that have ended, for good or until the study is resumed."""
LOST: tuple[TrialOutcome, ...] = ("diverged", "failed")
"""States in which a trial ended without a usable accuracy."""


@dataclass
class TrialProgress:
    """The progress of one trial.

    Attributes:
        state: ``running``, ``paused`` at a rung, or the state in which it ended; None before it has started.
        reason: the reason why it ended in this state, or why it continues; None if there is none.
        attempts: the number of times that it was started.
        epochs: {epoch: its metrics}; the later ones if an epoch was reported twice.
        correct_images: {epoch: which validation images were correct, as text}, for epochs at which it paused or
            finished.
        clipping: {epoch: what AGC clipped since the previous record, as text}, for at most 32 epochs.
        conditions: {epoch: the conditions under which it was trained from that epoch on, as text}.
        sessions: the indices in ``StudyState.sessions`` of the drivers under which its epochs were trained.
        lanes: the number of trials that were started with it as one program, including itself; 1 if it was started
            alone.
        reused: whether the workers of its latest start had trained another trial before; None if the journal does not
            say.
        outcome: the state in which it last ended, which is kept when it is started again; None if it never ended.
        paused: {rung: the epoch at which the trial paused there}; a rung is an epoch, or seconds of training.
        promoted: {rung: the reason why the trial continues after it}.
        accelerator_seconds: the accelerator-seconds of all attempts up to ``held_since``. A worker without GPUs counts
            as one accelerator.
        accelerators: the number that it holds now; 0 while it does not run.
        held_since: the Unix time in seconds from which it has held them.
    """

    name: str
    state: TrialOutcome | str | None = None
    reason: str | None = None
    attempts: int = 0
    epochs: Mapping[int, Metrics] = field(default_factory=dict)
    correct_images: dict[int, str] = field(default_factory=dict)
    clipping: dict[int, str] = field(default_factory=dict)
    conditions: dict[int, str] = field(default_factory=dict)
    sessions: list[int] = field(default_factory=list)
    lanes: int = 1
    reused: bool | None = None
    outcome: TrialOutcome | None = None
    paused: dict[float, int] = field(default_factory=dict)
    promoted: dict[float, str] = field(default_factory=dict)
    accelerator_seconds: float = 0.0
    accelerators: float = 0.0
    held_since: float = 0.0

    @property
    def epoch(self) -> int:
        """The last epoch that was reported; 0 before the first."""
        return next(reversed(cast(Reversible[int], self.epochs)), 0)  # epochs are reported in order

    def last(self, metric: str) -> float | None:
        """Returns a metric of the last epoch; None if the epoch or the metric is missing."""
        return self.epochs[self.epoch].get(metric) if self.epochs else None

    @property
    def images_per_second(self) -> float | None:
        """Training images of all epochs per second of training; None before the first epoch."""
        number = self.epoch
        return images_per_second(number, self.epochs[number], self.epochs.get(number - 1)) if number else None

    def texts_of(self, epoch: int) -> dict[str, str]:
        """Returns {name: text} of the :data:`nfnet_ray.tracking.events.EPOCH_TEXTS` that an epoch has."""
        return {name: texts[epoch] for name, texts in self._texts.items() if epoch in texts}

    @property
    def _texts(self) -> dict[str, dict[int, str]]:
        return {
            "correct_images": self.correct_images,
            "clipping": self.clipping,
            "conditions": self.conditions,
        }

    def add_epoch(self, event: EpochEnded) -> None:
        """Adds an epoch that has been reported, possibly for the second time."""
        epoch = event["epoch"]
        # The epochs of an ended trial, which an extension may continue, are stored in an immutable form.
        epochs = self.epochs if isinstance(self.epochs, dict) else dict(self.epochs)
        epochs[epoch] = packed(event["metrics"])
        self.epochs = epochs
        told = cast(Mapping[str, Any], event)
        for name, texts in self._texts.items():
            if told.get(name) is not None:
                texts[epoch] = told[name]
            else:  # an epoch whose results differed when it was trained again
                texts.pop(epoch, None)

    def hold(self, accelerators: float, now: float) -> None:
        """Records that the trial holds this number of accelerators from ``now`` (Unix seconds) on."""
        self.accelerator_seconds = self.accelerator_seconds_at(now)
        self.accelerators, self.held_since = accelerators, now

    def accelerator_seconds_at(self, now: float) -> float:
        """Returns the accelerator-seconds of all attempts up to ``now``, in Unix seconds."""
        return self.accelerator_seconds + self.accelerators * max(0.0, now - self.held_since)

    def forget_details(self) -> None:
        """Keeps only what a driver needs of an ended trial: the texts and all metrics of its last epoch."""
        epoch = self.epoch
        self.epochs = brief(self.epochs)
        self.correct_images = {at: text for at, text in self.correct_images.items() if at == epoch}
        self.clipping = {at: text for at, text in self.clipping.items() if at == epoch}


def activity(
    trial: TrialProgress, *, resumed: bool = False
) -> Literal["running", "ready", "undecided", "over"]:
    """Returns what a trial does or waits for.

    When a study is ``resumed``, interrupted and failed trials are run again.
    """
    if trial.state == "running" and not resumed:
        return "running"
    if trial.state == "paused":
        rung = next(reversed(trial.paused), trial.epoch)
        return "ready" if rung in trial.promoted else "undecided"
    if trial.state is None or (resumed and trial.state not in ENDED_FOR_GOOD):
        return "ready"
    return "over"
