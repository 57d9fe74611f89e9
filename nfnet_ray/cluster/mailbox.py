"""Notes between the driver of a training run and its workers, in the key-value store of the cluster's head.

It needs no further process, is there as long as the cluster is, and a note takes milliseconds. Nothing that was
paid for depends on it: that is in checkpoints and in the journal.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from ray.experimental import internal_kv

_NAMESPACE = "nfnet_ray"


class Mailbox:
    """A box of one run. ``set`` and ``get`` keep one value for each name; ``post`` and ``take`` a queue of notes."""

    def __init__(self, run: str) -> None:
        self._prefix = f"{run}/"

    def set(self, name: str, value: Any) -> None:
        """Keeps a JSON value under a name, in place of the one before."""
        internal_kv._internal_kv_put(
            f"{self._prefix}value/{name}", json.dumps(value), True, namespace=_NAMESPACE
        )

    def get(self, name: str) -> Any:
        """The value of a name; None where there is none."""
        found = internal_kv._internal_kv_get(f"{self._prefix}value/{name}", namespace=_NAMESPACE)
        return None if found is None else json.loads(found)

    def unset(self, name: str) -> None:
        """Forgets a name."""
        internal_kv._internal_kv_del(f"{self._prefix}value/{name}", namespace=_NAMESPACE)

    def post(self, kind: str, **content: Any) -> None:
        """Puts a note into the queue."""
        key = f"{self._prefix}note/{time.time_ns():020d}-{secrets.token_hex(4)}"
        internal_kv._internal_kv_put(key, json.dumps({"kind": kind, **content}), True, namespace=_NAMESPACE)

    def take(self) -> list[dict[str, Any]]:
        """All notes that wait, oldest first, by their senders' clocks; they wait no longer."""
        keys = internal_kv._internal_kv_list(f"{self._prefix}note/", namespace=_NAMESPACE)
        notes = []
        for key in sorted(keys):
            found = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
            if found is not None:
                notes.append(json.loads(found))
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
        return notes

    def remove(self) -> None:
        """Removes everything."""
        internal_kv._internal_kv_del(self._prefix, del_by_prefix=True, namespace=_NAMESPACE)
