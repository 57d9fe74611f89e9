"""Formats names and values of Recipe fields for people, in the same way in MLflow, tables and plots."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from nfnet_ray.recipe import WEIGHTS_DIGEST_MARK


class Absent(enum.StrEnum):
    """The value, in a table, of a field that is not swept at a point and therefore keeps the Recipe's value."""

    ABSENT = "–"


ABSENT = Absent.ABSENT


def without_absent(point: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a point of a table without the fields that are not swept there."""
    return {field: value for field, value in point.items() if value is not ABSENT}


def endings(dotted_names: Iterable[str]) -> dict[str, str]:
    """Shortens each dotted name to its last components, as few as distinguish it from the others.

    The names of trials in journals and folders are built from these, so the result must not change.

    >>> endings(["optimizer.agc.clip_factor", "batch_size"])
    {'optimizer.agc.clip_factor': 'clip_factor', 'batch_size': 'batch_size'}
    >>> endings(["model.overrides.alpha", "loss.alpha"])
    {'model.overrides.alpha': 'overrides.alpha', 'loss.alpha': 'loss.alpha'}
    """
    names = list(dict.fromkeys(dotted_names))
    components = {name: name.split(".") for name in names}
    lengths = dict.fromkeys(names, 1)

    def short(name: str) -> str:
        return ".".join(components[name][-lengths[name] :])

    while True:
        shorts = [short(name) for name in names]
        twins = [
            name for name in names if shorts.count(short(name)) > 1 and lengths[name] < len(components[name])
        ]
        if not twins:
            return dict(zip(names, shorts, strict=True))
        for name in twins:
            lengths[name] += 1


def short_names(dotted_names: Iterable[str]) -> dict[str, str]:
    """Returns the :func:`endings` of dotted names for people: ``model.name`` becomes ``model``.

    >>> short_names(["model.name", "optimizer.name"])
    {'model.name': 'model', 'optimizer.name': 'optimizer'}
    """
    things = {name: name.removesuffix(".name") for name in dotted_names}
    shorts = endings(things.values())
    return {name: shorts[thing] for name, thing in things.items()}


def value_label(value: Any) -> str:
    """Formats a value as a person would write it: ``none``, ``true``, ``0.01``, ``64 × 128``, ``F0_haiku.npz``, ``–``.

    >>> value_label(("classifier.weight", "stem.*")), value_label(())
    ('classifier.weight, stem.*', 'nothing')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        between = ", " if any(isinstance(item, str) for item in value) else " × "
        return between.join(value_label(item) for item in value) or "nothing"
    # Paths are shortened to the name of the file.
    if isinstance(value, str) and (WEIGHTS_DIGEST_MARK in value or PurePath(value).is_absolute()):
        return PurePath(value.partition(WEIGHTS_DIGEST_MARK)[0]).name
    return str(value)


def point_label(point: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Formats a point, such as ``clip_factor 0.01, batch_size 64``, without the fields that are absent.

    ``names`` comes from :func:`short_names`.

    >>> point_label({"batch_size": ABSENT}, {})
    'the Recipe'
    """
    present = without_absent(point)
    if point and not present:
        return "the Recipe"
    return stratum_label(present, names)


def stratum_label(stratum: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Formats the conditions of some trials: ``batch_size 64, ascent_share –``, where a dash is an absent field.

    A field with an empty name is represented by its value.
    """
    return ", ".join(
        f"{names.get(field, field)} {value_label(value)}".lstrip() for field, value in stratum.items()
    )
