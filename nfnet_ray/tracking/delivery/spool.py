"""How far the tracking server has followed the journal, and under which ids.

The spool holds no events: what the server has not acknowledged is the part of the journal behind the cursor. The cursor
is one small file that is replaced in one step, so at any moment of a crash it says either what was true before an
acknowledgement or what is true after it. At worst an event is delivered a second time, which
:mod:`nfnet_ray.tracking.delivery.writer` makes harmless.

One cursor is not enough, since somebody may delete one run while all others are open. Such a run is *held*: the cursor
moves on for the others, and the held run has a cursor of its own, the byte at which its first event begins that was not
delivered. An event that MLflow refuses although its run is open, such as one with a name that MLflow does not allow, is
noted with the byte at which it begins. Both are tried again when the study is resumed; until then they are pending.

A journal that is not the one in which the cursor was set, because a person has deleted a damaged line or has restored a
backup, is delivered from its start: some of what is before the cursor now may have been behind it.

A database in the folder of all studies is noted by its path from the study's, so that copies and moves of the
folder have their own.
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
# Of the journal before the cursor, by which it is known again: the end of a line, which has the time of its event or
# measured numbers.
_TAIL_BYTES = 256

STUDY_RUN = ""
"""What the study's own run is called where a trial's is called by the trial's name, which is never empty."""


@dataclass(frozen=True)
class TrackedStudy:
    """Where a study is found in MLflow; empty strings where nothing has been written yet."""

    tracking_uri: str = ""
    experiment_id: str = ""
    view_key: str = ""
    study_run_id: str = ""
    trial_run_ids: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Undelivered:
    """Events before the cursor that have not reached MLflow.

    ``held`` is {name of a trial, or STUDY_RUN: byte from which on its events are missing}; ``refused`` are the bytes at
    which single events begin.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    refused: Set[int] = frozenset()

    def holding(self, run: str, start: int) -> Undelivered:
        """The same with a run held from a byte on, or from an earlier one if it is held already."""
        return dataclasses.replace(self, held={**self.held, run: min(start, self.held.get(run, start))})

    def without(self, run: str) -> Undelivered:
        """The same without this run being held."""
        return dataclasses.replace(self, held={name: at for name, at in self.held.items() if name != run})


class JournalLine(NamedTuple):
    """An event and where its line begins and ends in the journal, in bytes."""

    event: Event
    start: int
    end: int


def runs_of(event: Event) -> tuple[str, ...]:
    """The runs that an event is written into: a trial's name, or :data:`STUDY_RUN`."""
    if event["event"] in ("trial_started", "trial_paused", "trial_promoted", "epoch"):
        return (event["trial"],)
    if event["event"] == "trial_ended":
        return (event["trial"], STUDY_RUN)  # the study's has the numbers of all that have ended
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
        # Up to which byte lines have been counted, and how many there are between the cursor and it.
        self._counted_from, self._counted_to, self._lines_behind = (
            self.acknowledged_bytes,
            self.acknowledged_bytes,
            0,
        )

    def pending(self) -> Iterator[JournalLine]:
        """Yield the events behind the cursor."""
        return self._lines(self.acknowledged_bytes)

    def missing(self, run: str) -> Iterator[JournalLine]:
        """Yield the events of a held run that are before the cursor."""
        yield from self.before_cursor(run, self.undelivered.held[run])

    def before_cursor(self, run: str, start: int) -> Iterator[JournalLine]:
        """Yield the events of a run from byte ``start`` on that are before the cursor."""
        for line in self._lines(start):
            if line.start >= self.acknowledged_bytes:
                return
            if run in runs_of(line.event):
                yield line

    def refused(self) -> Iterator[JournalLine]:
        """Yield the events before the cursor that MLflow refused."""
        for start in sorted(self.undelivered.refused):
            yield next(self._lines(start))

    def pending_count(self) -> int:
        """How many events are behind the cursor, or before it and undelivered.

        A display asks several times a second, so no line is counted anew.
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
        """How many events before the cursor have not reached MLflow."""
        cursor, undelivered = self.acknowledged_bytes, self.undelivered
        # A display asks several times a second.
        if self._counted is None or self._counted[:2] != (cursor, undelivered):
            starts = set(undelivered.refused)
            for run in undelivered.held:
                starts |= {line.start for line in self.missing(run)}
            self._counted = cursor, undelivered, len(starts)
        return self._counted[2]

    def acknowledge(self, offset: int, tracked: TrackedStudy, undelivered: Undelivered | None = None) -> None:
        """Note, in one step and for good, that everything before ``offset`` is in MLflow under these ids.

        Everything but what is ``undelivered``; without it, that stays as it was.
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
    """(number of line breaks, byte after the last of them) from byte ``start`` to ``end``, by default to the end."""
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
    """The tracking URI as it is noted in a study's folder: a database among the studies by its path from there."""
    database = sqlite_path(tracking_uri)
    storage = study.resolve().parent
    if database is None or not database.is_absolute() or "?" in tracking_uri:
        return {"tracking_uri": tracking_uri}
    database = database.parent.resolve() / database.name
    if not database.is_relative_to(storage):
        return {"tracking_uri": tracking_uri}
    return {"database": os.path.relpath(database, study.resolve())}


def _tail(journal: Path, end: int) -> bytes:
    """The bytes of the journal before ``end``, at most :data:`_TAIL_BYTES`; fewer if it is not as long."""
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
    """Whether a cursor was set in the journal as it is, or before it grew. Earlier versions noted no digest."""
    tail = _tail(journal, cursor)
    if len(tail) < min(cursor, _TAIL_BYTES):
        return False
    return tail[-1:] in (b"", b"\n") if digest is None else _digest(tail) == digest


def _load(path: Path, journal: Path) -> tuple[int, TrackedStudy, Undelivered]:
    """The state, or the beginning where there is none that can be read: MLflow itself knows the runs."""
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
    """What an earlier version noted by an absolute path, of a folder that was copied or moved since, belongs here.

    It does if a database of the same name, among the studies, has the study's run.
    """
    noted = sqlite_path(tracked.tracking_uri)
    if noted is None or not noted.is_absolute() or noted.is_relative_to(storage):
        return tracked
    own = storage / noted.name
    if not has_run(own, tracked.study_run_id):
        return tracked
    return dataclasses.replace(tracked, tracking_uri=sqlite_uri(own))
