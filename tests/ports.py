"""A port that nobody uses, for whatever a test starts there or does not find there."""

from __future__ import annotations

import contextlib
import random
import socket

# Below 32768 Linux gives no port to an outgoing connection, which could take it before a server does. Ray gives its
# workers those from 10002 to 19999.
FIRST, LAST = 20_000, 32_767


def unused_port() -> int:
    """A port of this machine at which nobody listens, drawn by chance: two runs of tests seldom draw the same."""
    while True:
        port = random.SystemRandom().randint(FIRST, LAST)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
