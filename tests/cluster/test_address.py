"""Addresses without a head, or with one we cannot use: one line each, within seconds, without starting Ray.

The heads are made here: servers that answer the two questions that are asked of one. About 10 s.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest

from nfnet_ray.cluster.connection import address as address_module
from nfnet_ray.cluster.connection.address import find_head, where_to_run
from nfnet_ray.errors import UserError
from tests.ports import unused_port

TOKEN = "0123456789abcdef" * 4
NODE = "ab" * 28
raylets_of_this_machine = address_module.raylets
OURS = {"ray_version": version("ray"), "python_version": platform.python_version()}


class FakeHead(grpc.GenericRpcHandler):
    """What a head of these versions says; without ``nodes`` no node is alive."""

    def __init__(self, versions: dict[str, str], token: str | None = None, alive: bool = True) -> None:
        self.versions, self.token, self.alive = versions, token, alive
        self.metadata: dict[str, object] = {"ray_init_cluster": False}

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        metadata = dict(handler_call_details.invocation_metadata)
        answers: dict[str, Callable[[bytes], bytes]] = {
            "/ray.rpc.NodeInfoGcsService/CheckAlive": self._check_alive,
            "/ray.rpc.InternalKVGcsService/InternalKVGet": self._read,
        }
        answer = answers.get(handler_call_details.method)
        if answer is None:
            return None

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self.token and metadata.get("authorization") != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return answer(request)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _check_alive(self, request: bytes) -> bytes:
        told = self.versions["ray_version"].encode()
        reply = b"\x0a\x00\x12" + bytes([len(told)]) + told
        return reply + b"\x1a\x01" + bytes([self.alive]) if request else reply

    def _read(self, request: bytes) -> bytes:
        assert b"CLUSTER_METADATA" in request
        value = json.dumps(self.versions | self.metadata).encode()
        assert len(value) < 128
        return b"\x0a\x00\x12" + bytes([len(value)]) + value


class NoHead(grpc.GenericRpcHandler):
    def service(self, _handler_call_details: Any) -> None:
        return None


@pytest.fixture
def serve() -> Iterator[Callable[[grpc.GenericRpcHandler], str]]:
    servers = []

    def start(handler: grpc.GenericRpcHandler) -> str:
        server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of Ray's in the environment, no Ray on the machine, and patience of half a second."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS",
                 "RAY_JOB_CONFIG_JSON_ENV_VAR"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    on_this_machine(monkeypatch)
    monkeypatch.setattr(address_module, "JOINING_SECONDS", 0.5)


def on_this_machine(monkeypatch: pytest.MonkeyPatch, *heads: str) -> None:
    """A node of each of these heads runs here."""
    monkeypatch.setattr(address_module, "raylets", lambda: ((1, head, NODE) for head in heads))


def refusal(address: str) -> str:
    with pytest.raises(UserError) as caught:
        find_head(address)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_head_that_takes_us(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head = serve(FakeHead(OURS))
    on_this_machine(monkeypatch, head)
    for asked in (head, "auto"):
        found = find_head(asked)
        assert (found.address, found.wants_token) == (head, False)
    monkeypatch.setenv("RAY_ADDRESS", f" {head}\n")
    assert find_head("auto").address == head


def test_auto_does_not_join_the_ray_of_another_program(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of another study, with which it would end."""
    private = FakeHead(OURS)
    private.metadata = {"ray_init_cluster": True}
    head = serve(private)
    on_this_machine(monkeypatch, head)
    assert "another program's own" in refusal("auto")
    assert find_head(head).address == head  # whoever names it means it


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("ray://somewhere:10001", "ray job submit"),
        ("http://somewhere:8265", "ray job submit --address http://somewhere:8265"),
        ("::1:6379", "in brackets, [fd00::1]:6379"),
        ("fd00::2", "in brackets"),
        ("somewhere", "HOST:PORT"),
        ("", "--address ''"),
        (":6379", "HOST:PORT"),
        ("somewhere:0", "HOST:PORT"),
        ("somewhere:99999", "HOST:PORT"),
        ("some where:6379", "HOST:PORT"),
        (f"{'x' * 70}.invalid:6379", "no Ray answers there"),
        ("local", "HOST:PORT"),
    ],
)
def test_anything_but_an_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str, word: str) -> None:
    assert word in refusal(address)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        line = refusal("auto")
        assert word in line
        assert f"RAY_ADDRESS={address}" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    address = f"{host}:{unused_port()}"
    assert "no Ray answers there" in refusal(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS={address}: no Ray answers there" in refusal("auto")


def test_the_address_file_of_a_head_that_was_killed(
    serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "no Ray is running on this machine" in refusal("auto")
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    dead = f"127.0.0.1:{unused_port()}"
    file.write_text(dead)
    line = refusal("auto")
    assert f"{dead} in {file}" in line
    assert "has ended" in line
    on_this_machine(monkeypatch, "10.0.0.1:1", "10.0.0.2:2")
    assert "one that is up (on this machine 10.0.0.1:1, 10.0.0.2:2)" in refusal("auto")
    head = serve(FakeHead(OURS))
    on_this_machine(monkeypatch, head)
    assert find_head("auto").address == head  # as Ray does, for it is the only one


def test_a_web_server_such_as_the_dashboard() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "such as Ray's dashboard" in refusal(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_another_of_rays_servers(serve: Any) -> None:
    assert "such as Ray Client's" in refusal(serve(NoHead()))


def test_something_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = refusal(f"127.0.0.1:{server.getsockname()[1]}")
    assert "says nothing" in line


@pytest.mark.parametrize(
    ("versions", "word"),
    [
        ({"ray_version": "2.9.0"}, "runs Ray 2.9.0 and Python"),
        ({"python_version": "3.8.20"}, "and Python 3.8.20, and this is"),
    ],
)
def test_another_version(serve: Any, monkeypatch: pytest.MonkeyPatch, versions: Any, word: str) -> None:
    head = serve(FakeHead(OURS | versions))
    on_this_machine(monkeypatch, head)
    assert word in refusal(head)


def test_another_patch_of_python_will_do(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor, _ = platform.python_version_tuple()
    head = serve(FakeHead(OURS | {"python_version": f"{major}.{minor}.99"}))
    on_this_machine(monkeypatch, head)
    find_head(head)


def test_a_node_of_another_user_is_not_to_abort_this_process(
    serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head, socket_file = serve(FakeHead(OURS)), tmp_path / "raylet"
    socket_file.touch()
    arguments = {"--raylet_socket_name": str(socket_file)}
    on_this_machine(monkeypatch, head)
    monkeypatch.setattr(address_module, "_arguments", lambda _process: ("raylet", arguments))
    find_head(head)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    assert "another user has started Ray on this machine" in refusal(head)


def test_a_machine_that_is_no_node(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head = serve(FakeHead(OURS, alive=False))
    assert "this machine is not a node" in refusal(head)
    on_this_machine(monkeypatch, "10.0.0.1:6379")  # of another cluster
    assert "this machine is not a node" in refusal(head)


def test_tokens(serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    head = serve(FakeHead(OURS, token=TOKEN))
    on_this_machine(monkeypatch, head)
    assert "this machine has none" in refusal(head)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert "does not take the token" in refusal(head)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    assert find_head(head).wants_token
    on_this_machine(monkeypatch)
    assert f"or join by `RAY_AUTH_MODE=token ray start --address={head}`" in refusal(head)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "RAY_AUTH_MODE=disabled" in refusal(head)

    tokenless = serve(FakeHead(OURS))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "does not use tokens" in refusal(tokenless)


def test_a_submitted_job_runs_on_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert where_to_run(None) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {}}')
    assert where_to_run(None) == "auto"
    assert where_to_run("local") is None
    assert where_to_run("10.0.0.1:6379") == "10.0.0.1:6379"


def test_the_nodes_of_this_machine_are_found_by_their_processes(tmp_path: Path) -> None:
    raylet = tmp_path / "raylet"
    raylet.symlink_to(Path(sys.executable).resolve())
    process = subprocess.Popen(
        [str(raylet), "-c", "import sys; print(flush=True); sys.stdin.read()", f"--node_id={NODE}",
         "--gcs-address=10.1.2.3:4567"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert (process.pid, "10.1.2.3:4567", NODE) in set(raylets_of_this_machine())
    finally:
        process.kill()
        process.wait()
