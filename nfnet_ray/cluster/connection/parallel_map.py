"""Maps a function over many items in tasks on a Ray cluster; results come in the order of the items."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from nfnet_ray.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Tasks in flight per core: one runs, one waits for a core, and the result of one waits for earlier results.
_TASKS_PER_CORE = 3
# A worker dies when memory runs out, or with its node; a task that kills this many is itself the cause.
_RETRIES = 5


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    items_per_task: int,
    describe: Callable[[Item], str] = str,
) -> Generator[tuple[Item, Result]]:
    """``(item, function(item))`` for each item, in order, computed on the cluster of the current ray_session.

    Items and results travel through Ray, ``items_per_task`` at a time; the number of those in flight is bounded.
    A task whose worker dies is started again, up to five times, so ``function`` must give the same result
    whenever it is called.

    Args:
        describe: an item's name in an error message.

    Raises:
        UserError: a task killed its worker again and again.
        Exception: what ``function`` raised.
    """
    import ray

    run: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(_map_chunk)
    # Stored once: the function may hold settings that every task would carry otherwise.
    function_ref = ray.put(function)
    limit = _TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
    in_flight: deque[tuple[tuple[Item, ...], Any]] = deque()
    try:
        remaining = iter(items)
        while chunk := tuple(itertools.islice(remaining, items_per_task)):
            in_flight.append((chunk, run.remote(function_ref, chunk)))
            if len(in_flight) >= limit:
                yield from _results(*in_flight.popleft(), describe)
        while in_flight:
            yield from _results(*in_flight.popleft(), describe)
    finally:
        for _, reference in in_flight:
            ray.cancel(reference)


def _map_chunk(function: Callable[[Item], Result], chunk: tuple[Item, ...]) -> list[Result]:
    return [function(item) for item in chunk]


def _results(
    chunk: tuple[Item, ...], reference: Any, describe: Callable[[Item], str]
) -> Generator[tuple[Item, Result]]:
    import ray

    try:
        results = ray.get(reference)
    except (ray.exceptions.RaySystemError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError) as error:  # fmt: skip
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{describe(chunk[0])} to {describe(chunk[-1])}: Ray's workers died on them {_RETRIES + 1} times"
            f" ({reason}); one of them crashes its decoder, or the nodes lack memory"
        ) from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    yield from zip(chunk, results, strict=True)
