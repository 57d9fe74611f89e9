"""Progress on standard error: a bar on a terminal, a line every ten seconds in a log. Of images, or of bytes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from nfnet_ray.printable import printable
from nfnet_ray.wording import clock_time, count, speed

_SECONDS_BETWEEN_LINES = 10.0
_MEGABYTE = 1e6


class Advance(Protocol):
    """Called for what has been done since the last call: one thing, or ``amount`` of them."""

    def __call__(self, amount: int = 1, /) -> None: ...


class Progress(Protocol):
    """Shows progress for as long as its block lasts.

    Called with what is shown before the numbers, the total (None if nobody knows it), and how much of that an earlier
    run has done, which does not count for the speed.
    """

    def __call__(self, name: str, total: int | None, done: int = 0, /) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(name: str, total: int | None, done: int = 0, /) -> Generator[Advance]:
    """Show nothing."""
    del name, total, done
    yield lambda _=1: None


@contextmanager
def images_on_stderr(name: str, total: int | None, done: int = 0, /) -> Generator[Advance]:
    """Show how many images are done, images per second and the time left."""
    with _on_stderr(_IMAGES, name, total, done) as advance:
        yield advance


@contextmanager
def bytes_on_stderr(name: str, total: int | None, done: int = 0, /) -> Generator[Advance]:
    """Show how many bytes are done, MB/s and the time left."""
    with _on_stderr(_BYTES, name, total, done) as advance:
        yield advance


@dataclass(frozen=True)
class _Unit:
    """Functions that put an amount into words: what is done, that with its total, and the speed per second."""

    amount: Callable[[int], str]
    amount_of: Callable[[int, int], str]
    rate: Callable[[float], str]


_IMAGES = _Unit(
    amount=lambda done: count(done, "image"),
    amount_of=lambda done, total: f"{done:,} of {count(total, 'image')}",
    rate=lambda per_second: f"{speed(per_second)} images/s",
)
_BYTES = _Unit(
    amount=lambda done: f"{done / _MEGABYTE:,.0f} MB",
    amount_of=lambda done, total: f"{done / _MEGABYTE:,.0f} of {total / _MEGABYTE:,.0f} MB",
    rate=lambda per_second: f"{per_second / _MEGABYTE:,.0f} MB/s",
)


def _on_stderr(unit: _Unit, name: str, total: int | None, done: int) -> AbstractContextManager[Advance]:
    show = _bar if _can_draw_bars() else _lines
    return show(unit, printable(name), total, done)


def _can_draw_bars() -> bool:
    if not sys.stderr.isatty():  # as in every log: without the import of rich
        return False
    from nfnet_ray.command_line.terminal import can_redraw, new_console

    return can_redraw(new_console(stderr=True))


@contextmanager
def _bar(unit: _Unit, name: str, total: int | None, done: int) -> Generator[Advance]:
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from nfnet_ray.command_line.terminal import new_console

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            completed = int(task.completed)
            return Text(unit.amount(completed) if total is None else unit.amount_of(completed, total))

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(unit.rate(task.speed or 0))

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), Amount(), Rate(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=new_console(stderr=True)) as bars:
        task = bars.add_task(name, total=total, completed=done)
        yield lambda amount=1: bars.advance(task, amount)


@contextmanager
def _lines(unit: _Unit, name: str, total: int | None, done: int) -> Generator[Advance]:
    start = last_line = time.monotonic()
    done_before = done

    def advance(amount: int = 1, /) -> None:
        nonlocal done, last_line
        done += amount
        now = time.monotonic()
        if now - last_line < _SECONDS_BETWEEN_LINES:
            return
        last_line = now
        per_second = (done - done_before) / (now - start)
        how_far, left = unit.amount(done), ""
        if total is not None:
            how_far = unit.amount_of(done, total)
            # Nothing at all may have come in ten seconds: then there is no telling.
            left = f", {clock_time(max(0, total - done) / per_second)} left" if per_second else ""
        print(f"{name}: {how_far}, {unit.rate(per_second)}{left}", file=sys.stderr, flush=True)

    yield advance
