"""How a program reacts to Ctrl-C, SIGTERM and the closing of its terminal.

Each program of the project has up to three phases: it imports what it needs and reads its command line
(:func:`end_quietly`); it works, with nothing to save (:func:`interruptible`); and, if it is a run, it has something to
save (:func:`asked_to_stop`). This module has to be imported first, so it imports nothing that takes time.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130
"""The exit code that a shell reports for a program that Ctrl-C ended: 128 + SIGINT."""

# ``timeout`` signals its child and then its group, of which the child is one; a shell that loses its terminal passes
# on what the kernel has sent already. A person who wants out at once takes longer between two keys, or presses again.
SECONDS_OF_ONE_REQUEST = 1.0

Handler = Callable[[int, FrameType | None], None]

SHOW_CURSOR = "\x1b[?25h"  # DECTCEM, of DEC's VT220 and all terminals since

_requested_at = float("-inf")
_is_program = False
_is_quitting = False
"""Whether a run has been asked a second time, so that it ends without saving anything."""


def end_quietly() -> None:
    """From now on these signals end the program at once, with one line and exit code 130: nothing can be lost yet.

    For the first lines of a program, before it imports the rest: an interrupted import is nobody's fault, and its
    stack trace says nothing. What a program does then with its signals takes the place of this. At its very end it
    hears no signal any more: Python gives them back to the system before it has cleared up, which would end the program
    by the signal instead of with its exit code.
    """
    global _is_program
    _is_program = True
    for number in _signals():
        signal.signal(number, _end_at_once)
    atexit.register(_hear_nothing)  # the first of all, so it runs last


@contextmanager
def interruptible(sigterm: Handler | None = None) -> Generator[None]:
    """Inside the block all of these signals raise KeyboardInterrupt, as Ctrl-C alone does in Python.

    ``sigterm`` handles SIGTERM, for a program that tells it from Ctrl-C.
    """
    with _heard_by(_interrupt):
        if sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)
        yield


@contextmanager
def asked_to_stop(stop: threading.Event, note: Callable[[], None]) -> Generator[None]:
    """Inside the block the first request sets ``stop`` and calls ``note``; a second one raises KeyboardInterrupt.

    A third one, inside the block or after it, ends a program without waiting for what the second one interrupts.
    A terminal that closes asks once: it is heard several times, and nobody sits in front of it any more.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        global _requested_at, _is_quitting
        if stop.is_set():
            if number != signal.SIGHUP:
                try:
                    _interrupt(number, frame)
                except KeyboardInterrupt:
                    _requested_at, _is_quitting = time.monotonic(), True
                    raise
            return
        stop.set()
        _requested_at = time.monotonic()
        # Python lets no handler print that came in the middle of printing.
        with suppress(RuntimeError):
            note()

    global _is_quitting
    _is_quitting = False
    with _heard_by(ask):
        yield


@contextmanager
def handlers_kept() -> Generator[None]:
    """Restores the signal handlers that a library replaces inside the block, as ``ray.init`` does."""
    before = {number: signal.getsignal(number) for number in _signals()}
    try:
        yield
    finally:
        _put_back(before)


@contextmanager
def _heard_by(handler: Handler) -> Generator[None]:
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
    """The signals that end a program; without SIGHUP where it is ignored, as under ``nohup``."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


def _interrupt(number: int, frame: FrameType | None) -> None:
    if time.monotonic() - _requested_at <= SECONDS_OF_ONE_REQUEST:
        return
    if _is_quitting and _is_program:
        _end_at_once(number, frame)
    raise KeyboardInterrupt


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    """Exits without Python's shutdown, which waits for threads and runs what half-imported libraries registered."""
    with suppress(OSError):  # the terminal that was closed
        cursor = SHOW_CURSOR if _is_quitting and os.isatty(2) else ""  # a live table has hidden it
        os.write(2, f"{cursor}{program_name()}: stopped\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _hear_nothing() -> None:
    for number in _signals():
        signal.signal(number, signal.SIG_IGN)


def program_name() -> str:
    """How messages name this program: ``agc_sweep.py`` or ``python -m studies``, also while Python looks for it."""
    up_to_it = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if up_to_it[-2:-1] == ["-m"]:
        return f"python -m {up_to_it[-1]}"
    return os.path.basename(sys.argv[0])
