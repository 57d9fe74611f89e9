"""Follows a leg: the driver reads the notes of its workers, records them and informs the user."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nfnet_ray.cluster.forms import FormBook
from nfnet_ray.cluster.mailbox import Mailbox, Register
from nfnet_ray.cluster.messages.configs import WorkerConfig
from nfnet_ray.cluster.messages.notes import (
    AttemptStarted,
    CheckpointKept,
    EpochEnded,
    FinalReport,
    FormChosen,
    GroupResizing,
    Note,
    WorkerHung,
    WorkerSays,
    WorkersLost,
    WorkersReplaced,
)
from nfnet_ray.cluster.messages.register_values import PROGRESS, STOP
from nfnet_ray.study.epochs_done import note_progress
from nfnet_ray.tracking.events import workers_started
from nfnet_ray.wording import count

if TYPE_CHECKING:
    from nfnet_ray.study.recorder import Recorder

SECONDS_TO_KEEP = 120.0
"""How long workers that were asked to stop may take to write their checkpoint."""


class Follower:
    """Reads the notes of a leg, records them, and informs the user.

    ``trial`` is the name of the leg's trial, ``say`` is called with sentences for the user, ``stop`` is set to end the
    leg, and ``slot`` is the number of the slot for the journal of a study.
    """

    def __init__(
        self,
        config: WorkerConfig,
        recorder: Recorder,
        say: Callable[[str], None],
        stop: threading.Event,
        slot: int | None = None,
    ) -> None:
        self.trial = config["name"]
        self._directory = Path(config["directory"])
        self._recorder, self._say, self._slot = recorder, say, slot
        self._mailbox, self._register = Mailbox(config["mailbox"]), Register(config["mailbox"])
        self._stop, self._asked_at = stop, 0.0
        self._forms = FormBook(recorder, config["forms_register"])
        self._is_training = False
        self._why: str | None = None
        self._hung: list[WorkerHung] = []

    def mark_lost(self, why: str) -> None:
        """Notes that the workers were lost, and why."""
        self._is_training = False
        self._why = why

    def read(self) -> FinalReport | None:
        """Processes all notes since the last call. Returns the final report once it has arrived."""
        try:
            self._forms.answer()
            for note in self._mailbox.take():
                if isinstance(note, FinalReport):
                    return note
                self._record(note)
            epochs = self._register.get(PROGRESS)
            if epochs is not None:
                note_progress(self._directory, epochs)
            if self._stop.is_set() and self._has_stopped():
                return FinalReport("stopped")
        except OSError as error:
            self._say(f"the cluster's head does not answer ({error})")
        return None

    def _has_stopped(self) -> bool:
        """Asks the workers to stop. Returns whether they need not be waited for, having no checkpoint to save."""
        if not self._asked_at:
            self._asked_at = time.monotonic()
            self._register.set(STOP, True)
        return not self._is_training or time.monotonic() - self._asked_at > SECONDS_TO_KEEP

    def _record(self, note: Note) -> None:
        match note:
            case AttemptStarted():
                self._start(note)
            case EpochEnded(metrics, texts):
                self._recorder.record_epoch(self.trial, int(metrics["epoch"]), metrics, texts)
            case FormChosen(shape, choice):
                self._forms.take(self.trial, shape, choice)
            case WorkerSays(text):
                self._say(f"{text[0].upper()}{text[1:]}.")
            case WorkerHung():
                self._hung.append(note)
            case GroupResizing(before, after):
                self.mark_lost(f"{count(before, 'worker')} became {after}")
                self._say(f"Machines have come or gone: {self._why}; keeping a checkpoint first.")
            case CheckpointKept("preempted"):
                self.mark_lost("a machine is taken back")
                self._say("A machine is taken back: a checkpoint is kept, and the workers start elsewhere.")
            case CheckpointKept("terminated"):
                self.mark_lost("a worker was asked to end")
            case CheckpointKept() | FinalReport():
                pass  # the user has asked for it, or has been told of the machines
            case WorkersLost():
                self._lost(note)
            case WorkersReplaced(reason):
                self._say(f"{reason[0].upper()}{reason[1:]}: new workers train the next trial.")

    def _lost(self, note: WorkersLost) -> None:
        if self._why is not None and not self._hung:
            return  # already said
        if self._hung:
            why = hang_sentence(self._hung)
        elif note.preempted:
            why = "a machine was taken back"
        else:
            why = note.reason
        self.mark_lost(why)
        self._hung = []
        self._say(f"{why[0].upper()}{why[1:]}; the workers start again from the last checkpoint.")

    def _start(self, note: AttemptStarted) -> None:
        self._is_training = True
        progress = self._recorder.state.trials[self.trial]
        continues = progress.state == "paused"  # in the same attempt
        if (note.step or progress.attempts) and not continues:
            self._say(f"Training with {count(note.workers, 'worker')}, from step {note.step:,}.")
        attempt = progress.attempts + (not continues)
        event = workers_started(self.trial, attempt, note.workers, note.step, self._why)
        if self._slot is not None:
            event["slot"], event["reused"] = self._slot, note.legs_before > 0
        self._recorder.record(event)
        self._why = None


def hang_sentence(hung: Sequence[WorkerHung]) -> str:
    """Determines which worker hung, from the notes of all watchdogs, and says so in a sentence.

    A worker that sent no note, such as a suspended one, is blamed first. Otherwise it is the worker that has got least
    far, and of several such workers one that does not wait for others.
    """
    silent = sorted(set(range(hung[0].workers)) - {note.rank for note in hung})
    seconds, place = f"{hung[0].silent_seconds:.0f} s", hung[0].stacks
    if silent:
        return (
            f"rank {_and(silent)} gave no sign of life for {seconds} (stacks of the other ranks in {place})"
        )
    fewest = min(note.heartbeats for note in hung)
    last = [note for note in hung if note.heartbeats == fewest]
    guilty = [note for note in last if not note.waits_for_others] or last
    phases = _and(dict.fromkeys(note.phase for note in guilty))
    ranks = _and(sorted(note.rank for note in guilty))
    return f"rank {ranks} hung for {seconds} in {phases} (stacks of all ranks in {place})"


def _and(items: Iterable[object]) -> str:
    return " and ".join(map(str, items))
