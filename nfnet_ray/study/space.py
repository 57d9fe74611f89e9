"""The space of a study: which values each swept field takes, and where.

    space = {
        "optimizer.agc.clip_factor": Range(0.002, 0.3, log=True, or_none=True),
        "batch_size": (64, 256),
        "optimizer.sam.rho": (None, 0.05),
        "optimizer.sam.ascent_share": When((1.0, 0.2), "optimizer.sam.rho"),
        "data.eval_size": SameAs("data.image_size"),
    }

A *point* is {dotted name: value} of the fields that are swept there. A field that a :class:`When` leaves out is not in
the point and keeps the Recipe's value; a field of a :class:`SameAs` is not in it either, since another field has its
value already.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.settings import LARGEST_WHOLE_NUMBER, checked_value, did_you_mean, number_type
from nfnet_ray.tracking.labels import value_label

SIGNIFICANT_DIGITS: Final = 4
"""Digits of a value that is drawn from a range, so that a trial's name and ``--set`` write all of them."""

NOT_SWEPT: Final = {
    "seed": "give --seeds N, or a Study's seeds",
    "data.path": "a study has one data set; give --data",
    "schedule.epochs": "the trials of a study have the same number of epochs; give --epochs",
}
"""{field of the Recipe that cannot be swept: what to do instead}."""


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both included; with ``or_none`` also None.

    A search draws from it uniformly, or uniformly in the logarithm with ``log``. With ``integer`` it has the whole
    numbers alone.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    or_none: bool = False

    def rounded(self, number: float) -> float:
        """A number within the range as a search proposes it: whole, or of four significant digits."""
        if self.integer:
            return min(max(round(number), int(self.low)), int(self.high))
        short = float(f"{number:.{SIGNIFICANT_DIGITS}g}")
        return float(min(max(short, self.low), self.high))

    def ends(self) -> tuple[Any, ...]:
        """Both ends, and None if the range has it."""
        numbers = (int(self.low), int(self.high)) if self.integer else (float(self.low), float(self.high))
        return (*numbers, None) if self.or_none else numbers


@dataclass(frozen=True)
class SameAs:
    """The field is tied: it always has the value of another field of the space."""

    field: str


@dataclass(frozen=True)
class When:
    """``domain``, but only where another ``field`` is not None, or has one of the values ``among``.

    Elsewhere the field keeps the Recipe's value. ``field`` is one of the space or of the Recipe.
    """

    domain: tuple[Any, ...] | Range | SameAs | When
    field: str
    among: tuple[Any, ...] | None = None

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition holds among ``values``, which has every field of the Recipe."""
        value = values[self.field]
        if self.among is None:
            return value is not None
        return _with_tuples(value) in map(_with_tuples, self.among)


Domain = tuple[Any, ...] | Range | SameAs | When
"""What a space holds for a field; a tuple is a list of values."""

Space = Mapping[str, Domain]
"""{dotted name of a Recipe field: its domain}."""

Point = dict[str, Any]
"""{dotted name: value} of the fields that are swept at a point, in the order of the space."""


def unconditional(domain: Domain) -> tuple[Any, ...] | Range | SameAs:
    """A domain without its conditions."""
    while isinstance(domain, When):
        domain = domain.domain
    return domain


def is_listed(domain: Domain) -> bool:
    """Whether it is a list of values, with or without a condition."""
    return isinstance(unconditional(domain), tuple)


def has_range(space: Space) -> bool:
    """Whether points have to be proposed by a search, because a range has no list of its values."""
    return any(isinstance(unconditional(domain), Range) for domain in space.values())


def with_values_of(domain: Domain, change: Callable[[Any], Any]) -> Domain:
    """The domain with ``change`` of each of its listed values; ranges and ties stay as they are."""
    if isinstance(domain, When):
        return replace(domain, domain=with_values_of(domain.domain, change))
    return domain if isinstance(domain, Range | SameAs) else tuple(map(change, domain))


def domain_text(domain: Domain) -> str:
    """A domain as ``--sweep`` takes it, such as ``none,log:0.002..0.3 if optimizer.sam.rho``."""
    if isinstance(domain, When):
        among = "" if domain.among is None else f"={','.join(map(_value_text, domain.among))}"
        joined = " and " if isinstance(domain.domain, When) else " if "
        return f"{domain_text(domain.domain)}{joined}{domain.field}{among}"
    if isinstance(domain, SameAs):
        return f"same:{domain.field}"
    if isinstance(domain, Range):
        kind = ("log:" if domain.log else "") + ("int:" if domain.integer else "")
        return (
            f"{'none,' if domain.or_none else ''}{kind}{value_label(domain.low)}..{value_label(domain.high)}"
        )
    return ",".join(map(_value_text, domain))


def _value_text(value: Any) -> str:
    return str(list(value)) if isinstance(value, list | tuple) else value_label(value)


def domain_to_json(domain: Domain) -> list[Any] | dict[str, Any]:
    """The domain as a journal has it: a list of values, or an object."""
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
    """The domain that :func:`domain_to_json` describes."""
    if not isinstance(described, Mapping):
        return tuple(map(_with_tuples, described))
    if "same_as" in described:
        return SameAs(described["same_as"])
    if "when" in described:
        among = described.get("among")
        domain = domain_from_json(described["domain"])
        return When(domain, described["when"], None if among is None else tuple(map(_with_tuples, among)))
    return Range(**described)


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def check_space(space: Space) -> None:
    """Raises UserError, with the field and what to do, if a domain cannot be swept.

    Values are checked against the types and bounds of the Recipe's fields. Rules between fields are checked where the
    Recipe of a point is built.
    """
    for name, domain in space.items():
        check_can_be_swept(name)
        _check_domain(space, name, domain)
    dependence_order(space)


def check_points(points: Sequence[Mapping[str, Any]], space: Space) -> None:
    """Raises UserError if a plain list of points cannot be tried."""
    if space:
        raise UserError("a study has a space or a list of points, not both: leave one of them out")
    _check_list("the study", points, "point")
    for point in points:
        for name, value in point.items():
            check_can_be_swept(name)
            checked_value(Recipe, name, value)


def check_can_be_swept(name: str) -> None:
    """Raises UserError for a name that is not a field of the Recipe, or that has its own flag."""
    if name in NOT_SWEPT:
        raise UserError(f"{name} cannot be swept: {NOT_SWEPT[name]}")
    number_type(Recipe, name)  # raises for a field that does not exist


def dependence_order(space: Space) -> list[str]:
    """The fields of a space, each after those that its conditions and its tie name.

    Raises UserError for fields that depend on each other in a circle.
    """
    order: list[str] = []
    above: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in above:
            circle = " depends on ".join([*above[above.index(name) :], name])
            raise UserError(f"the space is circular: {circle}; leave out one of these conditions")
        above.append(name)
        for other in _named_fields(space[name]):
            if other in space:
                visit(other)
        above.pop()
        order.append(name)

    for name in space:
        visit(name)
    return order


def build_point(space: Space, recipe: Recipe, choose: Callable[[str, tuple[Any, ...] | Range], Any]) -> Point:
    """A point of the space. ``choose(name, domain)`` is asked for the value of each field that is swept there.

    A field is asked for after the fields that decide whether it is swept.
    """
    values = recipe.to_values()
    chosen: Point = {}
    for name in dependence_order(space):
        if not _is_swept(space[name], values):
            continue
        domain = unconditional(space[name])
        if isinstance(domain, SameAs):
            values[name] = values[domain.field]
        else:
            values[name] = chosen[name] = choose(name, domain)
    return {name: chosen[name] for name in space if name in chosen}


def all_values(space: Space, recipe: Recipe, point: Mapping[str, Any]) -> Point:
    """``point`` and the values of the tied fields there: what the Recipe of its trial is built with."""
    values, tied = {**recipe.to_values(), **point}, {}
    for name in dependence_order(space):
        domain = unconditional(space[name])
        if isinstance(domain, SameAs) and _is_swept(space[name], values):
            values[name] = tied[name] = values[domain.field]
    return {**point, **tied}


def grid(space: Space, recipe: Recipe) -> Iterator[Point]:
    """Each point of a space of lists once: all values of the first field, for each combination of the others.

    A range has its ends in place of its values.
    """
    lists = {name: _listed(unconditional(domain)) for name, domain in space.items()}
    first, *others = lists
    seen = set()
    for *condition, asked in itertools.product(*(lists[name] for name in others), lists[first]):
        values = dict(zip(lists, (asked, *condition), strict=True))
        point = build_point(space, recipe, lambda name, _domain: values[name])  # noqa: B023 (called at once)
        key = repr(point)
        if key not in seen:
            seen.add(key)
            yield point


def _listed(domain: tuple[Any, ...] | Range | SameAs) -> tuple[Any, ...]:
    if isinstance(domain, Range):
        return domain.ends()
    return (None,) if isinstance(domain, SameAs) else domain


def _is_swept(domain: Domain, values: Mapping[str, Any]) -> bool:
    while isinstance(domain, When):
        if not domain.holds(values):
            return False
        domain = domain.domain
    return True


def _named_fields(domain: Domain) -> Iterator[str]:
    while isinstance(domain, When):
        yield domain.field
        domain = domain.domain
    if isinstance(domain, SameAs):
        yield domain.field


def _check_domain(space: Space, name: str, domain: Domain) -> None:
    if isinstance(domain, When):
        _check_when(name, domain)
        _check_domain(space, name, domain.domain)
    elif isinstance(domain, SameAs):
        _check_tie(space, name, domain)
    elif isinstance(domain, Range):
        _check_range(name, domain)
    elif isinstance(domain, tuple | list):
        _check_list(name, domain, "value")
        for value in domain:
            checked_value(Recipe, name, value)
    else:
        raise UserError(
            f"{name} is swept over {domain!r}, which is not a domain: use a tuple of values, Range, When or SameAs"
        )


def _check_list(name: str, values: Sequence[Any], what: str) -> None:
    if not values:
        raise UserError(f"{name} has no {what} to sweep: list at least one, or leave the field out")
    labels = list(map(_value_text, values))
    twice = [label for number, label in enumerate(labels) if label in labels[:number]]
    if twice:
        raise UserError(f"{name} has {twice[0]} twice in its list: list each value once")


def _check_range(name: str, domain: Range) -> None:
    kind = number_type(Recipe, name)
    for end in (domain.low, domain.high):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise UserError(
                f"{name}: the end {end!r} of a range is not a number; a range has two numbers as its ends"
            )
        if kind is not None and abs(end) > LARGEST_WHOLE_NUMBER:
            checked_value(Recipe, name, end)
    text = domain_text(domain)
    if kind is None:
        raise UserError(
            f"{name} = {text}: the field does not take numbers, so it has no range; list its values"
        )
    if not domain.low < domain.high:
        raise UserError(f"{name} = {text}: the low end must be less than the high end")
    if domain.log and domain.low <= 0:
        raise UserError(f"{name} = {text}: a logarithmic range must begin above 0")
    if domain.integer and not all(float(end).is_integer() for end in (domain.low, domain.high)):
        raise UserError(f"{name} = {text}: the ends of an integer range must be whole numbers")
    if kind is int and not domain.integer:
        raise UserError(
            f"{name} = {text}: the field takes whole numbers; write int:, or Range(…, integer=True)"
        )
    for end in domain.ends():
        checked_value(Recipe, name, end)


def _check_when(name: str, domain: When) -> None:
    if domain.field == name:
        raise UserError(f"{name} cannot depend on itself: name another field in its condition")
    number_type(Recipe, domain.field)  # raises for a field that does not exist
    if domain.among is None:
        return
    if not isinstance(domain.among, tuple | list):
        raise UserError(f"{name}: the values of {domain.field} in its condition must be a tuple")
    _check_list(f"{name}: the condition on {domain.field}", domain.among, "value")
    for value in domain.among:
        checked_value(Recipe, domain.field, value)


def _check_tie(space: Space, name: str, tie: SameAs) -> None:
    if tie.field == name:
        raise UserError(f"{name} cannot be tied to itself: name another field of the space")
    if tie.field not in space:
        known = [other for other in space if other != name]
        hint = did_you_mean(tie.field, known) if known else "sweep it"
        raise UserError(f"{name} is tied to {tie.field}, which is not swept: {hint}")
    other = unconditional(space[tie.field])
    if isinstance(other, SameAs):
        raise UserError(f"{name} is tied to {tie.field}, which is tied itself: tie it to {other.field}")
    if isinstance(other, Range):
        _check_range(name, other)
    else:
        for value in other:
            checked_value(Recipe, name, value)
