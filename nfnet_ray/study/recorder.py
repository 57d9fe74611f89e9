"""Records the events of a study in its journal, then applies them to its state."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from nfnet_ray.metric import METRIC
from nfnet_ray.places import in_words, remedy_for
from nfnet_ray.tracking.events import (
    EPOCH_TEXTS,
    Event,
    TrialOutcome,
    at_work,
    epoch_ended,
    form_chosen,
    trial_ended,
)
from nfnet_ray.tracking.journal import Journal
from nfnet_ray.tracking.state import StudyState

# Suffixes of the metrics that depend on the machine and its load rather than on what was learned. ``shared_batches`` is
# the number of batches that another process of the node made.
_OF_THE_MACHINE = (
    "_seconds",
    "_per_second",
    "_bytes",
    "_watts",
    "_joules",
    "_utilisation",
    "shared_batches",
)


class Recorder:
    """Writes each event to the journal, then applies it to the state; ``say`` shows a message to the user.

    Events can be recorded from any thread.
    """

    def __init__(
        self,
        journal: Journal,
        state: StudyState,
        on_event: Callable[[], None],
        say: Callable[[str], None],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal, self.state, self._on_event, self._say = journal, state, on_event, say
        self._on_lost = on_lost
        self._is_closed = False
        self._one_at_a_time = threading.RLock()
        self.lost: str | None = None
        """The reason why the study has to stop, such as a journal that cannot be written or missing data; None: no
        reason."""
        self.is_cut_off = False
        """Whether the connection to Ray is lost, so that waiting for the workers is pointless."""
        self.why_interrupted: str | None = None
        """The reason why trials are being interrupted, such as a cap that was reached; None after Ctrl-C."""

    def record(self, event: Event) -> None:
        """Writes an event to the disk and applies it. If it cannot be written, :attr:`lost` says why."""
        if self._keep(event):
            self._on_event()

    def record_at_work(self, seconds: float) -> None:
        """Records that the driver is alive, unless the last event is less than ``seconds`` old."""
        with self._one_at_a_time:
            event = at_work()
            if event["time"] - self.state.last_event_time >= seconds:
                self._keep(event)

    def _keep(self, event: Event) -> bool:
        with self._one_at_a_time:
            if self._is_closed:
                return False  # later events would be misleading after a missing one
            try:
                self._journal.append(event)
            except OSError as error:
                self._is_closed = True
                self.mark_lost(f"the journal cannot be written ({in_words(error)}); {remedy_for(error)}")
                return False
            self.state.apply(event)
            return True

    def mark_lost(self, why: str) -> None:
        """Stops the study. ``why`` ends with advice on what to do."""
        self.lost = self.lost or why
        self._on_lost()

    def mark_cut_off(self, why: str) -> None:
        """Stops the study without waiting for its workers. ``why`` ends with advice on what to check."""
        self.is_cut_off = True
        self.mark_lost(why)

    def close(self) -> None:
        """Ignores all further events, whichever thread records them."""
        with self._one_at_a_time:
            self._is_closed = True

    def record_epoch(
        self,
        trial: str,
        epoch: int,
        metrics: Mapping[str, float | None],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Records an epoch's metrics, and the texts that the worker reports with them, unless they are known already.

        Training that resumes from a checkpoint reports the checkpoint's epoch again, because that report may have been
        lost, and repeats an epoch whose checkpoint was lost. Normally the repeated metrics are bit-identical. They may
        differ on GPUs, with another number of workers, or if data or code has changed. Then the later numbers replace
        the earlier ones, because training continues from their weights.
        """
        progress, texts = self.state.trials[trial], texts or {}
        known = progress.epochs.get(epoch)
        if known is not None:
            changed = _changes(known, metrics)
            told = {name: text for name, text in texts.items() if name in EPOCH_TEXTS}
            # Conditions apply until others are reported, and each attempt reports its conditions with its first epoch.
            told_at = max((at for at in progress.conditions if at <= epoch), default=None)
            in_force = {} if told_at is None else {"conditions": progress.conditions[told_at]}
            if not changed and told.items() <= (in_force | progress.texts_of(epoch)).items():
                return
            if changed:
                name = METRIC if METRIC in changed else changed[0]
                self._say(
                    f"{trial}: epoch {epoch} was done again and came out differently ({name} {metrics.get(name)}, was "
                    f"{known.get(name)}): the new numbers replace the old ones"
                )
        self.record(epoch_ended(trial, epoch, metrics, texts))

    def record_form(self, trial: str, shape: str, choice: Mapping[str, Any]) -> None:
        """Records the form in which steps of a shape are trained, and shows it; a second choice is ignored."""
        with self._one_at_a_time:
            if shape in self.state.forms:
                return
            self.record(form_chosen(trial, shape, choice))
        self.say(trial, f"form of a step: {choice['sentence']}")

    def say(self, trial: str, text: str) -> None:
        """Shows the user a message about a trial."""
        self._say(f"{trial}: {text}")

    def end_trial(self, name: str, state: TrialOutcome, reason: str | None) -> None:
        """Records that a trial has ended, with the number of its reported epochs."""
        if state == "interrupted":
            reason = reason or self.why_interrupted
        self.record(trial_ended(name, state, reason, self.state.trials[name].epoch))


def _changes(before: Mapping[str, float | None], now: Mapping[str, float | None]) -> list[str]:
    """Returns the names of the metrics of what was learned that are not bit-identical."""
    names = [name for name in {**before, **now} if not name.endswith(_OF_THE_MACHINE)]
    return [name for name in names if not _are_same(before.get(name), now.get(name))]


def _are_same(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is now
    return before == now or (math.isnan(before) and math.isnan(now))
