"""What happens in a study, into its journal and onto the screen."""

from __future__ import annotations

import time
from collections.abc import Callable

from nfnet_ray.cluster.journal import StudyProgress
from nfnet_ray.tracking.events import Event, Journal, TrialState


class Recorder:
    """Puts each event into the journal first, then into the progress that is shown."""

    def __init__(self, journal: Journal, progress: StudyProgress, on_event: Callable[[], None]) -> None:
        self._journal, self.progress, self._on_event = journal, progress, on_event

    def record(self, event: Event) -> None:
        """Keeps an event; when this returns it is on the disk."""
        self._journal.append(event)
        self.progress.apply(event)
        self._on_event()

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
