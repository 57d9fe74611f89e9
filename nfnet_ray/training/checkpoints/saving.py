"""Saves the checkpoints of a run, and finds the one to resume from.

All workers take part, since each has its own generators, sums and statistics. The first worker collects these, and
copies the whole state to the CPU's memory while training waits (``checkpoint_seconds``). A thread then writes the copy
while training continues.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nfnet_ray.errors import StorageError, UserError
from nfnet_ray.places import in_words, lost_place, remedy_for
from nfnet_ray.recipe import Recipe, decisive_values
from nfnet_ray.training.checkpoints.checkpoint import CheckpointStore, Entry, State
from nfnet_ray.training.collectives import all_of, gathered_on_first, made_by_first
from nfnet_ray.training.context import Context

FAILED_WRITES_IN_A_ROW = 3  # a disk that is full now may have room at the next checkpoint
PROBE_FILE = "probe"
# The time to wait for another worker's file. Network file systems show new files late: NFS caches a folder for seconds.
PROBE_SECONDS = 10.0
SECONDS_BETWEEN_SIGNS = 1.0

logger = logging.getLogger(__name__)


class Saver:
    """Saves the checkpoints of one run. A Saver is a context manager, which on exit waits for a write in progress.

    While the workers wait for a write, or for a checkpoint to be read, ``sign_of_life`` is called on every worker about
    once a second, as long as the write or read makes progress. So the watchdog tolerates slow storage, and ends a run
    whose storage hangs.
    """

    def __init__(self, context: Context, sign_of_life: Callable[[], object] = lambda: None) -> None:
        self._context, self._store = context, context.store
        self._sign_of_life = sign_of_life
        self._writing: threading.Thread | None = None
        self._pieces_written = 0
        self._saved_at = time.monotonic()
        self._failures: list[OSError] = []
        self._bug: Exception | None = None
        self._staged: dict[str, Tensor] = {}

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_error: object) -> None:
        self._wait(self._sign_of_life)

    def latest(self) -> State | None:
        """The state to resume from, the same on every worker; None if there is no checkpoint.

        Collective: every worker calls it. Raises UserError, on every worker, if one worker does not see the files that
        another one has written, and StorageError if the storage fails.
        """
        if self._store is None:
            return None
        _check_storage(self._store, self._context)
        store = self._store

        def found(still_at_work: Callable[[], None]) -> Entry | None:
            entry = store.latest_sound(_once_a_second(still_at_work))
            store.remove_leftovers()
            return entry

        entry = made_by_first(found, self._context, self._sign_of_life)
        return store.load(entry, self._sign_of_life) if entry else None

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint within an epoch. Always False on workers other than the first."""
        seconds = self._context.seconds_between_checkpoints
        if self._store is None or self._context.rank != 0 or seconds is None:
            return False
        is_writing = self._writing is not None and self._writing.is_alive()
        return not is_writing and time.monotonic() - self._saved_at >= seconds

    def save(
        self, state: Mapping[str, Any], own: Mapping[str, Any], *, step: int, epoch: int, metric: float | None
    ) -> None:
        """Saves the first worker's ``state`` and every worker's ``own``. Collective: every worker calls it.

        Raises StorageError, on every worker, if the last three checkpoints could not be written.
        """
        if self._store is None:
            return
        taken_at = time.time()
        workers = gathered_on_first(own, self._context)
        self._saved_at = time.monotonic()
        self._end_write(FAILED_WRITES_IN_A_ROW)
        if self._context.rank != 0:
            return
        copied = self._staged_copy({**state, "workers": workers, "taken_at": taken_at})
        arguments = {"step": step, "epoch": epoch, "time": taken_at, "metric": metric}
        # Not a daemon thread, so that a program that ends waits for its last checkpoint.
        self._writing = threading.Thread(target=self._write, args=(copied, arguments), name="checkpoint")
        self._writing.start()

    def finish(self) -> None:
        """Waits for the last checkpoint. Raises StorageError, on every worker, if it could not be written.

        Collective: every worker calls it.
        """
        if self._store is not None:
            self._end_write(1)

    def _end_write(self, most_failures: int) -> None:
        """Waits for a write in progress. Collective: every worker calls it.

        Raises StorageError, on every worker, if the last ``most_failures`` checkpoints could not be written.
        """

        def ended(still_at_work: Callable[[], None]) -> None:
            self._wait(still_at_work)
            self._check(most_failures)

        made_by_first(ended, self._context, self._sign_of_life)  # only the first worker writes

    def _check(self, most_failures: int) -> None:
        assert self._store is not None
        if len(self._failures) >= most_failures:
            error, count = self._failures[-1], len(self._failures)
            what = "the last checkpoint" if count == 1 else f"{count} checkpoints in a row"
            raise StorageError(
                f"{self._store.place}: {what} could not be written ({in_words(error)}); {remedy_for(error)}"
            )

    def _write(self, state: State, arguments: dict[str, Any]) -> None:
        assert self._store is not None
        try:
            self._store.save(state, **arguments, wrote=self._note_piece)
        except OSError as error:
            self._failures.append(error)
            logger.warning(
                "%s: the checkpoint of step %s could not be written (%s): training continues, the one before is kept",
                self._store.place,
                arguments["step"],
                error,
            )
        except Exception as error:  # raised again by the training thread; in this thread it would be lost
            self._bug = error
        else:
            self._failures.clear()

    def _note_piece(self) -> None:
        self._pieces_written += 1

    def _wait(self, still_at_work: Callable[[], object]) -> None:
        if self._writing is not None:
            seen = -1
            while self._writing.is_alive():
                if self._pieces_written != seen:
                    seen = self._pieces_written
                    still_at_work()
                self._writing.join(SECONDS_BETWEEN_SIGNS)
            self._writing = None
        if self._bug is not None:
            raise self._bug

    def _staged_copy(self, state: State) -> State:
        """Copies the state to host memory, which the next checkpoint uses again. It is pinned if the run uses a GPU."""
        is_cuda = self._context.device.type == "cuda"

        def copied(path: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                kept = self._staged.get(path)
                if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
                    kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=is_cuda)
                    self._staged[path] = kept
                return kept.copy_(value.detach(), non_blocking=True)
            if isinstance(value, Mapping):
                return {key: copied(f"{path}/{key}", item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [copied(f"{path}/{number}", item) for number, item in enumerate(value)]
            return value

        result: State = copied("", state)
        if is_cuda:
            torch.cuda.synchronize(self._context.device)
        return result


def _once_a_second(act: Callable[[], object]) -> Callable[[], None]:
    """Returns a function that calls ``act`` at most once a second."""
    called_at = time.monotonic()

    def call() -> None:
        nonlocal called_at
        if time.monotonic() - called_at >= SECONDS_BETWEEN_SIGNS:
            act()
            called_at = time.monotonic()

    return call


def check_same(state: State, recipe: Recipe, data: str, *, force: bool) -> None:
    """Raises UserError, naming the fields that differ, if a checkpoint is of another Recipe or of other data.

    With ``force``, logs a warning instead.
    """
    before, now = decisive_values(state["recipe"]), decisive_values(recipe.to_values())
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in now.items()}
    differing = [
        f"{name} {_shown(before, name)}, now {_shown(plain, name)}"
        for name in sorted(before.keys() | plain.keys())
        if (name in before, before.get(name)) != (name in plain, plain.get(name))
    ]
    if state["data"] != data:
        differing.append(f"data {state['data']}, now {data}")
    if not differing:
        return
    if not force:
        raise UserError(
            f"the checkpoint was written with other settings ({'; '.join(differing)}): "
            "restore them, start a new run elsewhere, or use --force"
        )
    logger.warning("resuming from a checkpoint of other settings: %s", "; ".join(differing))


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "not there"


def _check_storage(store: CheckpointStore, context: Context) -> None:
    """Checks that every worker can write to the storage and read the files of all other workers. Collective.

    Raises on every worker: StorageError if the storage is full or no longer writable, and UserError if a worker cannot
    write to it for another reason, or does not see another worker's file.
    """
    tokens = all_of(secrets.token_bytes(8), context)
    name = f"{PROBE_FILE}-{{}}".format
    problem, lost = "", ""
    try:
        store.probe(name(context.rank), tokens[context.rank])
    except OSError as error:
        problem = f"worker {context.rank} cannot write to {store.place} ({in_words(error)})"
        lost = f"{problem}; {remedy_for(error)}" if lost_place(error) else ""
    problems_of_all = all_of((problem, lost), context)
    for _, text in problems_of_all:
        if text:
            raise StorageError(text)
    problems = [text for text, _ in problems_of_all if text]
    if not problems:
        for rank, token in enumerate(tokens):
            if not _is_seen(store, name(rank), token):
                problem = f"worker {context.rank} does not see in {store.place} what worker {rank} has written there"
                break
        # After this exchange no worker reads any more, so the files can be removed.
        problems = [text for text in all_of(problem, context) if text]
    store.remove_probe(name(context.rank))
    if problems:
        raise UserError(f"{problems[0]}: checkpoints need a folder or a URI that all nodes share")


def _is_seen(store: CheckpointStore, name: str, token: bytes) -> bool:
    deadline = time.monotonic() + PROBE_SECONDS
    while True:
        try:
            if store.read_probe(name) == token:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
