"""A connection to Ray: to a cluster that is up, or to one of our own on this machine."""

from __future__ import annotations

import gc
import logging
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nfnet_ray
from nfnet_ray.errors import UserError

CONNECT_DEADLINE_SECONDS = 5.0

# Read by Ray and Tune when they are imported. A study prints its own table, keeps its own journal and
# handles Ctrl-C itself.
_RAY_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial's last word has no accuracy
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Resources:
    """What a Ray cluster has, over all its nodes; ``machines`` is (cores, GPUs) of each."""

    nodes: int
    cpus: float
    gpus: float
    memory_gib: float
    description: str
    machines: tuple[tuple[float, float], ...] = ()


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_address(address: str) -> None:
    """Raises UserError, within seconds, if no Ray can be reached at ``address``."""
    if address.startswith("ray://"):
        raise UserError(
            f"--address {address}: Ray Client cannot run a study; run it on the cluster with "
            "`ray job submit --address http://HEAD:8265 -- python studies/... --address auto`"
        )
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UserError(f"--address {address}: write auto, or HOST:PORT of a Ray head, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), CONNECT_DEADLINE_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: no Ray answers there ({error.strerror or error}); "
            "start one with `ray start --head`, or leave --address out"
        ) from None


@contextmanager
def ray_session(
    address: str | None, *, train_in_tune: bool, packages: Sequence[Path] = ()
) -> Iterator[Resources]:
    """Connects to Ray and, at the end, disconnects; a Ray of our own is started and stopped.

    ``train_in_tune``: trials run TorchTrainer inside Tune. Then the dashboard has to be up: without it the
    placement group of a trial that is stopped early is never given back, and the next trial never starts.

    ``packages``: folders of packages whose code a cluster's workers run, besides this library's.
    """
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    if address is not None:
        check_address(address)
    # Ray sends a token to a known address only when told to; of its own accord to what it finds itself.
    known = (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address
    if known not in (None, "auto", "local") and _has_token() and not _answers_without_token(known):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    try:
        if address is None:
            # "local", or else Ray would join a cluster that happens to be up on this machine.
            cores = available_cpus()
            context = ray.init(address="local", num_cpus=cores, include_dashboard=train_in_tune, **quiet)
        else:
            # Workers run this driver's code, not whatever their node has installed.
            modules = [str(package) for package in (Path(nfnet_ray.__file__).parent, *packages)]
            code = {"py_modules": modules, "excludes": ["__pycache__"]}
            context = ray.init(address=address, runtime_env=code, **quiet)
    except ConnectionError as error:
        if address == "auto":
            raise UserError(
                "--address auto: no Ray is running on this machine; start one with `ray start --head`, "
                "or leave --address out"
            ) from None
        raise UserError(
            f"--address {address}: Ray does not let us in ({str(error).splitlines()[0]}); a cluster of another "
            "machine wants its token in RAY_AUTH_TOKEN"
        ) from None
    try:
        if address == "auto":
            _check_token_is_wanted(ray.get_runtime_context().gcs_address)
        if train_in_tune and not context.dashboard_url:
            raise UserError(
                "--workers-per-trial above 1 needs Ray's dashboard, without which a trial that is stopped early "
                "never gives its place back: start the head with `ray start --head --include-dashboard=true`"
            )
        yield _resources()
    finally:
        gc.collect()  # Ray ends the process if a reference to it is collected after the shutdown
        ray.shutdown()


def _processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def _has_token() -> bool:
    """Whether this machine holds a token for Ray clusters, in one of the places where Ray looks for it."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


def _answers_without_token(address: str) -> bool:
    """Whether the head at HOST:PORT lets anybody in. Asked of it directly, before Ray is imported and settles it."""
    import grpc  # Ray's own

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=CONNECT_DEADLINE_SECONDS)
        except grpc.RpcError:
            return False
    return True


def _check_token_is_wanted(address: str) -> None:
    """Raises UserError if Ray has taken up a token that lay about, and the cluster knows of none.

    Everything would start, and then the cluster's workers, which send no token, would take this process for dead.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and _answers_without_token(address):
        raise UserError(
            f"--address auto: the Ray at {address} was started without a token, and this machine has one by now "
            "(~/.ray/auth_token, unless RAY_AUTH_TOKEN names another): start again with RAY_AUTH_MODE=disabled"
        )


def _resources() -> Resources:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    models = sorted(
        name.removeprefix("accelerator_type:") for name in total if name.startswith("accelerator_type:")
    )
    parts = [f"{cpus:g} CPU cores" + (f" ({_processor()})" if len(nodes) == 1 else "")]
    if gpus:
        parts.append(f"{gpus:g} GPUs" + (f" ({', '.join(models)})" if models else ""))
    if len(nodes) > 1:
        parts.append(f"{len(nodes)} nodes")
    machines = tuple((node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes)
    memory_gib = total.get("memory", 0.0) / 2**30
    return Resources(len(nodes), cpus, gpus, memory_gib, ", ".join(parts), machines)
