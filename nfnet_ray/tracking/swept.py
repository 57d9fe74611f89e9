"""Reads from a journal's first line which fields a study sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nfnet_ray.tracking.descriptions import StudyDescription


def swept_fields(study: StudyDescription) -> tuple[str, ...]:
    """Returns the dotted names of the fields in question, in the order of the space, without tied fields."""
    if "asked" in study:
        return tuple(study["asked"])
    if "points" in study:
        return tuple(dict.fromkeys(name for point in study["points"] for name in point))
    return tuple(name for name in study["space"] if tied_to(study, name) is None)


def condition_fields(study: StudyDescription) -> tuple[str, ...]:
    """Returns the fields whose values divide the trials into strata: all with a list of values except the first.

    There are none in a study with a plain list of points.
    """
    if "points" in study:
        return ()
    return tuple(name for name in swept_fields(study)[1:] if swept_range(study, name) is None)


def winner_fields(study: StudyDescription) -> tuple[str, ...]:
    """Returns the fields for each combination of whose values there is a winner: the conditions.

    A search that learns from results looks for one best setting under any condition, so it has a single winner.
    """
    return () if "lag" in study.get("search", {}) else condition_fields(study)


def swept_range(study: StudyDescription, field: str) -> Mapping[str, Any] | None:
    """Returns the range of a field, with its ends ``low`` and ``high``; None for a field with a list of values."""
    domain = _unconditional(study["space"].get(field, []))
    return domain if isinstance(domain, Mapping) and "low" in domain else None


def tied_to(study: StudyDescription, field: str) -> str | None:
    """Returns the field whose value a tied field has; None for all other fields."""
    domain = _unconditional(study["space"].get(field, []))
    return domain.get("same_as") if isinstance(domain, Mapping) else None


def possible_values(study: StudyDescription, field: str) -> list[Any]:
    """Returns the values that a field has in the trials: those of its list, or the ends of its range and maybe None.

    If the field may be absent from a point, the Recipe's value is included.
    """
    if "points" in study:
        return [point.get(field, study["recipe"].get(field)) for point in study["points"]]
    domain = study["space"][field]
    values: list[Any] = (
        [study["recipe"].get(field)] if isinstance(domain, Mapping) and "when" in domain else []
    )
    domain = _unconditional(domain)
    if isinstance(domain, Mapping):
        return [*values, domain["low"], domain["high"], *([None] if domain.get("or_none") else [])]
    return [*values, *domain]


def beside_the_question(study: StudyDescription, field: str) -> list[Any]:
    """Returns the values, one per point, of a field of the points that is not in question; empty for others."""
    if (
        "asked" not in study
        or field in study["asked"]
        or not any(field in point for point in study["points"])
    ):
        return []
    return possible_values(study, field)


def _unconditional(described: Any) -> Any:
    while isinstance(described, Mapping) and "when" in described:
        described = described["domain"]
    return described
