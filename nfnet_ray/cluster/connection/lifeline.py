"""Notices that Ray has gone away under a driver, which would otherwise wait forever or end without a message.

Ray ends a driver's process itself, with exit code 1: as soon as that reaches for the objects of a raylet that has died
(plasma's connection.cc), and a minute after the head has gone (rpc_client.h). A call to a head that has gone does not
return before that, so the main thread may not be able to end the driver in order.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.address import raylets
from nfnet_ray.cluster.connection.warden import start_time
from nfnet_ray.printable import display_path

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END_IN_ORDER = 20.0
"""Longer than Ray Train's controllers are waited for when a driver ends (trainer.py)."""
SECONDS_TO_CONNECT = 5.0
SECONDS_BEFORE_RAY_ENDS_US = 15.0
"""What is left, when a head has been away for too long, to keep what happened and to say it."""


@dataclass(frozen=True)
class Loss:
    """What of Ray has gone.

    Attributes:
        why: in words, and what to look into.
        blocks: whether calls to Ray do not return any more, so that nothing can end in order.
    """

    why: str
    blocks: bool


Look = Callable[[], Loss | None]
"""Returns what has gone, or None."""


@contextmanager
def loss_is_noticed(
    look: Look, is_cut_off: Callable[[], bool], mark_cut_off: Callable[[str], None], end: Callable[[], None]
) -> Generator[None]:
    """While this lasts, calls ``mark_cut_off`` with a reason when Ray has gone.

    If the block is not left soon after that, or after somebody else has found that the driver ``is_cut_off``, calls
    ``end``, which is expected to end the process. Both are called in a thread.
    """
    over = threading.Event()
    ends = threading.Lock()

    def watch() -> None:
        deadline: float | None = None
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            if deadline is None:
                loss = look()
                if loss is not None:
                    mark_cut_off(loss.why)
                if loss is not None and loss.blocks:
                    deadline = time.monotonic()
                elif is_cut_off():
                    deadline = time.monotonic() + SECONDS_TO_END_IN_ORDER
            if deadline is not None and time.monotonic() >= deadline:
                with ends:
                    if not over.is_set():
                        end()
                return

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    try:
        yield
    finally:
        with ends:  # or else this thread would say how the driver ends, too
            over.set()


def look_at_ray(address: str | None) -> Look:
    """Looks whether the Ray is there to which this process is connected; ``address`` is None for a local one.

    Needs a :func:`nfnet_ray.cluster.connection.session.ray_session`.
    """
    import ray

    if address is None:
        return partial(lost_server, ray_internals.own_servers(), display_path(ray_internals.logs_folder()))
    context = ray.get_runtime_context()
    node, host_and_port = context.get_node_id(), context.gcs_address
    found = next(((process, start_time(process)) for process, _, id in raylets() if id == node), None)
    host, _, port = host_and_port.rpartition(":")
    head = Head(host.strip("[]"), int(port))

    def look() -> Loss | None:
        if found is not None and start_time(found[0]) != found[1]:
            why = f"Ray's node on this machine has ended (raylet, process {found[0]}); see that Ray is up"
            return Loss(why, blocks=False)
        return head.look()

    return look


def lost_server(servers: Mapping[str, subprocess.Popen[bytes]], logs: str) -> Loss | None:
    """The loss if a server of a local Ray has ended, which nobody starts again; its logs are in the folder ``logs``."""
    for name, what in ((ray_internals.GCS_SERVER, "head"), (ray_internals.RAYLET, "node")):
        process = servers.get(name)
        code = process.poll() if process is not None else None
        if code is not None:
            where = f"look into Ray's logs in {logs}"
            if code == -signal.SIGKILL:
                where += " and into dmesg, which tells whether memory ran out"
            return Loss(
                f"Ray's {what} has ended ({name}, {_in_words(code)}); {where}",
                blocks=name == ray_internals.GCS_SERVER,
            )
    return None


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"by {signal.Signals(-code).name}"
    return f"by signal {-code}"


class Head:
    """The head of a cluster. It may come back, and then Ray continues, unless that takes too long."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._away_since: float | None = None
        ray_ends_us = float(os.environ.get(ray_internals.HEAD_TIMEOUT, ray_internals.HEAD_TIMEOUT_SECONDS))
        self._patience = max(ray_ends_us - SECONDS_BEFORE_RAY_ENDS_US, ray_ends_us / 2)

    def look(self) -> Loss | None:
        with suppress(OSError):
            socket.create_connection((self._host, self._port), SECONDS_TO_CONNECT).close()
            self._away_since = None
            return None
        # From the first look that found nobody: before it this process may have stood still, and not the head.
        self._away_since = self._away_since or time.monotonic()
        away = time.monotonic() - self._away_since
        if away < self._patience:
            return None
        return Loss(
            f"Ray's head at {self._host}:{self._port} has not answered for {away:.0f} s; see that it is up",
            True,
        )
