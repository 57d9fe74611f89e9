"""A Ray cluster of several nodes on this machine, each a ``ray start`` that can be killed, perhaps in a namespace."""

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
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.cluster.training import descendants, environment
from tests.deadlines import HANG_SECONDS
from tests.ports import unused_port

RAY = str(Path(sys.executable).with_name("ray"))
# Workers take any port that is free. By default each node gives its own those from 10002 on, and here all nodes are on
# one machine.
RAY_START = (RAY, "start", "--block", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0")
# A head without the dashboard, a dozen processes that each import Ray, and without what carries logs to a terminal.
QUIET = ("--include-dashboard=false", "--include-log-monitor=false")
# A node starts a worker for each core when a driver connects. Studies send their code, which needs workers of its own.
# Every five seconds it asks the system for what it says of its processes, which nobody looks at here.
IDLE = {"RAY_prestart_worker_first_driver": "0", "REPORTER_UPDATE_INTERVAL_MS": "3600000"}
# For each line that it reads it prints a line of JSON: {name: id} of the nodes that are up. One process answers all
# questions, because each would import Ray again, which takes over a second. It imports nothing before the head listens.
ASKER = """\
import json, socket, sys
host, port = sys.argv[1].rsplit(":", 1)
client = None
for _ in sys.stdin:
    if client is None:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            print("{}", flush=True)
            continue
        from ray._raylet import GcsClient
        client = GcsClient(address=sys.argv[1])
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


class Machine:
    """One node. ``inside`` is a command that runs another one elsewhere, such as ``ip netns exec NAME``."""

    def __init__(
        self, name: str, arguments: list[str], inside: tuple[str, ...], variables: Mapping[str, str]
    ) -> None:
        self.name = name
        with tempfile.NamedTemporaryFile(prefix="ray-start-", delete=False) as output:
            self._output = Path(output.name)
            self._process = subprocess.Popen(
                [*inside, *RAY_START, f"--node-name={name}", *arguments],
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
        """The end of what ``ray start`` said."""
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

    Every port is an unused one, so that another head on this machine is not in the way. ``autoscaler`` is the file of
    its settings; without it there is none.
    """

    def __init__(
        self,
        ip: str = "127.0.0.1",
        inside: tuple[str, ...] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
        head_cores: int = 0,
        autoscaler: Path | None = None,
        port: int | None = None,
    ) -> None:
        make_token()
        self.address = f"{ip}:{port or unused_port()}"
        self._inside = inside
        self._asker = self._new_asker()
        self.up: list[Machine] = []
        """The head and the others, in the order in which they came."""
        listen = f"--port={self.address.rpartition(':')[2]}"
        ports = [
            f"--{name}-port={unused_port()}"
            for name in ("dashboard", "dashboard-agent-listen", "ray-client-server")
        ]
        shape = [f"--num-cpus={head_cores}", f"--node-ip-address={ip}"]
        monitor = f"--autoscaling-config={autoscaler}" if autoscaler else "--no-monitor"
        arguments = ["--head", listen, *ports, *shape, *QUIET, monitor]
        self.head = self._started(Machine("head", arguments, inside, variables))

    def add(
        self,
        name: str,
        ip: str = "127.0.0.1",
        inside: tuple[str, ...] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Machine:
        """A machine of one core that is up."""
        arguments = [f"--address={self.address}", f"--node-ip-address={ip}", "--num-cpus=1"]
        agent = f"--dashboard-agent-listen-port={unused_port()}"
        arguments += [agent, "--include-log-monitor=false"]
        return self._started(Machine(name, arguments, inside, variables))

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
        assert self._asker.stdin is not None
        assert self._asker.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._asker.stdin.write("\n")
            self._asker.stdin.flush()
        answer = self._asker.stdout.readline()
        if not answer:  # it failed
            self._asker.wait()
            self._asker = self._new_asker()
        return dict(json.loads(answer or "{}"))

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
        subprocess.run(
            [*self._inside, RAY, "drain-node", f"--address={self.address}", f"--node-id={self.ids()[machine.name]}",
             "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
             f"--deadline-remaining-seconds={seconds}"],
            env=environment(), check=True, capture_output=True, timeout=HANG_SECONDS,
        )  # fmt: skip

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
