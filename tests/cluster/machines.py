"""A Ray cluster of several nodes on this machine, each a process that can be killed, perhaps in a namespace."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.cluster.training import descendants, environment
from tests.deadlines import HANG_SECONDS
from tests.ports import unused_port

# A node starts a worker for each core when a driver connects. Studies send their code, which needs workers of its own.
# Every five seconds it asks the system for what it says of its processes, which nobody looks at here.
IDLE = {"RAY_prestart_worker_first_driver": "0", "REPORTER_UPDATE_INTERVAL_MS": "3600000"}
# It answers each line with one of JSON: an empty one with {name: id} of the nodes that are up, and [id, milliseconds],
# by when that node is taken back, with what Ray says to that. One process answers all, as each would import Ray again.
# It imports nothing before the head listens.
ASKER = """\
import json, socket, sys
host, port = sys.argv[1].rsplit(":", 1)
client = None
for line in sys.stdin:
    if client is None:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            print("{}", flush=True)
            continue
        from ray._raylet import GcsClient
        client = GcsClient(address=sys.argv[1])
    if line.strip():
        from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
        node, until = json.loads(line)
        print(json.dumps(client.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "spot", until)), flush=True)
        continue
    nodes = client.get_all_node_info().values()
    print(json.dumps({node.node_name: node.node_id.hex() for node in nodes if node.state == 0}), flush=True)
"""


def make_token() -> None:
    """Makes the token that Ray's processes show each other, if there is none: ``ray start`` refuses to start without.

    A Ray that ``ray.init`` starts makes one too, but whether a test has started one before is a matter of chance.
    """
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(exist_ok=True)
    own = file.with_name(f"{file.name}.{os.getpid()}")
    own.write_text(secrets.token_hex(32))
    with contextlib.suppress(FileExistsError):  # another process of the tests was the first
        os.link(own, file)
    own.unlink()


def node_command(name: str, **fields: Any) -> list[str]:
    """The command of :mod:`tests.cluster.node`."""
    own = {"node_name": name, "dashboard_agent_listen_port": unused_port()}
    return [sys.executable, str(Path(__file__).with_name("node.py")), json.dumps(fields | own)]


class Machine:
    """One node. ``inside`` is a command that runs another one elsewhere, such as ``ip netns exec NAME``."""

    def __init__(
        self, name: str, command: Sequence[str], inside: tuple[str, ...], variables: Mapping[str, str]
    ) -> None:
        self.name = name
        with tempfile.NamedTemporaryFile(prefix="ray-node-", delete=False) as output:
            self._output = Path(output.name)
            self._process = subprocess.Popen(
                [*inside, *command],
                env=environment() | IDLE | dict(variables),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The end of what it said."""
        return self._output.read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """``kill -9`` to everything that runs on it."""
        pids = [*descendants(self.pid), self.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._output.unlink(missing_ok=True)


class Machines:
    """A head, which has no cores for workers unless it is given some, and machines that come and go.

    Every port is an unused one, so that another head on this machine is not in the way. ``head_command`` starts another
    head than :mod:`tests.cluster.node`, on this ``port`` and by the name "head".
    """

    def __init__(
        self,
        ip: str = "127.0.0.1",
        inside: tuple[str, ...] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
        head_cores: int = 0,
        port: int | None = None,
        head_command: Sequence[str] = (),
    ) -> None:
        make_token()
        self.address = f"{ip}:{port or unused_port()}"
        self._inside = inside
        self._asker = self._new_asker()
        self.up: list[Machine] = []
        """The head and the others, in the order in which they came."""
        port = int(self.address.rpartition(":")[2])
        shape = {"node_ip_address": ip, "num_cpus": head_cores}
        command = head_command or node_command("head", gcs_server_port=port, no_monitor=True, **shape)
        self.head = self._started(Machine("head", command, inside, variables))

    def add(
        self,
        name: str,
        ip: str = "127.0.0.1",
        inside: tuple[str, ...] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Machine:
        """A machine of one core that is up."""
        command = node_command(name, gcs_address=self.address, node_ip_address=ip, num_cpus=1)
        return self._started(Machine(name, command, inside, variables))

    def _started(self, machine: Machine) -> Machine:
        self.up.append(machine)
        deadline = time.monotonic() + HANG_SECONDS
        while machine.name not in self.ids():
            assert machine._process.poll() is None, f"{machine.name} did not start: {machine.last_words}"
            assert time.monotonic() < deadline, f"{machine.name} is not up"
            time.sleep(0.2)
        return machine

    def __getitem__(self, name: str) -> Machine:
        return next(machine for machine in self.up if machine.name == name)

    def ids(self) -> dict[str, str]:
        """{name: Ray's id} of the machines that are up; none while the head does not answer."""
        return dict(self._answer("") or {})

    def _answer(self, question: str) -> Any:
        """None if the head does not answer."""
        assert self._asker.stdin is not None
        assert self._asker.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._asker.stdin.write(f"{question}\n")
            self._asker.stdin.flush()
        answer = self._asker.stdout.readline()
        if not answer:  # it failed
            self._asker.wait()
            self._asker = self._new_asker()
        return json.loads(answer or "null")

    def _new_asker(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._inside, sys.executable, "-c", ASKER, self.address],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def take_back(self, machine: Machine, seconds: int) -> None:
        """Says what a cloud's agent says before it takes a machine back."""
        until = int((time.time() + seconds) * 1000)
        is_accepted, reason = self._answer(json.dumps([self.ids()[machine.name], until]))
        assert is_accepted, reason

    def remove(self, machine: Machine) -> None:
        """Kills a machine."""
        machine.kill()
        self.up.remove(machine)

    def close(self) -> None:
        """Kills all of them."""
        for machine in reversed(self.up):
            machine.kill()
        self._asker.kill()
        self._asker.wait()
