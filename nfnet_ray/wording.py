"""Numbers as the whole project prints them for people: counts with their noun, times, percents, speeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

JOULES_PER_KWH = 3.6e6
_UNKNOWN = "–"


def count(number: float, noun: str) -> str:
    """A number with what it counts, in the singular for one.

    >>> count(1, "epoch"), count(1437, "training image"), count(0, "class"), count(2.0, "core"), count(0.5, "GPU")
    ('1 epoch', '1,437 training images', '0 classes', '2 cores', '0.5 GPUs')
    """
    amount = f"{number:,.10g}" if isinstance(number, float) else f"{number:,}"
    return f"{amount} {agree(number, noun, plural(noun))}"


def agree(number: float, one: str, many: str) -> str:
    """The word that goes with the number.

    >>> agree(1, "is", "are"), agree(3, "is", "are")
    ('is', 'are')
    """
    return one if number == 1 else many


def plural(noun: str) -> str:
    """The regular plural of an English noun.

    >>> plural("epoch"), plural("class"), plural("batch"), plural("copy"), plural("day")
    ('epochs', 'classes', 'batches', 'copies', 'days')
    """
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    hisses = noun.endswith(("s", "x", "ch", "sh")) and not noun.endswith("epoch")
    return f"{noun}es" if hisses else f"{noun}s"


def in_a_row(words: Sequence[str]) -> str:
    """Words as a sentence lists them.

    >>> in_a_row(["a"]), in_a_row(["a", "b"]), in_a_row(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``11th``.

    >>> [ordinal(number) for number in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def clock_time(seconds: float) -> str:
    """A time span as a clock shows it.

    >>> clock_time(95.2), clock_time(7325)
    ('1:35', '2:02:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def duration(seconds: float) -> str:
    """A time span in words and a dash for NaN.

    >>> duration(4.2), duration(42), duration(246), duration(12000), duration(math.nan)
    ('4.2 s', '42 s', '4 min 6 s', '3 h 20 min', '–')
    """
    if math.isnan(seconds):
        return _UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def percent(fraction: float) -> str:
    """A share with one digit after the point; a dash for NaN.

    >>> percent(0.9724), percent(1), percent(math.nan)
    ('97.2%', '100.0%', '–')
    """
    return _UNKNOWN if math.isnan(fraction) else f"{100 * fraction:.1f}%"


def percents(low: float, high: float) -> str:
    """The ends of an interval of shares.

    >>> percents(0.9604, 0.991)
    '96.0 to 99.1%'
    """
    return f"{100 * low:.1f} to {percent(high)}"


def in_points(difference: float) -> str:
    """A difference between two shares, without its sign.

    >>> in_points(0.0123), in_points(-0.001), in_points(0.01)
    ('1.2 points', '0.1 points', '1.0 points')
    """
    return as_points(f"{100 * abs(difference):.1f}")


def as_points(number: str) -> str:
    """A number of percentage points, as it is printed; only a plain 1 has the singular.

    >>> as_points("1"), as_points("1.0"), as_points("0.5"), as_points("12")
    ('1 point', '1.0 points', '0.5 points', '12 points')
    """
    return f"{number} {'point' if number == '1' else 'points'}"


def decimal(number: float, digits: int = 1, *, sign: bool = False) -> str:
    """A number that may be negative, with a minus and not a hyphen, and without a sign where it is rounded to 0.

    >>> decimal(-0.31, 2), decimal(1.25, sign=True), decimal(-0.04), decimal(0.04, sign=True), decimal(math.nan)
    ('−0.31', '+1.2', '0.0', '0.0', '–')
    """
    if math.isnan(number):
        return _UNKNOWN
    text = f"{abs(number):.{digits}f}"
    if not float(text):
        return text
    return f"{'−' if number < 0 else '+' if sign else ''}{text}"


def storage_size(size_bytes: int) -> str:
    """A number of bytes, in kB, MB or GB of powers of ten, as disks are sold.

    >>> storage_size(0), storage_size(12_345), storage_size(1_234_567), storage_size(1_557_161_267)
    ('0 kB', '12 kB', '1.2 MB', '1.56 GB')
    """
    if size_bytes < 999_500:
        return f"{size_bytes / 1e3:,.0f} kB"
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"


def speed(per_second: float) -> str:
    """A number per second with three significant digits, never in powers of ten; a dash for NaN.

    >>> speed(0.1234), speed(8.25), speed(99.96), speed(999), speed(2716.4), speed(123456)
    ('0.123', '8.25', '100', '999', '2,716', '123,456')
    """
    if math.isnan(per_second):
        return _UNKNOWN
    if round(per_second, 1) >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.3g}"
