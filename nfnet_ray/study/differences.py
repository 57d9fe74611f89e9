"""Describes in which fields two studies differ, because a study is resumed only if nothing has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from nfnet_ray.recipe import decisive_values
from nfnet_ray.study.halving import Halving
from nfnet_ray.study.space import domain_from_json, domain_text, domain_to_json
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.wording import as_points

_SWEEP: Final = "sweep of "
_MOST_POINTS_SHOWN: Final = 3


def differing_fields(study: Study, other: Study) -> list[str]:
    """Returns the fields in which ``study`` differs from ``other`` as "FIELD is A, was B"; empty if they are the same.

    The study's name and the path of the data are not compared. The fingerprint tells whether the data is the same.
    """
    mine, others = _values_of(study), _values_of(other)
    return [
        f"{name} is {_in_words(name, mine)}, was {_in_words(name, others)}"
        for name in {**mine, **others}
        # Compared as JSON, in which a journal's lists and a Study's tuples are equal.
        if json.dumps(mine.get(name)) != json.dumps(others.get(name))
    ]


def _values_of(study: Study) -> dict[str, Any]:
    """Returns {description of a field that a person may set: its value}."""
    told: dict[str, Any] = {"question": study.question} | decisive_values(study.recipe.to_values())
    told |= {f"{_SWEEP}{name}": domain_to_json(domain) for name, domain in study.space.items()}
    told |= {
        "points": study.points,
        "asked": study.asked,
        "seeds": study.seeds,
        "more seeds": study.more_seeds,
    }
    told |= {"early stopping": study.halving_description(), "equal within": study.equal_within}
    told |= {"holdout": study.holdout, "confirm": study.confirm}
    if told["early stopping"]:  # money_seconds follows from a price, which may have changed
        kept = told["early stopping"].items()
        told["early stopping"] = {key: value for key, value in kept if key != "money_seconds"}
    if study.draws_points:
        told |= {"search": study.search_name, "first points": study.first_points, "settings": study.settings}
    else:
        told["trials"] = len(study.trials())
    return told


def _in_words(name: str, recorded: Mapping[str, Any]) -> str:
    """Formats a value of :func:`_values_of` for people, in the words of the flag that sets it."""
    value = recorded.get(name)
    if name.startswith(_SWEEP):
        return "not swept" if value is None else domain_text(domain_from_json(value))
    if name == "early stopping" and value:
        return Halving.from_description(value).text()
    if name == "equal within" and value is not None:
        return as_points(f"{100 * value:g}")
    if name in ("points", "first points") and value:
        shown_points = [
            ", ".join(f"{field}={value_label(point[field])}" for field in point) for point in value
        ]
        return " / ".join(
            [*shown_points[:_MOST_POINTS_SHOWN], *(["…"] if len(value) > _MOST_POINTS_SHOWN else [])]
        )
    if isinstance(value, str):  # not shortened: paths of two files of weights may differ only at the end
        return value
    return (
        ", ".join(map(value_label, value)) or "none"
        if isinstance(value, list | tuple)
        else value_label(value)
    )
