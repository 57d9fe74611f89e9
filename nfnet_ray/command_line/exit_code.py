"""How a program ends: its exit code, and the one line on standard error that says why."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, SHOW_CURSOR, interruptible, program_name
from nfnet_ray.command_line.one_line_parser import EXIT_USER_ERROR
from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words, lost_place
from nfnet_ray.printable import printable

EXIT_TERMINATED = 143
"""The exit code that a shell reports for a program that SIGTERM has ended: 128 + SIGTERM."""

_program = ""
"""How messages name the program that runs; "" for one that calls this library."""


def exit_code_of(
    program: str,
    body: Callable[[], int | None],
    *,
    when_stopped: str = "stopped",
    sigterm_has_its_own_code: bool = False,
) -> int:
    """Run ``body`` and return its exit code, 0 for None.

    What a person can put right is one line on standard error, ``PROGRAM: what, where and what to do``, and exit code 2:
    a :class:`UserError`, and an OSError of a named file or a full disk. Every other exception is a bug, and keeps its
    stack trace. Notes that were added to an exception end its line.

    Args:
        program: how messages name the program: ``agc_sweep.py``, or ``python -m data_prep``.
        body: the program, after its command line has been read.
        when_stopped: what is printed after Ctrl-C or SIGTERM, if the exception has no note that says what is kept.
        sigterm_has_its_own_code: SIGTERM ends with 143; otherwise, like Ctrl-C, with 130.
    """
    global _program
    _program = program
    try:
        with interruptible(sigterm=terminate if sigterm_has_its_own_code else None):
            code = body() or 0
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where an output that cannot be written is still an error of its own
            return code
    except UserError as error:
        _say(program, str(error), *_notes(error))
        return EXIT_USER_ERROR
    except OSError as error:
        if error.filename is None and lost_place(error) is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _say(program, f"{where}{in_words(error)}", *_notes(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        _say_stopped(program, interrupt, when_stopped)
        return EXIT_INTERRUPTED
    except _Terminated as terminated:
        _say_stopped(program, terminated, when_stopped)
        return EXIT_TERMINATED


def end_with(error: UserError, last: Callable[[], object]) -> NoReturn:
    """Ends this process, from any thread, with the line and the exit code of :func:`exit_code_of`.

    For a thread that has to end the program because the main one cannot. Nothing is cleaned up, but ``last`` is called
    after the line was printed.
    """
    try:
        if sys.stderr.isatty():  # as below
            print(SHOW_CURSOR, end="", file=sys.stderr)
        _say(_program or program_name(), str(error), *_notes(error))
        sys.stdout.flush()
        sys.stderr.flush()
        last()
    finally:
        os._exit(EXIT_USER_ERROR)


class _Terminated(SystemExit):
    """SIGTERM. Like Ctrl-C it is no Exception, which a program might take for an error of its own and handle."""


def terminate(signal_number: int, frame: FrameType | None) -> None:
    """A handler of SIGTERM: ends the program with exit code 143, through its ``finally`` blocks."""
    del signal_number, frame
    raise _Terminated(EXIT_TERMINATED)


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def _say_stopped(program: str, stop: BaseException, when_stopped: str) -> None:
    if sys.stderr.isatty():  # a progress bar that is left behind with its thread has hidden the cursor
        print(SHOW_CURSOR, end="", file=sys.stderr)
    notes = _notes(stop)
    _say(program, *(["stopped", *notes] if notes else [when_stopped]))


def _say(program: str, *parts: str) -> None:
    print(f"{program}: {printable('; '.join(parts))}", file=sys.stderr)
