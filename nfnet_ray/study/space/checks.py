"""Checks a space and raises a UserError of one line, with the field and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nfnet_ray.command_line.python_arguments import a_flag
from nfnet_ray.errors import UserError
from nfnet_ray.printable import shown
from nfnet_ray.recipe import Recipe
from nfnet_ray.settings import LARGEST_WHOLE_NUMBER, checked_value, did_you_mean, number_type
from nfnet_ray.study.space.domains import (
    Domain,
    Range,
    SameAs,
    Space,
    When,
    domain_text,
    listed_value_text,
    unconditional,
)
from nfnet_ray.study.space.points import dependence_order

NOT_SWEPT: Final = {
    "seed": "give --seeds N, or a Study's seeds",
    "data.path": "a study has one data set; give --data",
}
"""{field of the Recipe that cannot be swept: what to do instead}."""


def check_space(space: Space) -> None:
    """Raises UserError, with the field and what to do, if a domain cannot be swept.

    Values are checked against the types and bounds of the Recipe's fields. Rules between fields are checked when the
    Recipe of a point is built.
    """
    for name, domain in space.items():
        check_can_be_swept(name)
        _check_domain(space, name, domain)
    dependence_order(space)


def check_points(points: Sequence[Mapping[str, Any]], space: Space) -> None:
    """Raises UserError if a plain list of points is invalid, or if there is a space as well."""
    if space:
        raise UserError("a study has a space or a list of points, not both: leave one of them out")

    def check(point: Mapping[str, Any]) -> None:
        for name, value in point.items():
            check_can_be_swept(name)
            checked_value(Recipe, name, value)

    _check_list("the study", points, "point", check)


def check_asked(points: Sequence[Mapping[str, Any]], asked: Sequence[str] | None) -> None:
    """Raises UserError if two points are equal in the fields in question."""
    if asked is None:
        return
    seen: dict[str, int] = {}
    for number, point in enumerate(points, 1):
        key = repr([(name, point[name]) for name in asked if name in point])
        if key in seen:
            raise UserError(
                f"points {seen[key]} and {number} of the study are the same in all that is asked about "
                f"({', '.join(asked)}): name another field that tells them apart, or leave one out"
            )
        seen[key] = number


def check_can_be_swept(name: str) -> None:
    """Raises UserError for a name that is not a field of the Recipe, or that has its own flag."""
    if isinstance(name, str) and name in NOT_SWEPT:
        raise UserError(f"{name} cannot be swept: {NOT_SWEPT[name]}")
    number_type(Recipe, name)  # raises for a field that does not exist


def _check_domain(space: Space, name: str, domain: Domain) -> None:
    if isinstance(domain, When):
        _check_when(name, domain)
        _check_domain(space, name, domain.domain)
    elif isinstance(domain, SameAs):
        _check_tie(space, name, domain)
    elif isinstance(domain, Range):
        _check_range(name, domain)
    elif isinstance(domain, tuple | list):
        _check_list(name, domain, "value", lambda value: checked_value(Recipe, name, value))
    else:
        raise UserError(
            f"{name} is swept over {shown(domain)}, which is not a domain: use a list of values, Range, When or SameAs"
        )


def _check_list(name: str, values: Sequence[Any], what: str, check: Callable[[Any], object]) -> None:
    if not values:
        raise UserError(f"{name} has no {what} to sweep: list at least one, or leave the field out")
    for value in values:
        check(value)
    seen = set()
    for label in map(listed_value_text, values):
        if label in seen:
            raise UserError(f"{name} has {label} twice in its list: list each value once")
        seen.add(label)


def _check_range(name: str, domain: Range) -> None:
    kind = number_type(Recipe, name)
    for end in (domain.low, domain.high):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise UserError(
                f"{name}: the end {shown(end)} of a range is not a number; a range has two numbers as its ends"
            )
        if kind is not None and abs(end) > LARGEST_WHOLE_NUMBER:
            checked_value(Recipe, name, end)
    for flag in ("log", "integer", "or_none"):
        a_flag(f"{name}: {flag} of its range", getattr(domain, flag))
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
    number_type(Recipe, domain.field)  # raises for a field that does not exist
    if domain.field == name:
        raise UserError(f"{name} cannot depend on itself: name another field in its condition")
    if domain.among is None:
        return
    if not isinstance(domain.among, tuple | list):
        raise UserError(f"{name}: the values of {domain.field} in its condition must be a list")
    _check_list(
        f"{name}: the condition on {domain.field}",
        domain.among,
        "value",
        lambda value: checked_value(Recipe, domain.field, value),
    )


def _check_tie(space: Space, name: str, tie: SameAs) -> None:
    if not isinstance(tie.field, str) or not tie.field:
        raise UserError(f"{name} is tied to {shown(tie.field)}, which is no field: name one of the space")
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
