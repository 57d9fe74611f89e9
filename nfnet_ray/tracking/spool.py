"""How far the tracking server has followed the journal, and under which ids.

The spool holds no events: what the server has not acknowledged is the part of the journal behind the
cursor. The cursor is one small file that is replaced in one step, so at any moment of a crash it says
either what was true before an acknowledgement or what is true after it. At worst an event is delivered
a second time, which :mod:`nfnet_ray.tracking.writer` makes harmless.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nfnet_ray.tracking.events import Event, read_events

SPOOL_FILE = "tracking.json"


@dataclass(frozen=True)
class TrackedStudy:
    """Where a study is found in MLflow; empty strings where nothing has been written yet."""

    tracking_uri: str = ""
    experiment_id: str = ""
    view_key: str = ""
    study_run_id: str = ""
    trial_run_ids: dict[str, str] = field(default_factory=dict)


class Spool:
    """The cursor of one tracking server in one journal. Only one thread may acknowledge."""

    def __init__(self, journal_path: Path, state_path: Path) -> None:
        self.journal_path = journal_path
        self._state_path = state_path
        self.acknowledged_bytes, self.tracked = _load(state_path)

    def pending(self) -> Iterator[tuple[Event, int]]:
        """Yield the events behind the cursor, each with the offset that acknowledges it."""
        return read_events(self.journal_path, self.acknowledged_bytes)

    def pending_count(self) -> int:
        """How many events are behind the cursor."""
        try:
            with self.journal_path.open("rb") as stream:
                stream.seek(self.acknowledged_bytes)
                return sum(line.endswith(b"\n") for line in stream)
        except FileNotFoundError:
            return 0

    def acknowledge(self, offset: int, tracked: TrackedStudy) -> None:
        """Note, in one step and for good, that everything before ``offset`` is in MLflow under these ids."""
        state = {"acknowledged_bytes": offset, **dataclasses.asdict(tracked)}
        scratch = self._state_path.with_suffix(".writing")
        with scratch.open("w") as stream:
            json.dump(state, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(self._state_path)
        self.acknowledged_bytes, self.tracked = offset, tracked


def _load(path: Path) -> tuple[int, TrackedStudy]:
    """The state, or the beginning where there is none that can be read: MLflow itself knows the runs."""
    try:
        state = json.loads(path.read_text())
        return int(state.pop("acknowledged_bytes")), TrackedStudy(**state)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0, TrackedStudy()
