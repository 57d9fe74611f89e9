"""Arguments from Python: a value that is not allowed is a UserError of one line that says what is.

The counterpart of :mod:`nfnet_ray.command_line.arguments`, whose values are texts. Each function takes the name of an
argument and what was given for it, and returns it as a plain Python value: NumPy's numbers count as numbers, True and
False do not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.printable import shown


def refusal(name: str, value: object, allowed: str) -> UserError:
    """The error for a value that is not allowed; ``allowed`` says what the argument takes."""
    return UserError(f"{name} = {shown(value)} is not allowed; it takes {allowed}")


def plain(value: Any) -> Any:
    """One of NumPy's numbers as Python's, which a journal can hold; anything else as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def a_whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number of at least ``least``, and at most ``most`` where that is given."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        found = int(value)
        if found >= least and (most is None or found <= most):
            return found
    if most is not None:
        raise refusal(name, value, f"a whole number from {least} to {most:,}")
    raise refusal(
        name, value, "a whole number above 0" if least == 1 else f"a whole number of at least {least}"
    )


def a_number(
    name: str,
    value: Any,
    allowed: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    or_infinity: bool = False,
) -> float:
    """A number within its bounds; infinity only where it means something. ``allowed`` says what that is, in words."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            raise refusal(name, value, allowed) from None
        if (above < found and at_least <= found < below) or (or_infinity and found == math.inf):
            return found
    raise refusal(name, value, allowed)


def a_text(name: str, value: Any, allowed: str = "a text") -> str:
    """A text that is not empty: an empty one is a variable that nobody has set."""
    if not isinstance(value, str):
        raise refusal(name, value, allowed)
    if not value.strip():
        raise UserError(f"{name} = {value!r} is empty; it takes {allowed}, or leave it out")
    return value


def a_path(name: str, value: Any) -> Path:
    """A path that is not empty, which Python would take for the current folder."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise refusal(name, value, "a path")
    return Path(a_text(name, os.fspath(value), "a path"))


def a_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise refusal(name, value, "True or False")
    return value


def one_of(name: str, value: Any, words: Sequence[str]) -> str:
    """One of the words."""
    if not isinstance(value, str) or value not in words:
        raise refusal(name, value, " or ".join(map(repr, words)))
    return value


def a_dict(name: str, value: Any, allowed: str) -> dict[str, Any]:
    """A dict with texts as keys; ``allowed`` says what it holds."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise refusal(name, value, allowed)
    return dict(value)


def a_list(name: str, value: Any, allowed: str) -> tuple[Any, ...]:
    """A list or a tuple, as a tuple; ``allowed`` says what it holds."""
    if not isinstance(value, list | tuple):
        raise refusal(name, value, allowed)
    return tuple(value)
