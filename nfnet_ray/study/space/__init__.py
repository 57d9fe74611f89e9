"""Defines the space of a study: the values that each swept field takes, and the conditions on which it is swept.

    space = {
        "optimizer.agc.clip_factor": Range(0.002, 0.3, log=True, or_none=True),
        "batch_size": (64, 256),
        "optimizer.sam.rho": (None, 0.05),
        "optimizer.sam.ascent_share": When((1.0, 0.2), "optimizer.sam.rho"),
        "data.eval_size": SameAs("data.image_size"),
    }

A *point* is {dotted name: value} of the fields that are swept there. A field that a :class:`When` leaves out is not in
the point and keeps the Recipe's value. A field with a :class:`SameAs` is not in the point either, because it has
another field's value.
"""

from nfnet_ray.study.space.checks import check_asked, check_points, check_space
from nfnet_ray.study.space.domains import (
    Domain,
    Point,
    Range,
    SameAs,
    Space,
    When,
    domain_from_json,
    domain_text,
    domain_to_json,
    has_range,
    in_plain_values,
    is_listed,
    unconditional,
    with_listed,
    with_values_of,
)
from nfnet_ray.study.space.points import all_values, build_point, grid

__all__ = [
    "Domain",
    "Point",
    "Range",
    "SameAs",
    "Space",
    "When",
    "all_values",
    "build_point",
    "check_asked",
    "check_points",
    "check_space",
    "domain_from_json",
    "domain_text",
    "domain_to_json",
    "grid",
    "has_range",
    "in_plain_values",
    "is_listed",
    "unconditional",
    "with_listed",
    "with_values_of",
]
