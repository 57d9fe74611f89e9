"""Finds the Ray head that an address means and checks that it accepts us, in seconds and before Ray is imported.

Ray itself waits minutes for a head that has ended, and reports it in log lines of its own.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.job import is_submitted
from nfnet_ray.errors import UserError

ANSWER_SECONDS = 5.0
"""How long to wait for an answer before an error is shown."""
JOINING_SECONDS = 5.0
"""At most this long after its start a node is known to the head (``ray start`` waits for that)."""

AUTO, LOCAL = "auto", "local"

_HEAD_PORT = "the head's own port is 6379, unless `ray start --port` named another"


@dataclass(frozen=True)
class Head:
    """A Ray head that answers at ``address``, HOST:PORT, and accepts drivers from this machine."""

    address: str
    wants_token: bool


@dataclass(frozen=True)
class _Meant:
    """The HOST:PORT that is meant. ``named`` tells a person where it comes from, ``remedy`` what to do instead."""

    address: str
    named: str
    remedy: str
    was_found: bool = False
    """Whether no address was given, and the only Ray on this machine is meant."""


def where_to_run(address: str | None) -> str | None:
    """What ``--address`` means: None for a local Ray that this process starts, else ``auto`` or the address.

    A job that was submitted to a cluster runs there, unless it says ``local``.
    """
    if address is None:
        return AUTO if is_submitted() else None
    return None if address == LOCAL else address


def find_head(address: str) -> Head:
    """The head at ``address``, which is ``auto`` or HOST:PORT; ``auto`` means the same as it does to Ray.

    Raises:
        UserError: no head is there, something else is, or this machine or installation cannot use it.
    """
    meant = _meant(address)
    host, port = _host_and_port(meant)
    answers: list[Head | UserError] = []

    def ask() -> None:
        try:
            answers.append(_ask(meant, host, port))
        except UserError as error:
            answers.append(error)

    # In a thread: asking a name server has no timeout.
    thread = threading.Thread(target=ask, name="address", daemon=True)
    thread.start()
    thread.join(2 * ANSWER_SECONDS)
    if not answers:
        raise UserError(
            f"{meant.named}: no answer for {2 * ANSWER_SECONDS:.0f} s; is that host up? If not, {meant.remedy}"
        )
    if isinstance(answers[0], UserError):
        raise answers[0]
    _check_is_node(meant, answers[0])
    return answers[0]


def _meant(address: str) -> _Meant:
    """Follows ray/_private/services.py, ``get_ray_address_from_environment``."""
    if address != AUTO:
        remedy = "give one that is up, or leave --address out to use this machine alone"
        return _Meant(address.strip(), f"--address {address.strip() or repr(address)}", remedy)
    from_environment = os.environ.get("RAY_ADDRESS", "").strip()
    if from_environment not in ("", AUTO):
        remedy = "set RAY_ADDRESS to one that is up, or unset it, or leave --address out"
        return _Meant(from_environment, f"--address auto, RAY_ADDRESS={from_environment}", remedy)
    running = sorted({address for _, address, _ in raylets()})
    file = temporary_folder() / ray_internals.CURRENT_CLUSTER_FILE
    try:
        noted = file.read_text().strip()
    except (OSError, ValueError):
        noted = ""
    remedy = "that head has ended: start one with `ray start --head`, or leave --address out"
    if len(running) == 1 or (running and not noted):
        return _Meant(
            running[0], f"--address auto, {running[0]} of this machine's Ray", remedy, was_found=True
        )
    if not noted:
        raise UserError(
            "--address auto: no Ray is running on this machine; start one with `ray start --head`, "
            "or leave --address out"
        )
    if running:
        others = ", ".join(running)
        remedy = (
            f"that head has ended: give --address one that is up (on this machine {others}), or leave it out"
        )
    return _Meant(noted, f"--address auto, {noted} in {file}", remedy)


def temporary_folder() -> Path:
    """Where Ray keeps its temporary files, as in ray/_common/utils.py, ``get_default_system_temp_dir``."""
    return Path(os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp")))


def _host_and_port(meant: _Meant) -> tuple[str, int]:
    address = meant.address
    if address.startswith("ray://"):
        raise UserError(
            f"{meant.named}: Ray Client cannot run a study; run it on the cluster with "
            "`ray job submit --address http://HEAD:8265 -- python studies/... --address auto`"
        )
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{meant.named}: that address is for submitting jobs: `ray job submit --address {address} -- "
            "python studies/...`; a driver needs HOST:PORT of the head, such as 10.0.0.1:6379"
        )
    bracketed = re.fullmatch(r"\[(?P<host>[^\]]+)\]:(?P<port>\d+)", address)
    plain = re.fullmatch(r"(?P<host>[^:\[\]/\s]+):(?P<port>\d+)", address)
    match = bracketed or plain
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        form = (
            "write an IPv6 address in brackets, [fd00::1]:6379"
            if address.count(":") > 1 and "/" not in address
            else "write auto, or HOST:PORT of a Ray head, such as 10.0.0.1:6379"
        )
        raise UserError(f"{meant.named}: {form}")
    return match["host"], int(match["port"])


def _ask(meant: _Meant, host: str, port: int) -> Head:
    _connect(meant, host, port)
    token, wants_token = None, False
    answer = _call(meant, ray_internals.CHECK_ALIVE, b"", token)
    if answer is None:
        token, wants_token = _token(), True
        if os.environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
            raise UserError(
                f"{meant.named}: that cluster needs a token, but RAY_AUTH_MODE=disabled is set: unset it"
            )
        how = "put the cluster's, which its head prints with `ray get-auth-token`, into RAY_AUTH_TOKEN"
        if token is None:
            raise UserError(f"{meant.named}: that cluster needs a token, and this machine has none: {how}")
        answer = _call(meant, ray_internals.CHECK_ALIVE, b"", token)
        if answer is None:
            raise UserError(f"{meant.named}: that cluster does not take the token of this machine: {how}")
    elif os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        # The study would start, and then its workers, which send no token, would think that this process is dead.
        raise UserError(
            f"{meant.named}: that cluster does not use tokens: start again with RAY_AUTH_MODE=disabled"
        )
    ray_version = _first(answer, ray_internals.CHECK_ALIVE_RAY_VERSION).decode(errors="replace")
    key = _field(1, ray_internals.METADATA_KEY) + _field(2, ray_internals.METADATA_NAMESPACE)
    reply = _call(meant, ray_internals.READ_VALUE, key, token) or b""
    value = _first(reply, ray_internals.READ_VALUE_VALUE)
    _check_versions(meant, ray_version, value)
    if meant.was_found and ray_internals.METADATA_OF_A_PROGRAM in value:
        raise UserError(
            f"--address auto: no cluster is up on this machine; the Ray at {meant.address} is another program's own "
            "and ends with it. Start one with `ray start --head`, or leave --address out"
        )
    return Head(meant.address, wants_token)


def _connect(meant: _Meant, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), ANSWER_SECONDS).close()
    except TimeoutError:
        raise UserError(
            f"{meant.named}: no Ray answers there (nothing for {ANSWER_SECONDS:.0f} s); {meant.remedy}"
        ) from None
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{meant.named}: no Ray answers there ({why}); {meant.remedy}") from None


def _call(meant: _Meant, method: str, request: bytes, token: str | None) -> bytes | None:
    """The reply of the head, or None if it wants a token, or another one than ``token``."""
    import grpc  # a dependency of Ray

    metadata = (("authorization", f"Bearer {token}"),) if token else None
    with _channel(meant.address) as channel:
        try:
            reply: bytes = channel.unary_unary(method)(request, timeout=ANSWER_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return None
            if code is grpc.StatusCode.UNIMPLEMENTED:
                what = "a gRPC server answers there, such as Ray Client's, and not the head"
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                what = f"it accepts connections but says nothing for {ANSWER_SECONDS:.0f} s; perhaps the head hangs"
            elif _is_web_server(meant):
                what = "a web server answers there, such as Ray's dashboard, and not the head"
            else:
                what = f"what answers there is no Ray head ({code.name})"
            raise UserError(f"{meant.named}: {what}; {_HEAD_PORT}") from None
    return reply


def _is_web_server(meant: _Meant) -> bool:
    connection = http.client.HTTPConnection(*_host_and_port(meant), timeout=ANSWER_SECONDS)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _channel(address: str) -> Any:
    """A gRPC channel, made as in ray/_private/grpc_utils.py."""
    import grpc

    # A proxy in the environment is for the web, and not for the head.
    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address, options)
    names = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")
    try:
        parts = [Path(os.environ[name]).read_bytes() for name in names]
    except (KeyError, OSError) as error:
        raise UserError(f"RAY_USE_TLS=1 needs {', '.join(names)}, and one cannot be read ({error})") from None
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*parts), options)


def _check_versions(meant: _Meant, ray_version: str, metadata: bytes) -> None:
    try:
        python_version = str(json.loads(metadata)[ray_internals.METADATA_PYTHON_VERSION])
    except (ValueError, KeyError, TypeError):
        python_version = ""
    here, python_here = version("ray"), platform.python_version()
    # Functions travel to workers as bytecode, which differs between minor versions of Python.
    differs = python_version and python_version.split(".")[:2] != python_here.split(".")[:2]
    if ray_version != here or differs:
        python = f" and Python {python_version}" if python_version else ""
        raise UserError(
            f"{meant.named}: that cluster runs Ray {ray_version or '(unknown)'}{python}, and this is Ray {here} and "
            f"Python {python_here}: install the cluster's versions here, or the ones from here on all its nodes"
        )


def _check_is_node(meant: _Meant, head: Head) -> None:
    """Raises UserError if no node of the cluster runs on this machine: a driver reaches the cluster through one."""
    token = _token() if head.wants_token else None
    deadline = time.monotonic() + JOINING_SECONDS
    while True:
        here = list(raylets())
        request = b"".join(_field(1, bytes.fromhex(node)) for _, _, node in here)
        alive = _alive(_call(meant, ray_internals.CHECK_ALIVE, request, token) or b"") if here else []
        if any(alive):
            # Each is of this cluster: a head knows no other nodes.
            _check_may_use(meant, [node[0] for node, is_alive in zip(here, alive, strict=False) if is_alive])
            return
        if time.monotonic() > deadline:
            mode = "RAY_AUTH_MODE=token " if head.wants_token else ""  # else these commands send no token
            raise UserError(
                f"{meant.named}: this machine is not a node of that cluster: run on one that is, with `{mode}ray job "
                f"submit --address http://HEAD:8265 -- python studies/...`, or join by `{mode}ray start "
                f"--address={head.address}`"
            )
        time.sleep(0.5)


def _check_may_use(meant: _Meant, nodes: Sequence[int]) -> None:
    """Raises UserError if another user runs these nodes, by their process ids, and nobody else can use them.

    Ray makes their sockets with the umask of that user, and aborts the process of a driver that may not write to them.
    """
    sockets = [_arguments(node)[1].get(ray_internals.RAYLET_SOCKET_ARGUMENT, "") for node in nodes]
    if sockets and not any(not socket or os.access(socket, os.W_OK) for socket in sockets):
        raise UserError(
            f"{meant.named}: another user has started Ray on this machine, and only that user's programs can use it: "
            "submit a job with `ray job submit --address http://HEAD:8265 -- python studies/...`"
        )


def raylets() -> Iterator[tuple[int, str, str]]:
    """(process id, address of its head, hexadecimal id) of each node on this machine, by its process's arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        program, given = _arguments(int(folder.name))
        if "raylet" not in Path(program).name:
            continue
        address = given.get(ray_internals.RAYLET_HEAD_ARGUMENT, "")
        node = given.get(ray_internals.RAYLET_NODE_ARGUMENT, "")
        if address and re.fullmatch(r"([0-9a-f]{2})+", node):
            yield int(folder.name), address, node


def _arguments(process: int) -> tuple[str, dict[str, str]]:
    """The program of a process and its arguments of the form NAME=VALUE; empty if the process has ended."""
    try:
        program, *arguments = (
            Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
        )
    except OSError:
        return "", {}
    return program, dict(argument.split("=", 1) for argument in arguments if "=" in argument)


def has_token() -> bool:
    """Whether this machine has a token for Ray clusters."""
    return _token() is not None


def _token() -> str | None:
    """The token of this machine for Ray clusters, from the places where Ray looks for it, in its order."""
    named = os.environ.get("RAY_AUTH_TOKEN")
    if named:
        return named
    try:
        file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        return file.read_text().strip() or None
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home
        return None


def _field(number: int, value: bytes) -> bytes:
    """Encodes a protobuf field of at most 127 bytes."""
    return bytes([number << 3 | 2, len(value)]) + value


def _fields(message: bytes, number: int) -> list[Any]:
    """The values of a field of a protobuf message."""
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    try:
        found = UnknownFieldSet(Empty.FromString(message))
    except DecodeError:
        return []
    return [field.data for field in found if field.field_number == number]


def _first(message: bytes, number: int) -> bytes:
    """The first value of a field of bytes; empty if there is none."""
    return next(iter(_fields(message, number)), b"")


def _alive(reply: bytes) -> list[bool]:
    """Whether each of the requested nodes is alive; proto3 packs repeated booleans into bytes."""
    return [
        bool(byte) for packed in _fields(reply, ray_internals.CHECK_ALIVE_RAYLET_ALIVE) for byte in packed
    ]
