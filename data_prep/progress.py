"""How far a conversion is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from nfnet_ray.wording import clock_time, count, speed


class Progress(Protocol):
    """Called with a split's name, its number of images, and how many of them an earlier conversion has done;
    gives a function to call once per image that is done now."""

    def __call__(
        self, name: str, total: int, done: int = 0, /
    ) -> AbstractContextManager[Callable[[], None]]: ...


_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def silent(name: str, total: int, done: int = 0, /) -> Iterator[Callable[[], None]]:
    """No progress at all."""
    del name, total, done
    yield lambda: None


@contextmanager
def on_stderr(name: str, total: int, done: int = 0, /) -> Iterator[Callable[[], None]]:
    """Show images per second and the time left; the function it gives is called once per image.

    What was ``done`` before counts as done, but not for the images per second.
    """
    show = _bar if can_draw_bars() else _lines
    with show(name, total, done) as advance:
        yield advance


def can_draw_bars() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    if not sys.stderr.isatty():  # as in every log: without the import of rich
        return False
    from nfnet_ray.command_line.terminal import can_redraw, new_console

    return can_redraw(new_console(stderr=True))


@contextmanager
def _bar(name: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class ImagesPerSecond(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{speed(task.speed or 0)} images/s")

    from nfnet_ray.command_line.terminal import new_console

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), ImagesPerSecond(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=new_console(stderr=True)) as bars:
        task = bars.add_task(name, total=total, completed=done)
        yield lambda: bars.advance(task)


@contextmanager
def _lines(name: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    start = last_line = time.monotonic()
    done_before = done

    def advance() -> None:
        nonlocal done, last_line
        done += 1
        now = time.monotonic()
        if now - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = now
            images_per_second = (done - done_before) / (now - start)
            left = clock_time((total - done) / images_per_second)
            print(
                f"{name}: {done:,} of {count(total, 'image')}, {speed(images_per_second)} images/s, {left} left",
                file=sys.stderr,
                flush=True,
            )

    yield advance
