"""Names and values of Recipe fields for people, the same in MLflow, tables and plots."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from nfnet_ray.recipe import WEIGHTS_DIGEST_MARK


class Absent(enum.StrEnum):
    """Stands in a table for the value of a field that is not swept at a point: it keeps the Recipe's value there."""

    ABSENT = "–"


ABSENT = Absent.ABSENT


def without_absent(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point of a table without the fields that are not swept there."""
    return {field: value for field, value in point.items() if value is not ABSENT}


def endings(dotted_names: Iterable[str]) -> dict[str, str]:
    """Shorten each dotted name to its last components, to as few as keep it different from the others.

    Trials are named by these in journals and folders, so they have to stay as they are.

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
    """The :func:`endings` of dotted names for people: ``model.name`` is called ``model``.

    >>> short_names(["model.name", "optimizer.name"])
    {'model.name': 'model', 'optimizer.name': 'optimizer'}
    """
    things = {name: name.removesuffix(".name") for name in dotted_names}
    shorts = endings(things.values())
    return {name: shorts[thing] for name, thing in things.items()}


def value_label(value: Any) -> str:
    """A value as a person would write it: ``none``, ``true``, ``0.01``, ``64 × 128``, ``F0_haiku.npz``, ``–``.

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
    # The name of a file is enough.
    if isinstance(value, str) and (WEIGHTS_DIGEST_MARK in value or PurePath(value).is_absolute()):
        return PurePath(value.partition(WEIGHTS_DIGEST_MARK)[0]).name
    return str(value)


def point_label(point: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A point in words, ``clip_factor 0.01, batch_size 64``, without the fields that are absent.

    ``names`` comes from :func:`short_names`.

    >>> point_label({"batch_size": ABSENT}, {})
    'the Recipe'
    """
    present = without_absent(point)
    if point and not present:
        return "the Recipe"
    return stratum_label(present, names)


def stratum_label(stratum: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The conditions of some trials in words: ``batch_size 64, ascent_share –``, where a dash is an absent field.

    A field whose name is empty is said by its value.
    """
    return ", ".join(
        f"{names.get(field, field)} {value_label(value)}".lstrip() for field, value in stratum.items()
    )
