"""Communication between the processes of a run: a register of values and a queue of notes, in the head's memory.

Both are in the key-value store of the cluster's head, which exists as long as the cluster; an actor would be one more
process that can die. A call takes milliseconds. No result depends on it, since results are in checkpoints and in the
journal.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, TypeVar

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.messages.notes import Note, note_from_values, note_to_values
from nfnet_ray.cluster.messages.register_values import Name

T = TypeVar("T")


class Register:
    """The register of a run. It has one JSON value for each name, the last one that was set."""

    def __init__(self, run: str) -> None:
        self._prefix = f"{run}/value/"

    def set(self, name: Name[T], value: T) -> None:
        """Replaces the value of a name."""
        ray_internals.put_value(self._prefix + name.text, json.dumps(value))

    def set_first(self, name: Name[T], value: T) -> None:
        """Sets the value of a name that has none. If several processes do so at once, one of them succeeds."""
        ray_internals.put_first_value(self._prefix + name.text, json.dumps(value))

    def get(self, name: Name[T]) -> T | None:
        """The value of a name; None if it has none."""
        found = ray_internals.get_value(self._prefix + name.text)
        return None if found is None else json.loads(found)

    def unset(self, name: Name[Any]) -> None:
        """Removes a name."""
        ray_internals.delete_value(self._prefix + name.text)


class Mailbox:
    """The notes of a run for its driver. Each note is taken once."""

    def __init__(self, run: str) -> None:
        self._prefix = f"{run}/note/"

    def post(self, note: Note) -> None:
        """Adds a note."""
        key = f"{self._prefix}{time.time_ns():020d}-{secrets.token_hex(4)}"
        ray_internals.put_value(key, json.dumps(note_to_values(note)))

    def take(self) -> list[Note]:
        """Removes and returns all notes, oldest first by the clocks of their senders."""
        notes = []
        for key in sorted(ray_internals.value_keys(self._prefix)):
            found = ray_internals.get_value(key)
            if found is not None:
                notes.append(note_from_values(json.loads(found)))
            ray_internals.delete_value(key)
        return notes


def remove_run(run: str) -> None:
    """Removes all values and notes of a run."""
    ray_internals.delete_values(f"{run}/")
