"""Records what happens in a study: in its journal first, then on the screen."""

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

# Ends of the names of metrics that depend on the machine and on what else it does, and not on what was learned.
# ``shared_batches`` says how many batches another process of the node made.
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
    """Writes each event to the journal, then applies it to the state; ``say`` tells a person something.

    Any thread may record.
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
        """Why the study has to stop: results can no longer be written, or its data is gone."""
        self.is_cut_off = False
        """Whether Ray is gone, so that there is no use in waiting for the workers."""
        self.why_interrupted: str | None = None
        """Why trials are being interrupted: a cap was reached; None after Ctrl-C."""

    def record(self, event: Event) -> None:
        """Keeps an event; when this returns it is on the disk, or :attr:`lost` says why it is not."""
        if self._keep(event):
            self._on_event()

    def record_at_work(self, seconds: float) -> None:
        """Keeps that the driver is alive, unless the last event is less than ``seconds`` old."""
        with self._one_at_a_time:
            event = at_work()
            if event["time"] - self.state.last_event_time >= seconds:
                self._keep(event)

    def _keep(self, event: Event) -> bool:
        with self._one_at_a_time:
            if self._is_closed:
                return False  # events after a missing one would tell another story
            try:
                self._journal.append(event)
            except OSError as error:
                self._is_closed = True
                self.mark_lost(f"the journal cannot be written ({in_words(error)}); {remedy_for(error)}")
                return False
            self.state.apply(event)
            return True

    def mark_lost(self, why: str) -> None:
        """Stop the study. ``why`` ends with what to do about it."""
        self.lost = self.lost or why
        self._on_lost()

    def mark_cut_off(self, why: str) -> None:
        """Stop the study without waiting for its workers. ``why`` ends with what to look into."""
        self.is_cut_off = True
        self.mark_lost(why)

    def close(self) -> None:
        """Keeps no further event, whoever records it."""
        with self._one_at_a_time:
            self._is_closed = True

    def record_epoch(
        self,
        trial: str,
        epoch: int,
        metrics: Mapping[str, float | None],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Keeps an epoch's metrics, and the texts that the worker reports with them, once.

        A training that resumes from a checkpoint reports the checkpoint's epoch anew, for that report may have been
        lost; and one whose last checkpoint was lost trains an epoch again. Both give what was learned to the bit. If
        not (GPUs and another number of workers add in another order, and somebody may have changed data or code), the
        later numbers replace the earlier ones, because it is their weights that are trained further.
        """
        progress, texts = self.state.trials[trial], texts or {}
        known = progress.epochs.get(epoch)
        if known is not None:
            changed = _changes(known, metrics)
            told = {name: text for name, text in texts.items() if name in EPOCH_TEXTS}
            # Conditions hold until others are told, and each attempt tells its own with its first epoch.
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
        """Keeps in which form steps of a shape are trained, and says it; a choice that comes later does not count."""
        with self._one_at_a_time:
            if shape in self.state.forms:
                return
            self.record(form_chosen(trial, shape, choice))
        self.say(trial, f"form of a step: {choice['sentence']}")

    def say(self, trial: str, text: str) -> None:
        """Tells a person something about a trial."""
        self._say(f"{trial}: {text}")

    def end_trial(self, name: str, state: TrialOutcome, reason: str | None) -> None:
        """Record that a trial has ended, with the number of its reported epochs."""
        if state == "interrupted":
            reason = reason or self.why_interrupted
        self.record(trial_ended(name, state, reason, self.state.trials[name].epoch))


def _changes(before: Mapping[str, float | None], now: Mapping[str, float | None]) -> list[str]:
    """Names of the metrics of what was learned that are not the same to the last bit."""
    names = [name for name in {**before, **now} if not name.endswith(_OF_THE_MACHINE)]
    return [name for name in names if not _are_same(before.get(name), now.get(name))]


def _are_same(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is now
    return before == now or (math.isnan(before) and math.isnan(now))
