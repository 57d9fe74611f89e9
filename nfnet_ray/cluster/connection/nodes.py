"""Checks every node of a Ray cluster: the data is there, the same and, on request, undamaged; its GPUs can be used."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nfnet_ray.cluster.connection.address import raylets
from nfnet_ray.cluster.connection.gpu_driver import gpu_problem
from nfnet_ray.cluster.connection.gpu_sharing import mps_is_up
from nfnet_ray.cluster.connection.resources import WorkerResources
from nfnet_ray.command_line.progress import Progress
from nfnet_ray.data.files.dataset import DatasetSummary, open_dataset, split_paths
from nfnet_ray.data.files.file_identity import FileIdentity, file_identity
from nfnet_ray.data.files.verification import check_all
from nfnet_ray.errors import UserError
from nfnet_ray.processor import available_cpus

T = TypeVar("T")

# To start a process on a node and read 48 bytes of each of a million images.
ANSWER_SECONDS = 120.0
_SECONDS_BETWEEN_REPORTS = 0.5
_DONE = ""


@dataclass(frozen=True)
class _View:
    """The data as a node sees it, or why it cannot use it."""

    problem: str | None
    fingerprint: str = ""
    files: tuple[FileIdentity, ...] = ()
    stored_bytes: int = 0


def check_nodes(data: DatasetSummary, worker: WorkerResources, *, verify: bool, progress: Progress) -> None:
    """Checks the data on every node where a worker fits, before anything is started.

    Each node opens the data set, which checks all but the images' bytes, and must find the same fingerprint as this
    process. With ``verify``, the bytes of each copy are checked against their hashes too, by one of the nodes that see
    it; the copy that this process sees has been checked already. Nodes that see the files of this process are not
    asked: an answer takes seconds, in which a process starts there. Needs a
    :func:`nfnet_ray.cluster.connection.session.ray_session`.

    Raises:
        UserError: a node, which is named, has no data, other data or damaged data, or does not answer.
    """
    ours = {node for process, _, node in raylets() if _sees_our_files(process)}
    nodes = {node: name for node, name in _nodes_that_train(worker).items() if node not in ours}
    views = _views_of(data.path, nodes)
    for node, view in views.items():
        if view.problem is not None:
            raise UserError(f"{nodes[node]}: {view.problem}")
        if view.fingerprint != data.fingerprint:
            raise UserError(
                f"{nodes[node]}: {data.path} has other data there (fingerprint {view.fingerprint}, here "
                f"{data.fingerprint}): copy the data set to it again, or put it where every node sees it"
            )
    if verify:
        copies = {view.files: node for node, view in reversed(views.items())}
        copies.pop(_files(data.path), None)
        _verify_copies(data.path, {node: nodes[node] for node in copies.values()}, views, progress)


def check_gpus(worker: WorkerResources) -> None:
    """Checks that torch can compute on the GPUs of the nodes where a worker fits. Passes over those without an answer.

    Nodes that join later are asked where workers fail. Needs a
    :func:`nfnet_ray.cluster.connection.session.ray_session`.

    Raises:
        UserError: torch cannot, on the node that is named.
    """
    for node, problem in gpu_problems(worker).items():
        raise UserError(
            f"{node}: torch cannot use its GPUs: {problem}; put that right, or train on CPUs with --gpus-per-worker 0"
        )


def gpu_problems(worker: WorkerResources) -> dict[str, str]:
    """{name of a node on which a worker fits: why torch cannot use its GPUs}, of those that say so."""
    if not worker.gpus:
        return {}
    # Its process ends with it: it has opened the GPUs.
    answers = _answers(gpu_problem, worker, max_calls=1)
    return {node: problem for node, problem in answers.items() if problem is not None}


def nodes_with_mps(worker: WorkerResources) -> dict[str, bool]:
    """{name of a node on which a worker fits: whether MPS is up there}, without nodes that do not answer.

    Needs a :func:`nfnet_ray.cluster.connection.session.ray_session`.
    """
    return _answers(mps_is_up, worker)


def _answers(question: Callable[[], T], worker: WorkerResources, **options: Any) -> dict[str, T]:
    """{name of a node on which a worker fits: what ``question`` gives there}, without nodes that do not answer."""
    import ray

    nodes = _nodes_that_train(worker)
    tasks = {node: _on_node(question, node, **options).remote() for node in nodes}
    ready, _ = (
        ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=ANSWER_SECONDS) if tasks else ([], [])
    )
    found = {}
    for node, task in tasks.items():
        if task in ready:
            with suppress(ray.exceptions.RayError):
                found[nodes[node]] = ray.get(task)
    return found


def _nodes_that_train(worker: WorkerResources) -> dict[str, str]:
    """{id: name for a person} of the nodes on which a worker fits."""
    import ray

    return {
        node["NodeID"]: f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= worker.cpus
        and node["Resources"].get("GPU", 0) >= worker.gpus
    }


def _sees_our_files(process: int) -> bool:
    """Whether a process of this machine has the mounts, the root folder and the user of this one."""
    folder = f"/proc/{process}"
    try:
        return (
            os.readlink(f"{folder}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
            and os.path.samefile(f"{folder}/root", "/")
            and os.stat(folder).st_uid == os.geteuid()
        )
    except OSError:  # it has ended, or we may not look
        return False


def _on_node(function: Any, node: str, **options: Any) -> Any:
    """A task that runs on that node without reserving a core."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return remote(num_cpus=0, max_retries=0, scheduling_strategy=place, **options)(function)


def _views_of(path: Path, nodes: Mapping[str, str]) -> dict[str, _View]:
    import ray

    tasks = {node: _on_node(_view_of, node).remote(path) for node in nodes}
    if not tasks:
        return {}
    _, silent = ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=ANSWER_SECONDS)
    for node, task in tasks.items():
        if task in silent:
            raise UserError(
                f"{nodes[node]}: no answer for {ANSWER_SECONDS:.0f} s when it was asked for {path}: are the "
                "node and its file system up?"
            )
    return {node: _result(task, nodes[node]) for node, task in tasks.items()}


def _result(reference: Any, name: str) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(
            f"{name}: lost while its data was being checked ({reason}); start again when it is back, or has left "
            "the cluster"
        ) from error


def _view_of(path: Path) -> _View:
    """Runs on a node."""
    if not path.exists():
        return _View(f"there is no {path}: put the data where every node sees it, or copy it there")
    try:
        dataset = open_dataset(path)
        stored_bytes = sum(int(split.beton.sizes.sum()) for split in (dataset.train, dataset.validation))
        return _View(None, dataset.fingerprint, _files(path), stored_bytes)
    except (UserError, OSError) as error:
        return _View(str(error))


def _files(path: Path) -> tuple[FileIdentity, ...]:
    return tuple(file_identity(file) for pair in split_paths(path).values() for file in pair)


def _verify_copies(
    path: Path, copies: Mapping[str, str], views: Mapping[str, _View], progress: Progress
) -> None:
    import ray

    if not copies:
        return
    streams: dict[Any, str] = {
        _on_node(_verify, node, num_returns="streaming").remote(path): name for node, name in copies.items()
    }
    total = sum(views[node].stored_bytes for node in copies)
    what = next(iter(copies.values())) if len(copies) == 1 else f"{len(copies)} copies of the data"
    try:
        with progress(what, total) as advance:
            while streams:
                ready: list[Any] = ray.wait(
                    list(streams), timeout=_SECONDS_BETWEEN_REPORTS, fetch_local=False
                )[0]
                for stream in ready:
                    word = _result(next(stream), streams[stream])
                    if isinstance(word, int):
                        advance(word)
                        continue
                    name = streams.pop(stream)
                    if word != _DONE:
                        raise UserError(f"{name}: {word}")
    finally:
        # Only those that still run: force ends the process, which has another task once this one is done.
        for stream in streams:
            ray.cancel(stream, force=True)


def _verify(path: Path) -> Generator[int | str]:
    """Runs on a node. Yields numbers of checked bytes from time to time; at the end what is wrong, or _DONE."""
    words: queue.SimpleQueue[int | str] = queue.SimpleQueue()

    @contextmanager
    def tell(_name: str, _total: int | None, _done: int = 0, /) -> Generator[Any]:
        yield words.put

    def run() -> None:
        try:
            check_all(path, available_cpus(), tell)
            words.put(_DONE)
        except Exception as error:
            words.put(str(error) or repr(error))

    threading.Thread(target=run, daemon=True).start()
    checked, since = 0, time.monotonic()
    while isinstance(word := words.get(), int):
        checked += word
        if time.monotonic() - since > _SECONDS_BETWEEN_REPORTS:
            yield checked
            checked, since = 0, time.monotonic()
    yield checked
    yield word
