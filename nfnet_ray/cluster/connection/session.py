"""A connection to Ray: to a cluster that is up, or to a Ray that is started on this machine and ends with us."""

from __future__ import annotations

import gc
import logging
import os
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nfnet_ray.cluster.connection import ray_internals
from nfnet_ray.cluster.connection.address import LOCAL, find_head, has_token, temporary_folder
from nfnet_ray.cluster.connection.job import forget_job
from nfnet_ray.cluster.connection.local_ray import LocalRay
from nfnet_ray.cluster.connection.resources import Resources
from nfnet_ray.command_line.interruption import handlers_kept
from nfnet_ray.errors import UserError
from nfnet_ray.places import check_can_write, check_path
from nfnet_ray.processor import available_cpus, processor_name
from nfnet_ray.wording import count

_LIBRARY = Path(__file__).parents[2]
LONGEST_SOCKET_PATH = 107
"""The longest path of a Unix socket in bytes: unix(7), without the zero at the end."""
LONGEST_BELOW_TEMPORARY = len(ray_internals.LONGEST_SOCKET)

LEAST_TEMPORARY_BYTES = 10_000_000
"""Ray's logs of a study are 0.3 to 2.4 MB; if they do not fit, workers die."""


@contextmanager
def ray_session(address: str | None, *, packages: Sequence[Path] = ()) -> Generator[Resources]:
    """Connects to Ray and, at the end, disconnects; a local Ray is started and stopped.

    Args:
        address: None or ``local`` for a local Ray, else what ``--address`` takes.
        packages: folders of packages whose code the cluster's workers run, in addition to this library's.

    Raises:
        UserError: no head is there or it does not accept us, Ray does not start, or this process has one already.
    """
    for name, value in ray_internals.SETTINGS.items():
        os.environ.setdefault(name, value)
    wants_token = False
    if address in (None, LOCAL):
        address = None
        _forget_clusters()
        check_temporary_folder()
    else:
        head = find_head(address)
        address, wants_token = head.address, head.wants_token
        if wants_token:  # Ray sends one to a given address only in this mode
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        raise UserError("this process is connected to Ray already: call ray.shutdown() first")
    if address is not None and ray_internals.sends_token() != wants_token:
        # With a token that it does not ask for, workers would never answer: they show none.
        needs, mode = ("needs a token", "token") if wants_token else ("does not use tokens", "disabled")
        raise UserError(
            f"--address {address}: that cluster {needs}, and this process imported Ray without RAY_AUTH_MODE={mode}, "
            "which Ray reads only then: set it, and start the process or the notebook's kernel again"
        )
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    local_ray = LocalRay()
    try:
        if address is None:
            cores = available_cpus()
            shape: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False}
            _start(local_ray, shape | quiet)
        else:
            # Workers run this driver's code, not whatever their node has installed.
            modules = [str(package) for package in (_LIBRARY, *packages)]
            code = {"py_modules": modules, "excludes": ["__pycache__"]}
            with handlers_kept():
                ray.init(address=address, runtime_env=code, **quiet)
    except ConnectionError as error:
        raise UserError(
            f"--address {address}: Ray refuses the connection ({str(error).splitlines()[0]}); is the cluster still up?"
        ) from None
    try:
        yield _resources()
    finally:
        gc.collect()  # Ray ends the process if a reference to it is collected after the shutdown
        local_ray.end() if address is None else ray.shutdown()


def _start(local_ray: LocalRay, options: dict[str, Any]) -> Any:
    """Starts it, and once more if Ray's processes are late, as they are on a busy machine.

    Raises UserError if it does not start.
    """
    for attempt in range(2):
        try:
            return local_ray.start(**options)
        except Exception as error:
            local_ray.end()  # the processes that did start
            if attempt == 0 and ray_internals.STARTUP_TIMEOUT in str(error):
                continue
            line = next(
                (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
            )
            logs = temporary_folder() / "ray" / "session_latest" / "logs"
            raise UserError(
                f"Ray does not start on this machine ({line}); its own logs are in {logs}"
            ) from error
    raise AssertionError


def check_temporary_folder() -> None:
    """Raises UserError if a local Ray cannot keep its sockets and logs where it would.

    That is in ``$RAY_TMPDIR``, else ``$TMPDIR``, else ``/tmp``.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if not os.environ.get(name, "unset"):
            del os.environ[name]  # to Ray an empty one is the current folder
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "/tmp")
    folder = check_path(temporary_folder(), name, makes=LONGEST_BELOW_TEMPORARY)
    length = len(os.fsencode(folder))
    if not folder.is_absolute():
        raise UserError(
            f"{name}: {folder} is a relative path; set RAY_TMPDIR to an absolute one, such as /tmp"
        )
    if length + LONGEST_BELOW_TEMPORARY > LONGEST_SOCKET_PATH:
        raise UserError(
            f"{name}: {folder} is too long for the sockets that Ray makes in it ({length} bytes, and "
            f"{LONGEST_SOCKET_PATH - LONGEST_BELOW_TEMPORARY} are the most): set RAY_TMPDIR to a shorter one, such as "
            "/tmp"
        )
    check_can_write(folder / "ray", name, LEAST_TEMPORARY_BYTES)


def _forget_clusters() -> None:
    """Removes from the environment what names a cluster: a local Ray and its processes must not join one."""
    forget_job()
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    # Ray asks for a token here too, and would write one into a home that may not be writable.
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and not has_token():
        try:
            (Path.home() / ".ray").mkdir(exist_ok=True)
            is_writable = os.access(Path.home() / ".ray", os.W_OK)
        except (OSError, RuntimeError):  # RuntimeError: there is no home
            is_writable = False
        if not is_writable:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def local_resources() -> Resources:
    """The resources that a local Ray would have, without starting one. The memory is not looked up and is 0."""
    cpus, gpus = float(available_cpus()), float(_local_gpus())
    description = f"{count(cpus, 'CPU core')} ({processor_name()})" + (
        f", {count(gpus, 'GPU')}" if gpus else ""
    )
    return Resources(1, cpus, gpus, 0.0, description, ((cpus, gpus),))


def _local_gpus() -> int:
    """The GPUs that this process may use, as Ray counts them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])
    with suppress(Exception):  # no driver, or no library for it
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    return 0


def memory_bytes_here(gpu: bool) -> float | None:
    """The memory of this machine, or of its smallest GPU, in bytes; None where it is unknown."""
    if not gpu:
        with suppress(OSError, ValueError):
            return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        return None
    with suppress(Exception):  # no driver, or no library for it
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return float(min(pynvml.nvmlDeviceGetMemoryInfo(handle).total for handle in handles))
    return None


def _resources() -> Resources:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    models = sorted(
        name.removeprefix("accelerator_type:") for name in total if name.startswith("accelerator_type:")
    )
    parts = [count(cpus, "CPU core") + (f" ({processor_name()})" if len(nodes) == 1 else "")]
    if gpus:
        parts.append(count(gpus, "GPU") + (f" ({', '.join(models)})" if models else ""))
    if len(nodes) > 1:
        parts.append(f"{len(nodes)} nodes")
    machines = tuple((node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes)
    memory_gib = total.get("memory", 0.0) / 2**30
    return Resources(len(nodes), cpus, gpus, memory_gib, ", ".join(parts), machines)
