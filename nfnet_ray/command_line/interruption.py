"""How a program ends when it is told to: by Ctrl-C, by SIGTERM, by a terminal that is closed.

Three times follow one another in each program of the project: it imports what it needs and reads its command line
(:func:`end_quietly`), it works and has nothing to keep yet or any more (:func:`interruptible`), and, if it is a run, it
has something to keep (:func:`asked_to_stop`). This module imports nothing that takes time, for it has to come first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130
"""What a shell gives a program that Ctrl-C ended: 128 + SIGINT."""

# ``timeout`` signals its child and then its group, of which the child is one; a shell that loses its terminal passes
# on what the kernel has sent already. A person who wants out at once takes longer between two keys, or presses again.
SECONDS_OF_ONE_REQUEST = 1.0

Handler = Callable[[int, FrameType | None], None]

_requested_at = float("-inf")


def end_quietly() -> None:
    """From now on being told to end takes one line and exit code 130: nothing is there that could be lost.

    For the first lines of a program, before it imports the rest: an interrupted import is nobody's fault, and its
    stack trace says nothing. What a program does then with its signals takes the place of this.
    """
    for number in _signals():
        signal.signal(number, _end_at_once)


@contextmanager
def interruptible(sigterm: Handler | None = None) -> Iterator[None]:
    """While this lasts being told to end raises KeyboardInterrupt, as Ctrl-C alone does elsewhere.

    ``sigterm`` handles SIGTERM, for a program that tells it from Ctrl-C.
    """
    with _heard_by(_interrupt):
        if sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)
        yield


@contextmanager
def asked_to_stop(stop: threading.Event, note: Callable[[], None]) -> Iterator[None]:
    """While this lasts the first request sets ``stop`` and calls ``note``; a second one raises KeyboardInterrupt.

    A terminal that closes asks once: it is heard several times, and nobody sits in front of it any more.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        global _requested_at
        if stop.is_set():
            if number != signal.SIGHUP:
                _interrupt(number, frame)
            return
        stop.set()
        _requested_at = time.monotonic()
        # Python lets no handler print that came in the middle of printing.
        with suppress(RuntimeError):
            note()

    with _heard_by(ask):
        yield


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts back what a library does to the handling of these signals while this lasts, as ``ray.init`` does."""
    before = {number: signal.getsignal(number) for number in _signals()}
    try:
        yield
    finally:
        _put_back(before)


@contextmanager
def _heard_by(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other one may say what a signal does
        yield
        return
    before = {number: signal.signal(number, handler) for number in _signals()}
    try:
        yield
    finally:
        _put_back(before)


def _put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    """What tells a program to end; without the closed terminal where that is ignored, as ``nohup`` wants it."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    if time.monotonic() - _requested_at > SECONDS_OF_ONE_REQUEST:
        raise KeyboardInterrupt


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    """Without Python's ways to end, which wait for threads and run what a half imported library registered."""
    folder, name = os.path.split(sys.argv[0])
    program = os.path.basename(folder) if name == "__main__.py" else name
    if program == "-m":  # while Python looks for the module
        program = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    with suppress(OSError):  # the terminal that was closed
        os.write(2, f"{program}: stopped\n".encode())
    os._exit(EXIT_INTERRUPTED)
