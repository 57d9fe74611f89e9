"""Writes and reads a journal: an append-only text file with one JSON object on each line.

Numbers that JSON cannot represent are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` and read
back as floats, so these three strings are reserved everywhere in an event.

A process that dies while it writes leaves an incomplete last line. Readers stop before it, and :class:`Journal` removes
it before it appends, so that the next event does not continue an incomplete line.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import orjson

from nfnet_ray.errors import UserError
from nfnet_ray.tracking.events import Event
from nfnet_ray.version import __version__

JOURNAL_FILE = "journal.jsonl"

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# The form in which Journal writes an epoch, whose keys always have this order. The group is the quoted name of the
# trial.
_EPOCH_LINE = re.compile(
    rb'\{"event":"epoch","time":[-+.\de]+,"trial":("(?:[^"\\]|\\.)*"),"epoch":\d+,"metrics":\{'
)


class Journal:
    """Appends events to a journal. Only one process writes a journal at a time; any number of processes may read it.

    ``append`` returns when the line has reached the disk (or the server of a network file system), so the event
    survives the death of the process and of the machine.

    >>> with Journal(study_directory / JOURNAL_FILE) as journal:                   # doctest: +SKIP
    ...     journal.append(study_resumed(changed={}))

    Raises UserError if the user lacks the permission to write the journal.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not in append mode, because an incomplete last line has to be removed first. Unbuffered, so that after a full
        # disk no rest of a line stays in a buffer, from where it would later be written into another line.
        try:
            # The umask decides who else may write the journal: a team's umask, 002, lets the group resume the study.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): ask its owner to allow it (chmod g+w), or work on "
                "another study"
            ) from None
        self._stream = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
        self._stream.truncate(self._end_of_last_line())
        self._stream.seek(0, os.SEEK_END)

    def append(self, event: Event, /) -> None:
        """Writes one event as one line and waits until it is stored.

        Raises OSError if that fails; the journal is then unchanged.
        """
        line = json.dumps(_to_json(event), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        end = self._stream.seek(0, os.SEEK_END)
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
            os.fsync(self._stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._stream.truncate(end)
            raise

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end_of_last_line(self) -> int:
        return self._stream.read().rfind(b"\n") + 1


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yields ``(event, end)`` for each complete line from byte ``offset`` on.

    ``end`` is the byte after the event's line, i.e. the offset to continue from. A last line without its line break is
    incomplete or still being written, and is left out. A journal that does not exist counts as empty.

    Raises:
        UserError: a complete line is not a JSON object with an ``event`` (the disk, or a person, has changed the file),
            the file is shorter than ``offset``, or it cannot be read.
    """
    for line, end in _whole_lines(path, offset):
        yield _parsed(line, path, end), end


def read_last_epochs(path: Path) -> Iterator[Event]:
    """Yields the events of a journal, without the epochs that do not affect the state of the study.

    An epoch is left out if a later one of the same trial follows before any event of another kind. Those lines, nearly
    all of a long journal, are not parsed, so damage within one of them may go unnoticed.

    Raises:
        UserError: as :func:`read_events`.
    """
    waiting: dict[bytes, tuple[bytes, int]] = {}
    for line, end in _whole_lines(path, 0):
        epoch = _EPOCH_LINE.match(line)
        if epoch and line.endswith(b"}}\n"):
            waiting.pop(epoch[1], None)  # so that the order of the others is kept
            waiting[epoch[1]] = line, end
            continue
        for kept, kept_end in waiting.values():
            yield _parsed(kept, path, kept_end)
        waiting.clear()
        yield _parsed(line, path, end)
    for kept, kept_end in waiting.values():
        yield _parsed(kept, path, kept_end)


def newer_version(versions: Iterable[str]) -> str | None:
    """Returns the newest of some versions of nfnet_ray, if it is newer than this version.

    >>> newer_version(["0.1.0", "999.0", "998.1"]), newer_version(["0.0.1", "unknown"])
    ('999.0', None)
    """
    newest = max(versions, key=_numbers, default="")
    return newest if _numbers(newest) > _numbers(__version__) else None


def not_understood(what: str, versions: Iterable[str], why: object) -> UserError:
    """Returns the error for a journal, written by these versions, that this version does not understand."""
    newer = newer_version(versions)
    if newer is not None:
        return UserError(
            f"{what} was written by nfnet_ray {newer}, and this is {__version__}: use that version"
        )
    return UserError(
        f"{what} is not understood by this version of nfnet_ray, {__version__} ({why}): use the newer version "
        "that wrote it, or restore it from a backup"
    )


def _numbers(version: str) -> list[int]:
    """Parses ``1.2.3`` to a list of numbers that can be compared; empty for a text that is not a version."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return [int(number) for number in found[0].split(".")] if found else []


def _whole_lines(path: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """Yields each complete line from byte ``offset`` on, and the byte after it."""
    try:
        stream = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    with stream:
        if offset > stream.seek(0, os.SEEK_END):
            raise UserError(f"{path} is shorter than what was read of it before: restore it from a backup")
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line, offset


def _parsed(line: bytes, path: Path, end: int) -> Event:
    """Parses the line that ends at byte ``end``. Raises UserError if it is not an event."""
    try:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:  # the standard library accepts a little more, so it decides
            event = json.loads(line)
        # Checked first, because few lines have such a string, and searching all values of an event takes longer.
        if b'NaN"' in line or b'Infinity"' in line:
            event = _from_json(event)
        event["event"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(
            f"{path} is damaged at byte {end - len(line)}: restore that line from a backup, or delete it"
        ) from None
    return cast(Event, event)


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
