"""Determines the stages at which trials can be compared: the rungs at which some were given up, and the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nfnet_ray.analysis.tables import StudyTables, once_of_a_record
from nfnet_ray.metric import METRIC
from nfnet_ray.wording import count


@dataclass(frozen=True)
class Stage:
    """A stage at which trials can be compared.

    Attributes:
        where: the stage in words: ``after epoch 2 of 8``, ``after schedules of 2 epochs``, ``at the end``.
        top1: {trial: accuracy at the stage, a fraction}. A trial that has diverged by then has chance accuracy, like a
            network without finite weights.
        epoch: {trial: epoch at which it was measured}, without diverged trials.
        is_end: whether the stage is the end of the trials.
    """

    where: str
    top1: Mapping[str, float]
    epoch: Mapping[str, int]
    is_end: bool = False

    @property
    def diverged(self) -> int:
        """The number of trials that have diverged before or at this stage."""
        return len(self.top1) - len(self.epoch)


@once_of_a_record
def stages(tables: StudyTables) -> Sequence[Stage]:
    """Returns the rungs at which trials were given up, the earliest first, and then the end.

    A trial is at a rung if it was measured there or, with rungs in seconds and with stretched schedules, if it paused
    there, which further seeds of contenders do not. Trials that failed or have not ended are at the stages that they
    reached.
    """
    trials = tables.trials
    stopped = trials[trials["state"] == "stopped"]
    by_pauses = tables.rungs_in_seconds or tables.is_stretched
    rungs: set[float] = set()
    for trial, epochs in zip(stopped["trial"], stopped["epochs"], strict=True):
        paused = tables.pauses.get(trial, {})
        if by_pauses and paused:
            rungs.add(max(paused))
        elif not tables.rungs_in_seconds:
            rungs.add(int(epochs))
    # Only few of the epochs are needed, if any.
    at_rungs = tables.epochs if by_pauses and rungs else tables.epochs[tables.epochs["epoch"].isin(rungs)]
    measured = {
        (trial, int(epoch)): float(top1)
        for trial, epoch, top1 in zip(*(at_rungs[n] for n in ("trial", "epoch", METRIC)), strict=True)
        if not math.isnan(top1)
    }
    diverged = {
        trial: int(epochs)
        for trial, state, epochs in zip(*(trials[n] for n in ("trial", "state", "epochs")), strict=True)
        if state == "diverged"
    }
    chance = 1 / max(tables.study["data"].get("classes", 0), 1)
    total = tables.study["epochs"]
    found = []
    for rung in sorted(rungs):
        top1, at_epoch = {}, {}
        for trial in trials["trial"]:
            if by_pauses and trial in tables.further:
                continue
            epoch = tables.pauses.get(trial, {}).get(rung) if by_pauses else int(rung)
            if epoch is not None and (trial, epoch) in measured:
                top1[trial], at_epoch[trial] = measured[trial, epoch], epoch
            elif trial in diverged and (tables.rungs_in_seconds or diverged[trial] <= rung):
                top1[trial] = chance
        if at_epoch:
            found.append(Stage(_where(tables, rung), top1, at_epoch))
    finished = {
        trial: (int(epochs), float(top1))
        for trial, state, epochs, top1 in zip(
            *(trials[n] for n in ("trial", "state", "epochs", "last_top1")), strict=True
        )
        if state == "finished" and not math.isnan(top1)
    }
    end = {trial: top1 for trial, (_, top1) in finished.items()} | dict.fromkeys(diverged, chance)
    if finished:
        epochs_at_end = {trial: epoch for trial, (epoch, _) in finished.items()}
        found.append(Stage(f"at the end, after {count(total, 'epoch')}", end, epochs_at_end, is_end=True))
    return found


def _where(tables: StudyTables, rung: float) -> str:
    if tables.rungs_in_seconds:
        return f"after {rung:.4g} s of training"
    if tables.is_stretched and "schedule_epochs" in tables.epochs:
        # Groups have different sizes, so for other groups the epoch may lie within a schedule.
        there = tables.epochs[tables.epochs["epoch"] == rung]
        lengths = there["schedule_epochs"][there["schedule_epoch"] == there["schedule_epochs"]]
        if len(lengths):
            return f"after schedules of {count(int(lengths.iloc[0]), 'epoch')}"
    return f"after epoch {int(rung)} of {tables.study['epochs']}"
