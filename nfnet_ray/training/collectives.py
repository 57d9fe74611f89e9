"""Collectives: functions that exchange values between the workers of a run. Every worker calls them, in one order.

With one worker they return their argument, and torch.distributed is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from nfnet_ray.errors import UserError
from nfnet_ray.training.context import Context

T = TypeVar("T")


def all_of(value: T, context: Context) -> list[T]:
    """The values of all workers, by rank, on every worker. Values are pickled."""
    if context.world_size == 1:
        return [value]
    values: list[Any] = [None] * context.world_size
    dist.all_gather_object(values, value)
    return values


def first_workers(value: T, context: Context) -> T:
    """The value of the first worker, on every worker. It is pickled."""
    if context.world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def made_by_first(
    make: Callable[[Callable[[], None]], T], context: Context, sign_of_life: Callable[[], object]
) -> T:
    """Calls ``make`` on the first worker, and returns its result on all workers. ``make`` may take long.

    A collective fails when a worker waits in it for too long. So ``make`` gets a function that it calls now and then,
    upon which all workers call ``sign_of_life`` and wait again.

    An exception in ``make`` ends the waiting of the others too: a UserError is raised on all workers, and for any other
    exception they raise ``torch.distributed.DistError``, as they do when the first worker is lost.
    """
    if context.rank == 0:
        is_heard = True

        def still_at_work() -> None:
            nonlocal is_heard
            sign_of_life()
            is_heard = False
            first_workers(_News(), context)
            is_heard = True

        try:
            made = make(still_at_work)
        except Exception as error:
            if is_heard:  # otherwise the exchange itself failed, and another one would fail too
                refusal = error if isinstance(error, UserError) else None
                first_workers(_News(refusal=refusal, failure=f"{type(error).__name__}: {error}"), context)
            raise
        first_workers(_News(is_made=True, made=made), context)
        return made
    while True:
        news = first_workers(cast(_News, None), context)
        if news.refusal is not None:
            raise news.refusal
        if news.failure is not None:
            raise dist.DistError(f"the first worker failed ({news.failure})")
        if news.is_made:
            return cast(T, news.made)
        sign_of_life()


class _News(NamedTuple):
    """A message of the first worker about the value that it makes. By default: it is still at work."""

    is_made: bool = False
    made: Any = None
    refusal: UserError | None = None
    failure: str | None = None


def gathered_on_first(value: T, context: Context) -> list[T] | None:
    """The values of all workers, by rank, on the first worker; None on the others. Tensors are moved to the CPU."""
    if context.world_size == 1:
        return [value]
    values: list[Any] | None = [None] * context.world_size if context.rank == 0 else None
    dist.gather_object(_on_cpu(value), values, dst=0)
    return values


def together(act: Callable[[], T], context: Context) -> T:
    """Calls ``act`` on every worker, and returns each worker's own result.

    If it raises a UserError on some workers, the error of the first of these is raised on all.
    """
    result, error = None, None
    try:
        result = act()
    except UserError as raised:
        error = raised
    for found in all_of(error, context):
        if found is not None:
            raise found
    return cast(T, result)


def on_this_worker(items: Iterable[T], context: Context) -> Iterator[T]:
    """Yields items that only this worker iterates over.

    A UserError meanwhile is marked (``others_wait``), because the other workers will wait for this one in their next
    exchange.
    """
    try:
        yield from items
    except UserError as error:
        error.others_wait = context.world_size > 1
        raise


def add_over_workers(tensor: Tensor, context: Context) -> Tensor:
    """Sums a tensor over the workers, in place, and returns it."""
    if context.world_size > 1:
        dist.all_reduce(tensor)
    return tensor


def least_over_workers(tensor: Tensor, context: Context) -> Tensor:
    """Takes the minimum over the workers, entry by entry and in place, and returns the tensor."""
    if context.world_size > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return tensor


def add_all_over_workers(tensors: Sequence[Tensor], context: Context) -> None:
    """Sums tensors of one dtype over the workers, in place, in a single message."""
    if context.world_size > 1:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        summed = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            list(tensors), [new.view(old.shape) for new, old in zip(summed, tensors, strict=True)]
        )


def copy_from_first(tensors: Iterable[Tensor], context: Context) -> None:
    """Overwrites the tensors of every worker with those of the first one."""
    if context.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _on_cpu(value: Any) -> Any:
    """The value with its tensors on the CPU, where they can be unpickled by any worker."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value
