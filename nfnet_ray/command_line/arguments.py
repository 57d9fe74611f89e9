"""Argument types for all command lines: a value that is not allowed gives one line that says what is."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from nfnet_ray.errors import UserError

# Nothing that is counted here comes near it, and a longer text would take Python's own limit on digits.
MOST_DIGITS = 18
_LONGEST_ECHO = 40

_Parsed = TypeVar("_Parsed")


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least ``least``, and at most ``most`` where that is given."""
    allowed = "above 0" if least == 1 else f"of at least {least}"
    if most is not None:
        allowed = f"from {least} to {most}"

    def parse(text: str) -> int:
        number = int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None
        if text.isdecimal() and number is None:
            raise argparse.ArgumentTypeError(f"{shortened(text)} is too large a number")
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{shortened(text)} is not a whole number {allowed}")
        return number

    return parse


positive = whole_number(1)
"""An argparse type: a whole number above 0."""


def least_and_most(text: str) -> tuple[int, int]:
    """``8`` or ``2-8`` as (least, most)."""
    least, dash, most = text.partition("-")
    bounds = positive(least), positive(most if dash else least)
    if bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: write the smaller number first")
    return bounds


def above_zero(text: str) -> float:
    """An argparse type: a finite number above 0."""
    number = number_or_nan(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number above 0")
    return number


def above_zero_or_none(text: str) -> float:
    """An argparse type: a finite number above 0; infinity for ``none``, which takes a limit away."""
    if text == "none":
        return math.inf
    number = number_or_nan(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number above 0, nor none")
    return number


def at_least_zero(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    number = number_or_nan(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number of at least 0")
    return number


def share(text: str) -> float:
    """An argparse type: a number above 0 and below 1."""
    number = number_or_nan(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number above 0 and below 1")
    return number


def given(parse: Callable[[str], _Parsed]) -> Callable[[str], _Parsed]:
    """An argparse type from a function that raises UserError for a text that is not allowed."""

    def parsed(text: str) -> _Parsed:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


class AddPair(argparse.Action):
    """An argparse action: collects the (key, value) pairs of a repeated flag in a dict, where later ones win."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        del parser, option_string
        key, value = cast(tuple[str, str], values)
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), key: value})


def given_text(text: str) -> str:
    """An argparse type: a text that is not empty, which would mean the same as no flag."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a value is needed, and this is empty: is a shell variable not set?")
    return text


def given_path(text: str) -> Path:
    """An argparse type: a path.

    An empty text is refused, which Python would take for the current folder, and an address, which would be a folder of
    an odd name.
    """
    if not text:
        raise argparse.ArgumentTypeError("a path is needed, and this is empty: is a shell variable not set?")
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"a path is needed, and {shortened(ascii(text))} is an address: copy it to a folder, or mount it"
        )
    return Path(text)


def number_or_nan(text: str) -> float:
    """The number, or NaN for any other text, which is outside every range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def shortened(text: str) -> str:
    """The typed text, shortened to fit a line; an empty text is made visible."""
    if not text.strip():
        return repr(text)
    return text if len(text) <= _LONGEST_ECHO else f"{text[:_LONGEST_ECHO]}…"
