"""Trains on worker groups that stay up (slots): the legs of a study on as many slots as fit, or a single training.

A leg is assigned only to a slot whose workers are up, so that no leg waits for machines that may never come.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nfnet_ray.cluster.connection.nodes import gpu_problems
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.cluster.follower import Follower
from nfnet_ray.cluster.messages.configs import WorkerConfig, slot_config
from nfnet_ray.cluster.messages.notes import FinalReport
from nfnet_ray.cluster.trainer import Slot, WorkersDoNotStart, close_all, none_outlives_ray
from nfnet_ray.study.decisions import Leg
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder

SECONDS_BETWEEN_READS = 0.2
SLOTS_FOLDER = "slots"


def run_training(
    config: WorkerConfig, recorder: Recorder, say: Callable[[str], None], stop: threading.Event
) -> FinalReport:
    """Trains to the end, or until ``stop`` is set, and records every event.

    It needs a :func:`nfnet_ray.cluster.connection.session.ray_session`.
    """
    resources = WorkerResources(**config["resources"])
    slot = Slot(slot_config(1, Path(config["directory"]), resources, config["hang_seconds"]))
    with none_outlives_ray([slot]):
        slot.hand(config)
        follower = Follower(config, recorder, say, stop)
        try:
            while (report := _followed(slot, follower, recorder)) is None:
                time.sleep(SECONDS_BETWEEN_READS)
        except WorkersDoNotStart as error:
            report = FinalReport("failed", f"{error}{_bad_gpus(resources)}")
        if not recorder.is_cut_off:
            close_all([slot])
    shutil.rmtree(
        config["compiled"], ignore_errors=True
    )  # for a URI this is one file, which the next training replaces
    if report.stops_study:
        recorder.mark_lost(str(report.reason))
    recorder.end_trial(config["name"], report.trial_outcome, report.reason)
    return report


def run_legs(
    legs: Legs,
    config: Callable[[Leg], WorkerConfig],
    recorder: Recorder,
    directory: Path,
    most: int,
    resources: WorkerResources,
    say: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Trains legs until none is left, or until ``stop`` is set, and records every event.

    Args:
        config: the configuration of the workers of a leg.
        directory: the folder of the study.
        most: the largest number of slots. Slots for which there is no room wait, so that an autoscaler sees them. Slots
            for which no leg is left are closed while others still train.
        say: a function that is called with sentences for the user.
    """
    slots = [
        Slot(slot_config(number, directory / SLOTS_FOLDER / str(number), resources))
        for number in range(1, most + 1)
    ]
    with none_outlives_ray(slots):
        try:
            _Slots(legs, config, recorder, say, stop, dict(enumerate(slots, 1))).train()
        except WorkersDoNotStart as error:
            recorder.mark_lost(f"{error}{_bad_gpus(resources)}; look into Ray's logs")
        if not recorder.is_cut_off:
            close_all(slots)


@dataclass(frozen=True)
class _Slots:
    """The open slots, by number, each with the follower of the leg that it trains."""

    legs: Legs
    config: Callable[[Leg], WorkerConfig]
    recorder: Recorder
    say: Callable[[str], None]
    stop: threading.Event
    open: dict[int, Slot]
    followers: dict[int, Follower] = field(default_factory=dict)

    def train(self) -> None:
        """Trains legs until none is left, or until ``stop`` is set."""
        while True:
            self._take_in()
            has_more = not self.stop.is_set() and self._hand_out()
            if not self.followers and (not has_more or self.legs.most_at_once() == 0):
                return
            if len(self.open) > len(self.followers):
                self._let_go()
            time.sleep(SECONDS_BETWEEN_READS)

    def _take_in(self) -> None:
        """Records the notes of the workers of all slots."""
        for number, slot in self.open.items():
            follower = self.followers.get(number)
            report = _followed(slot, follower, self.recorder)
            if follower is not None and report is not None:
                del self.followers[number]
                record_end(follower.trial, report, self.legs, self.recorder)

    def _hand_out(self) -> bool:
        """Assigns a leg to each free slot. Returns whether there was a leg for each."""
        for number, slot in self.open.items():
            if number in self.followers or not slot.is_ready():
                continue
            leg = self.legs.next()
            if leg is None:
                return False
            config = self.config(leg)
            told = _of_trial(leg.trial, self.say)
            self.followers[number] = Follower(config, self.recorder, told, self.stop, slot=number)
            slot.hand(config)
        return True

    def _let_go(self) -> None:
        """Closes slots that will get no more legs, because their machines cost money and others may need them."""
        most = self.legs.most_at_once()
        if most is None:
            return
        # Those that still wait for machines come first.
        idle = sorted(
            self.open.keys() - self.followers.keys(), key=lambda number: self.open[number].is_ready()
        )
        for number in idle[: len(self.open) - max(1, most)]:
            with suppress(OSError):  # the cluster's head is away
                self.open[number].close()
                del self.open[number]


def record_end(name: str, report: FinalReport, legs: Legs, recorder: Recorder) -> None:
    """Records how a leg of a study ended, and the decisions about other trials that follow from it."""
    if report.outcome == "stopped" and recorder.state.trials[name].state != "running":
        return  # it ended before its first step, as if it had not been assigned
    if recorder.is_cut_off:  # then the trial is not at fault
        legs.end(name, "interrupted", None)
    elif report.stops_study:  # it can be resumed once the cause is gone
        legs.end(name, "interrupted", report.reason)
        recorder.mark_lost(str(report.reason))
    elif report.outcome == "paused":
        legs.pause(name)
    else:
        legs.end(name, report.trial_outcome, report.reason)


def _followed(slot: Slot, follower: Follower | None, recorder: Recorder) -> FinalReport | None:
    """Keeps a slot up, and processes the notes of the workers of its leg."""
    if recorder.is_cut_off:
        return FinalReport("stopped")
    why = slot.keep_up()
    if follower is None:
        return None
    if why:
        follower.mark_lost(why)
    return follower.read()


def _of_trial(name: str, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say(f"{name}: {text}")


def _bad_gpus(resources: WorkerResources) -> str:
    """A possible reason why workers do not start: nodes that may have joined later, whose GPUs torch cannot use."""
    with suppress(Exception):  # the cluster's head is away, or a node is
        problems = gpu_problems(resources)
        return "".join(
            f"; {node}: torch cannot use its GPUs: {problem}" for node, problem in problems.items()
        )
    return ""
