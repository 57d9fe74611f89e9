"""Stores how far the tracking server has followed the journal, and the ids of its runs.

The spool contains no events: the events that the server has not acknowledged are the part of the journal behind the
cursor. The cursor is one small file that is replaced atomically, so after a crash it holds the state either before or
after an acknowledgement. In the worst case an event is delivered twice, which :mod:`nfnet_ray.tracking.delivery.writer`
makes harmless.

One cursor is not sufficient, because one run may be deleted while all others are open. Such a run is *held*: the cursor
moves on for the other runs, and the held run has its own cursor, the byte at which its first undelivered event begins.
An event that MLflow refuses although its run is open, such as one with a name that MLflow does not allow, is recorded
with the byte at which it begins. Both are retried when the study is resumed; until then they are pending.

If the journal is no longer the one in which the cursor was set, because a person has deleted a damaged line or restored
a backup, it is delivered from its start, as events that are now before the cursor may have been behind it.

A database in the folder of all studies is recorded by its path relative to the study's folder, so that copies and moves
of the folder use their own database.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from nfnet_ray.tracking.destination.database import has_run
from nfnet_ray.tracking.destination.uri import sqlite_path, sqlite_uri
from nfnet_ray.tracking.events import Event
from nfnet_ray.tracking.journal import read_events
from nfnet_ray.whole_file import whole_file

SPOOL_FILE = "tracking.json"

_BLOCK_BYTES = 1 << 20
# The number of bytes before the cursor by which the journal is recognised. They end a line, which contains the time of
# its event or measured numbers.
_TAIL_BYTES = 256

STUDY_RUN = ""
"""The name of the study's own run, where a trial's run has the trial's name, which is never empty."""


@dataclass(frozen=True)
class TrackedStudy:
    """The ids of a study in MLflow; empty strings if nothing has been written yet."""

    tracking_uri: str = ""
    experiment_id: str = ""
    view_key: str = ""
    study_run_id: str = ""
    trial_run_ids: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Undelivered:
    """Events before the cursor that have not reached MLflow.

    ``held`` is {name of a trial, or STUDY_RUN: byte from which on its events are missing}; ``refused`` has the bytes at
    which single refused events begin.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    refused: Set[int] = frozenset()

    def holding(self, run: str, start: int) -> Undelivered:
        """Returns a copy with a run held from a byte on, or from an earlier one if it is already held."""
        return dataclasses.replace(self, held={**self.held, run: min(start, self.held.get(run, start))})

    def without(self, run: str) -> Undelivered:
        """Returns a copy in which this run is not held."""
        return dataclasses.replace(self, held={name: at for name, at in self.held.items() if name != run})


class JournalLine(NamedTuple):
    """An event, and the bytes at which its line begins and ends in the journal."""

    event: Event
    start: int
    end: int


def runs_of(event: Event) -> tuple[str, ...]:
    """Returns the runs to which an event is written: a trial's name, or :data:`STUDY_RUN`."""
    if event["event"] in ("trial_started", "trial_paused", "trial_promoted", "epoch"):
        return (event["trial"],)
    if event["event"] == "trial_ended":
        return (event["trial"], STUDY_RUN)  # the study's run has the numbers of all trials that have ended
    if event["event"] in ("at_work", "form_chosen"):
        return ()
    if event["event"] == "study_extended":
        return (STUDY_RUN, *event["left_out"], *(plan["name"] for plan in event["trials"]))
    if event["event"] in ("contenders_chosen", "confirmation_planned"):
        dropped = event["dropped"] if event["event"] == "contenders_chosen" else ()
        return (*event["left_out"], *(plan["name"] for plan in event["trials"]), *dropped)
    return (STUDY_RUN,)


class Spool:
    """The cursor of one tracking server in one journal. Only one thread may acknowledge."""

    def __init__(self, journal_path: Path, state_path: Path) -> None:
        self.journal_path = journal_path
        self._state_path = state_path
        self.acknowledged_bytes, self.tracked, self.undelivered = _load(state_path, journal_path)
        self._counted: tuple[int, Undelivered, int] | None = None
        self._counting = threading.Lock()
        # The byte up to which lines have been counted, and the number of lines between the cursor and this byte.
        self._counted_from, self._counted_to, self._lines_behind = (
            self.acknowledged_bytes,
            self.acknowledged_bytes,
            0,
        )

    def pending(self) -> Iterator[JournalLine]:
        """Yields the events behind the cursor."""
        return self._lines(self.acknowledged_bytes)

    def missing(self, run: str) -> Iterator[JournalLine]:
        """Yields the events of a held run that are before the cursor."""
        yield from self.before_cursor(run, self.undelivered.held[run])

    def before_cursor(self, run: str, start: int) -> Iterator[JournalLine]:
        """Yields the events of a run from byte ``start`` on that are before the cursor."""
        for line in self._lines(start):
            if line.start >= self.acknowledged_bytes:
                return
            if run in runs_of(line.event):
                yield line

    def refused(self) -> Iterator[JournalLine]:
        """Yields the events before the cursor that MLflow refused."""
        for start in sorted(self.undelivered.refused):
            yield next(self._lines(start))

    def pending_count(self) -> int:
        """Returns the number of events that are behind the cursor, or before it and undelivered.

        Lines are counted only once, because a display calls this several times a second.
        """
        try:
            with self._counting, self.journal_path.open("rb") as stream:
                cursor = self.acknowledged_bytes
                if not self._counted_from <= cursor <= self._counted_to:
                    self._counted_from = self._counted_to = cursor
                    self._lines_behind = 0
                self._lines_behind -= _line_breaks(stream, self._counted_from, cursor)[0]
                self._counted_from = cursor
                more, end = _line_breaks(stream, self._counted_to)
                self._lines_behind += more
                self._counted_to = end
                behind = self._lines_behind
        except FileNotFoundError:
            return 0
        return behind + self.undelivered_count()

    def undelivered_count(self) -> int:
        """Returns the number of events before the cursor that have not reached MLflow."""
        cursor, undelivered = self.acknowledged_bytes, self.undelivered
        # Cached, because a display calls this several times a second.
        if self._counted is None or self._counted[:2] != (cursor, undelivered):
            starts = set(undelivered.refused)
            for run in undelivered.held:
                starts |= {line.start for line in self.missing(run)}
            self._counted = cursor, undelivered, len(starts)
        return self._counted[2]

    def acknowledge(self, offset: int, tracked: TrackedStudy, undelivered: Undelivered | None = None) -> None:
        """Records durably, in one step, that everything before ``offset`` is in MLflow under these ids.

        The exception is what is ``undelivered``; None leaves the recorded exceptions as they were.
        """
        undelivered = self.undelivered if undelivered is None else undelivered
        state = {
            "acknowledged_bytes": offset,
            "journal_tail": _digest(_tail(self.journal_path, offset)),
            **_place(tracked.tracking_uri, self._state_path.parent),
            **{name: value for name, value in dataclasses.asdict(tracked).items() if name != "tracking_uri"},
            "held": dict(undelivered.held),
            "refused": sorted(undelivered.refused),
        }
        with whole_file(self._state_path, "w") as stream:
            json.dump(state, stream, indent=1)
        self.acknowledged_bytes, self.tracked, self.undelivered = offset, tracked, undelivered

    def _lines(self, start: int) -> Iterator[JournalLine]:
        for event, end in read_events(self.journal_path, start):
            yield JournalLine(event, start, end)
            start = end


def _line_breaks(stream: BinaryIO, start: int, end: int | None = None) -> tuple[int, int]:
    """Returns (number of line breaks, byte after the last one) from byte ``start`` to ``end``, by default the end."""
    stream.seek(start)
    number, after, at = 0, start, start
    while end is None or at < end:
        block = stream.read(_BLOCK_BYTES if end is None else min(_BLOCK_BYTES, end - at))
        if not block:
            break
        number += block.count(b"\n")
        if (last := block.rfind(b"\n")) >= 0:
            after = at + last + 1
        at += len(block)
    return number, after


def _place(tracking_uri: str, study: Path) -> dict[str, str]:
    """Returns the tracking URI as stored in a study's folder: a database among the studies as a relative path."""
    database = sqlite_path(tracking_uri)
    storage = study.resolve().parent
    if database is None or not database.is_absolute() or "?" in tracking_uri:
        return {"tracking_uri": tracking_uri}
    database = database.parent.resolve() / database.name
    if not database.is_relative_to(storage):
        return {"tracking_uri": tracking_uri}
    return {"database": os.path.relpath(database, study.resolve())}


def _tail(journal: Path, end: int) -> bytes:
    """Returns the bytes of the journal before ``end``, at most :data:`_TAIL_BYTES`; fewer if it is shorter."""
    start = max(0, end - _TAIL_BYTES)
    try:
        with journal.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)
    except FileNotFoundError:
        return b""


def _digest(tail: bytes) -> str:
    return hashlib.blake2b(tail, digest_size=8).hexdigest()


def _is_the_journal_of(journal: Path, cursor: int, digest: str | None) -> bool:
    """Whether a cursor was set in this journal, or before it grew. Earlier versions recorded no digest."""
    tail = _tail(journal, cursor)
    if len(tail) < min(cursor, _TAIL_BYTES):
        return False
    return tail[-1:] in (b"", b"\n") if digest is None else _digest(tail) == digest


def _load(path: Path, journal: Path) -> tuple[int, TrackedStudy, Undelivered]:
    """Returns the stored state, or the initial one if none can be read: MLflow itself knows the runs."""
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        cursor = int(state.pop("acknowledged_bytes"))
        digest = state.pop("journal_tail", None)
        held = {str(run): int(start) for run, start in state.pop("held", {}).items()}
        refused = frozenset(map(int, state.pop("refused", ())))
        study = path.parent.resolve()
        if database := state.pop("database", None):
            state["tracking_uri"] = sqlite_uri(Path(os.path.normpath(study / database)))
        tracked = _in_its_own_database(TrackedStudy(**state), study.parent)
        if not _is_the_journal_of(journal, cursor, digest):
            return 0, tracked, Undelivered()
        return cursor, tracked, Undelivered(held, refused)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0, TrackedStudy(), Undelivered()


def _in_its_own_database(tracked: TrackedStudy, storage: Path) -> TrackedStudy:
    """Corrects an absolute path that an earlier version recorded, if the folder was copied or moved since.

    It is corrected if a database of the same name, among the studies, contains the study's run.
    """
    noted = sqlite_path(tracked.tracking_uri)
    if noted is None or not noted.is_absolute() or noted.is_relative_to(storage):
        return tracked
    own = storage / noted.name
    if not has_run(own, tracked.study_run_id):
        return tracked
    return dataclasses.replace(tracked, tracking_uri=sqlite_uri(own))
