"""What happens in a study, into its journal and onto the screen."""

from __future__ import annotations

import time
from collections.abc import Callable

from nfnet_ray.cluster.journal import StudyProgress
from nfnet_ray.places import in_words, remedy_for
from nfnet_ray.tracking.events import Event, Journal, TrialState


class Recorder:
    """Puts each event into the journal first, then into the progress that is shown."""

    def __init__(
        self,
        journal: Journal,
        progress: StudyProgress,
        on_event: Callable[[], None],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal, self.progress, self._on_event = journal, progress, on_event
        self._on_lost = on_lost
        self._journal_is_lost = False
        self.lost: str | None = None
        """Why results can no longer be kept. From then on nothing is recorded, and the study has to stop."""

    def record(self, event: Event) -> None:
        """Keeps an event; when this returns it is on the disk, or :attr:`lost` says why it is not."""
        if self._journal_is_lost:
            return  # what follows an event that is missing would say something else than what happened
        try:
            self._journal.append(event)
        except OSError as error:
            self._journal_is_lost = True
            self.lose(f"the journal cannot be written ({in_words(error)}); {remedy_for(error)}")
            return
        self.progress.apply(event)
        self._on_event()

    def lose(self, why: str) -> None:
        """Results can no longer be kept, for this reason, which ends in what to do about it."""
        self.lost = self.lost or why
        self._on_lost()

    def end_trial(self, name: str, state: TrialState, reason: str | None) -> None:
        """Keeps that a trial has ended, after as many epochs as were reported."""
        epochs = self.progress.trials[name].epoch
        self.record(
            {
                "event": "trial_ended",
                "time": time.time(),
                "trial": name,
                "state": state,
                "reason": reason,
                "epochs": epochs,
            }
        )
