"""Reads the state of a study at any line of its journal."""

from __future__ import annotations

from pathlib import Path

from nfnet_ray.tracking.journal import read_events
from nfnet_ray.tracking.state import StudyState


class JournalReader:
    """Returns the state of a study after any line of its journal. For a later line, only the lines in between are read.

    Details of trials that have ended are dropped (:meth:`StudyState.forget_details`). Not thread-safe.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._begin()

    def _begin(self) -> None:
        self._state, self._end = StudyState(), 0
        self._state.forget_details()

    def state_at(self, end: int) -> StudyState:
        """Returns the state after the line that ends at byte ``end``; valid until the next call.

        Raises UserError if the journal is damaged.
        """
        if end < self._end:  # an earlier event that is written again
            self._begin()
        if end > self._end:
            for event, at in read_events(self._journal, self._end):
                self._state.apply(event)
                self._end = at
                if at >= end:
                    break
        return self._state
