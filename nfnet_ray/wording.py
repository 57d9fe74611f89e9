"""Numbers as every part of the project says them to people: counts with their noun, times, speeds."""

from __future__ import annotations


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


def clock_time(seconds: float) -> str:
    """A time span as a clock shows it.

    >>> clock_time(95.2), clock_time(7325)
    ('1:35', '2:02:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def speed(per_second: float) -> str:
    """A number per second, with as many digits as say something: three, and never in powers of ten.

    >>> speed(0.1234), speed(8.25), speed(99.96), speed(999), speed(2716.4), speed(123456)
    ('0.123', '8.25', '100', '999', '2,716', '123,456')
    """
    if round(per_second, 1) >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.3g}"
