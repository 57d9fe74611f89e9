"""Parses the text of a ``--sweep``: a field and its domain, as :func:`nfnet_ray.study.space.domain_text` writes it."""

from __future__ import annotations

import re
from typing import Any

from nfnet_ray.errors import UserError
from nfnet_ray.printable import printable
from nfnet_ray.recipe import Recipe
from nfnet_ray.settings import number_type, parse_value
from nfnet_ray.study.space.checks import check_can_be_swept
from nfnet_ray.study.space.domains import Domain, Range, SameAs, When, with_tuples

FORMS = (
    "FIELD=0.01,0.02,none (a list), FIELD=0.1..0.5, FIELD=log:0.002..0.3 or FIELD=int:1..5 (a range), "
    "FIELD=none,0.1..0.5 (a range, or none) or FIELD=same:OTHER.FIELD (always equal to it); 'if OTHER.FIELD' or 'if "
    "OTHER.FIELD=a,b' behind it sweeps the field only where the other one is not none, or has one of these values"
)
"""The forms in which a --sweep may be written, for help texts and messages."""

_MOST_SHOWN = 100  # characters of a text in a message
_RANGE = re.compile(r"(?P<kinds>(?:[a-z]+:)*)(?P<low>.*?)\.\.(?P<high>.*)")


def parse_sweep(text: str) -> tuple[str, Domain]:
    """Parses the text of a ``--sweep`` to (dotted name, domain).

    Raises UserError for a text in another form, and for a name that is not a field or cannot be swept. The values are
    checked when a Study is built with them.

    >>> parse_sweep("optimizer.agc.clip_factor=none,log:0.002..0.3")
    ('optimizer.agc.clip_factor', Range(low=0.002, high=0.3, log=True, integer=False, or_none=True))
    >>> parse_sweep("optimizer.sam.ascent_share=1,0.2 if optimizer.sam.rho")
    ('optimizer.sam.ascent_share', When(domain=(1, 0.2), field='optimizer.sam.rho', among=None))
    """
    name, equals, domain = (part.strip() for part in text.partition("="))
    if not equals or not name or " " in name:
        raise UserError(f"{_shown(f'--sweep {text}')}: write it as {FORMS}")
    check_can_be_swept(name)
    return name, parse_domain(name, domain)


def parse_domain(name: str, text: str) -> Domain:
    """Parses the domain after the ``=`` of a ``--sweep`` of the field ``name``; raises as :func:`parse_sweep`."""
    said = _shown(f"--sweep {name}={text}")
    values, *conditions = re.split(r"\s+if\s+", text.strip())
    if not values:
        raise UserError(f"{said}: there is no value; is a shell variable not set? Write none for None")
    if len(conditions) > 1:
        raise UserError(f"{said}: it has more than one 'if'; join conditions with 'and'")
    domain: Domain = _unconditional(name, values, said)
    for condition in re.split(r"\s+and\s+", conditions[0].strip()) if conditions else ():
        field, equals, among = (part.strip() for part in condition.partition("="))
        if not field or (equals and not among):
            raise UserError(f"{said}: write a condition as 'if OTHER.FIELD' or 'if OTHER.FIELD=a,b'")
        domain = When(domain, field, _values(among, said) if equals else None)
    return domain


def _unconditional(name: str, text: str, said: str) -> tuple[Any, ...] | Range | SameAs:
    if text.startswith("same:"):
        other = text.removeprefix("same:").strip()
        if not other:
            raise UserError(f"{said}: write the other field behind same:, such as same:data.image_size")
        return SameAs(other)
    items = _items(text, said)
    # A dot within a word, as in a path, does not make a range.
    ranges = [item for item in items if item[0] not in "[('\"" and "/" not in item and _RANGE.fullmatch(item)]
    if not ranges:
        return _values(text, said)
    others = [item for item in items if item not in ranges]
    if len(ranges) > 1 or any(other.lower() != "none" for other in others):
        raise UserError(f"{said}: only none can be combined with a range; give one range, or list all values")
    return _range(name, ranges[0], bool(others), said)


def _range(name: str, text: str, or_none: bool, said: str) -> Range:
    match = _RANGE.fullmatch(text)
    assert match is not None
    kinds = [kind for kind in match["kinds"].split(":") if kind]
    unknown = [kind for kind in kinds if kind not in ("log", "int")]
    if unknown:
        raise UserError(
            f"{said}: {unknown[0]} is not a kind of range; there are log:LOW..HIGH and int:LOW..HIGH"
        )
    low, high = (parse_value(end.strip()) for end in (match["low"], match["high"]))
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise UserError(f"{said}: the ends of a range are numbers, such as log:0.002..0.3")
    integer = "int" in kinds or number_type(Recipe, name) is int
    return Range(low, high, log="log" in kinds, integer=integer, or_none=or_none)


def _shown(text: str) -> str:
    """Shortens the text that a person wrote and makes it printable, for a message."""
    text = printable(text)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _values(text: str, said: str) -> tuple[Any, ...]:
    return tuple(with_tuples(parse_value(item)) for item in _items(text, said))


def _items(text: str, said: str) -> list[str]:
    """Splits the text at its commas, except those within brackets and quotes."""
    items, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth and not quote:
            items.append("")
        else:
            items[-1] += letter
    items = [item.strip() for item in items]
    if not all(items):
        raise UserError(f"{said}: a value is missing next to a comma; write none for None")
    return items
