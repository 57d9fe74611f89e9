"""Defines the domains of a swept field: a list of values, a range, another field's value, or one on a condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nfnet_ray.command_line.python_arguments import plain
from nfnet_ray.tracking.labels import value_label

SIGNIFICANT_DIGITS: Final = 4
"""The digits to which values drawn from a range are rounded, so that a trial's name and ``--set`` contain all
digits."""


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both included; with ``or_none`` also None.

    A search draws from the range uniformly or, with ``log``, uniformly in the logarithm. With ``integer`` the range has
    only whole numbers.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    or_none: bool = False

    def rounded(self, number: float) -> float:
        """Rounds a number as a search proposes it, within the range: to a whole number or four significant digits."""
        if self.integer:
            return min(max(round(number), int(self.low)), int(self.high))
        short = float(f"{number:.{SIGNIFICANT_DIGITS}g}")
        return float(min(max(short, self.low), self.high))

    def ends(self) -> tuple[Any, ...]:
        """Returns both ends, and None if the range includes it."""
        numbers = (int(self.low), int(self.high)) if self.integer else (float(self.low), float(self.high))
        return (*numbers, None) if self.or_none else numbers


@dataclass(frozen=True)
class SameAs:
    """Ties a field to another field of the space, so that both always have the same value."""

    field: str


@dataclass(frozen=True)
class When:
    """``domain``, but only where another ``field`` is not None, or has one of the values ``among``.

    Elsewhere the field keeps the Recipe's value. ``field`` is a field of the space or of the Recipe.
    """

    domain: tuple[Any, ...] | Range | SameAs | When
    field: str
    among: tuple[Any, ...] | None = None

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition holds for ``values``, which contain every field of the Recipe."""
        value = values[self.field]
        if self.among is None:
            return value is not None
        return with_tuples(value) in map(with_tuples, self.among)


Domain = tuple[Any, ...] | Range | SameAs | When
"""The domain of a field in a space; a tuple is a list of values."""

Space = Mapping[str, Domain]
"""{dotted name of a Recipe field: its domain}."""

Point = dict[str, Any]
"""{dotted name: value} of the fields that are swept at a point, in the order of the space."""


def unconditional(domain: Domain) -> tuple[Any, ...] | Range | SameAs:
    """Returns a domain without its conditions."""
    while isinstance(domain, When):
        domain = domain.domain
    return domain


def is_listed(domain: Domain) -> bool:
    """Whether the domain is a list of values, with or without a condition."""
    return isinstance(unconditional(domain), tuple)


def has_range(space: Space) -> bool:
    """Whether a search has to propose the points, because a range cannot be listed."""
    return any(isinstance(unconditional(domain), Range) for domain in space.values())


def with_values_of(domain: Domain, change: Callable[[Any], Any]) -> Domain:
    """Returns the domain with ``change`` applied to each of its listed values; ranges and ties are unchanged."""
    if isinstance(domain, When):
        return replace(domain, domain=with_values_of(domain.domain, change))
    return domain if isinstance(domain, Range | SameAs) else tuple(map(change, domain))


def with_listed(domain: Domain, values: tuple[Any, ...]) -> Domain:
    """Returns the domain with these values in place of its own; its conditions are kept."""
    if isinstance(domain, When):
        return replace(domain, domain=with_listed(domain.domain, values))
    return values


def in_plain_values(domain: Any) -> Any:
    """Returns a domain or value with tuples for lists and Python's numbers for NumPy's, which a journal cannot store.

    An argument that is not a domain is returned unchanged.
    """
    if isinstance(domain, When):
        return When(in_plain_values(domain.domain), domain.field, in_plain_values(domain.among))
    if isinstance(domain, Range):
        return replace(domain, low=in_plain_values(domain.low), high=in_plain_values(domain.high))
    if isinstance(domain, list | tuple):
        return tuple(map(in_plain_values, domain))
    return plain(domain)


def domain_text(domain: Domain) -> str:
    """Formats a domain as in ``--sweep``, such as ``none,log:0.002..0.3 if optimizer.sam.rho``."""
    if isinstance(domain, When):
        among = "" if domain.among is None else f"={','.join(map(listed_value_text, domain.among))}"
        joined = " and " if isinstance(domain.domain, When) else " if "
        return f"{domain_text(domain.domain)}{joined}{domain.field}{among}"
    if isinstance(domain, SameAs):
        return f"same:{domain.field}"
    if isinstance(domain, Range):
        kind = ("log:" if domain.log else "") + ("int:" if domain.integer else "")
        return (
            f"{'none,' if domain.or_none else ''}{kind}{value_label(domain.low)}..{value_label(domain.high)}"
        )
    return ",".join(map(listed_value_text, domain))


def listed_value_text(value: Any) -> str:
    return str(list(value)) if isinstance(value, list | tuple) else value_label(value)


def domain_to_json(domain: Domain) -> list[Any] | dict[str, Any]:
    """Returns the domain in the form that a journal stores: a list of values, or an object."""
    if isinstance(domain, Range):
        flags = {name: True for name in ("log", "integer", "or_none") if getattr(domain, name)}
        return {"low": domain.low, "high": domain.high} | flags
    if isinstance(domain, SameAs):
        return {"same_as": domain.field}
    if isinstance(domain, When):
        among = {} if domain.among is None else {"among": list(domain.among)}
        return {"domain": domain_to_json(domain.domain), "when": domain.field} | among
    return list(domain)


def domain_from_json(described: Sequence[Any] | Mapping[str, Any]) -> Domain:
    """Returns the domain that :func:`domain_to_json` has described."""
    if not isinstance(described, Mapping):
        return tuple(map(with_tuples, described))
    if "same_as" in described:
        return SameAs(described["same_as"])
    if "when" in described:
        among = described.get("among")
        domain = domain_from_json(described["domain"])
        return When(domain, described["when"], None if among is None else tuple(map(with_tuples, among)))
    return Range(**described)


def with_tuples(value: Any) -> Any:
    """Returns a value of the command line or a journal with the lists replaced by tuples, which a Recipe has."""
    return tuple(map(with_tuples, value)) if isinstance(value, list | tuple) else value
