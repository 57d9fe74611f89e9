"""Several hosts on this machine: network namespaces with addresses of their own, joined by a switch.

Each host's only way to the others is its ``eth0``, which is a cable into the switch, a further namespace. The
namespace of the machine itself has no part in it. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

from tests.deadlines import HANG_SECONDS

SUBNET = "10.213.7"  # private, and nobody else's here: it is known inside the namespaces alone


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=HANG_SECONDS)


class Hosts:
    """``names`` get the addresses .1, .2 and so on. A context manager: leaving it removes them."""

    def __init__(self, *names: str) -> None:
        self._prefix = f"nfx{os.getpid()}"
        self._names = names

    def __enter__(self) -> Hosts:
        try:
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _run("ip", "-n", self._switch, "link", "set", "bridge", "up")
            for name in self._names:
                host, cable = self.namespace(name), f"to-{name}"
                _run("ip", "netns", "add", host)
                _run("ip", "-n", host, "link", "set", "lo", "up")
                _run(
                    "ip",
                    "-n",
                    host,
                    "link",
                    "add",
                    "eth0",
                    "type",
                    "veth",
                    "peer",
                    cable,
                    "netns",
                    self._switch,
                )
                _run("ip", "-n", host, "address", "add", f"{self.ip(name)}/24", "dev", "eth0")
                _run("ip", "-n", host, "link", "set", "eth0", "up")
                _run("ip", "-n", self._switch, "link", "set", cable, "master", "bridge", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in (*map(self.namespace, self._names), self._switch):
            pids = subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
            ).stdout.split()
            if pids:
                subprocess.run(["kill", "-9", *pids], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def ip(self, name: str) -> str:
        return f"{SUBNET}.{self._names.index(name) + 1}"

    def inside(self, name: str) -> tuple[str, ...]:
        """Before a command, runs it on that host."""
        return ("ip", "netns", "exec", self.namespace(name))

    def cut_off(self, name: str) -> None:
        """Pulls a host's cable: no packet comes or goes, and no other host is notified."""
        _run("ip", "-n", self._switch, "link", "set", f"to-{name}", "down")

    def join(self, name: str) -> None:
        """Puts it back."""
        _run("ip", "-n", self._switch, "link", "set", f"to-{name}", "up")


def why_not() -> str | None:
    """Why there can be no hosts on this machine; None if there can."""
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (the command ip)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Hosts("a"):
            return None
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", "") or error
        return f"network namespaces are not allowed here ({str(reason).strip()})"
