"""How far reading or fetching bytes is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data_prep.progress import can_draw_bars
from nfnet_ray.printable import printable
from nfnet_ray.wording import clock_time

_SECONDS_BETWEEN_LINES = 10.0
_MEGABYTE = 1e6


@contextmanager
def bytes_on_stderr(name: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show MB/s and the time left; the function it gives is called with each further number of bytes.

    Args:
        name: what is shown before the numbers.
        total: bytes in all, or None where nobody knows.
        done: bytes of these that were there before, and say nothing of the speed.
    """
    show = _bar if can_draw_bars() else _lines
    with show(printable(name), total, done) as advance:
        yield advance


@contextmanager
def _bar(name: str, total: int | None, done: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from nfnet_ray.command_line.terminal import new_console

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=new_console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, completed=done)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _lines(name: str, total: int | None, done: int) -> Iterator[Callable[[int], None]]:
    start = last_line = time.monotonic()
    moved = 0

    def advance(count: int) -> None:
        nonlocal moved, last_line
        moved += count
        now = time.monotonic()
        if now - last_line < _SECONDS_BETWEEN_LINES:
            return
        last_line = now
        bytes_per_second = moved / (now - start)
        of, left = "", ""
        if total is not None:
            of = f" of {total / _MEGABYTE:,.0f}"
            left = f", {clock_time(max(0, total - done - moved) / max(bytes_per_second, 1))} left"
        print(
            f"{name}: {(done + moved) / _MEGABYTE:,.0f}{of} MB, {bytes_per_second / _MEGABYTE:,.0f} MB/s{left}",
            file=sys.stderr,
            flush=True,
        )

    yield advance
