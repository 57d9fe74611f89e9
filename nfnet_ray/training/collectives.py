"""Exchanges between the workers of a run. Every worker has to call them, in the same order.

With one worker they return what they are given, and torch.distributed is not needed.
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
    """Every worker's value, by rank, on every worker. Values are pickled."""
    if context.world_size == 1:
        return [value]
    values: list[Any] = [None] * context.world_size
    dist.all_gather_object(values, value)
    return values


def first_workers(value: T, context: Context) -> T:
    """The first worker's value, on every worker. It is pickled."""
    if context.world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def made_by_first(
    make: Callable[[Callable[[], None]], T], context: Context, sign_of_life: Callable[[], object]
) -> T:
    """What ``make`` gives on the first worker, on every worker; it may take long.

    ``make`` is given a function to call now and then, with which all workers give a ``sign_of_life``. So none waits in
    an exchange, whose time is limited, for longer than the first one works between two calls.

    What ``make`` raises ends the waiting of the others too: a UserError is raised on all workers, and for any other
    exception they raise ``torch.distributed.DistError``, as they do where the first worker is lost.
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
            if is_heard:  # else it is an error of the exchange, and another one would fail too
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
    """What the first worker says of what it makes; at first that it is still at work."""

    is_made: bool = False
    made: Any = None
    refusal: UserError | None = None
    failure: str | None = None


def gathered_on_first(value: T, context: Context) -> list[T] | None:
    """Every worker's value, by rank, on the first worker; None on the others. Tensors are moved to the CPU."""
    if context.world_size == 1:
        return [value]
    values: list[Any] | None = [None] * context.world_size if context.rank == 0 else None
    dist.gather_object(_on_cpu(value), values, dst=0)
    return values


def together(act: Callable[[], T], context: Context) -> T:
    """Calls ``act`` on every worker, and gives its result there.

    Where it raises a UserError on some workers, the one of the first of them is raised on all.
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
    """Yields the items, which other workers do not see.

    A UserError meanwhile is marked: without this worker the others do not get out of their next exchange.
    """
    try:
        yield from items
    except UserError as error:
        error.others_wait = context.world_size > 1
        raise


def add_over_workers(tensor: Tensor, context: Context) -> Tensor:
    """Sums a tensor over the workers, in place; returns it."""
    if context.world_size > 1:
        dist.all_reduce(tensor)
    return tensor


def least_over_workers(tensor: Tensor, context: Context) -> Tensor:
    """Takes the smallest of the workers' values, entry by entry and in place; returns the tensor."""
    if context.world_size > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return tensor


def add_all_over_workers(tensors: Sequence[Tensor], context: Context) -> None:
    """Sums tensors of one dtype over the workers, in place, in one message and not in hundreds."""
    if context.world_size > 1:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        summed = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            list(tensors), [new.view(old.shape) for new, old in zip(summed, tensors, strict=True)]
        )


def copy_from_first(tensors: Iterable[Tensor], context: Context) -> None:
    """Overwrites every worker's tensors with those of the first one."""
    if context.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _on_cpu(value: Any) -> Any:
    """Tensors as they are pickled: on no GPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value
