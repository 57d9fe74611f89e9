"""The names of trials, which are also names of folders."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

from nfnet_ray.study.search.axes import point_key
from nfnet_ray.tracking.labels import endings, value_label

UNCHANGED: Final = "recipe"
"""The name of a trial of a study that sweeps no field."""


def name_parts(fields: Sequence[str], point: Mapping[str, Any]) -> dict[str, str]:
    """Returns {dotted name of a field: the part of a trial's name with its value}, given all swept ``fields``."""
    labels = endings(fields)
    return {name: f"{labels[name]}={_as_file_name(value_label(value))}" for name, value in point.items()}


def free_name(name: str, epochs: int, taken: Container[str]) -> str:
    """Returns the name, with a suffix if another trial has it already, such as one with other epochs."""
    suffixes = itertools.chain(["", f",epochs={epochs}"], (f",{number}" for number in itertools.count(2)))
    return next(free for suffix in suffixes if (free := name + suffix) not in taken)


def trial_key(point: Mapping[str, Any], seed: int) -> str:
    """Returns a text that identifies a trial of a study, equal for values before and after a journal's round trip."""
    return f"{point_key(point)} {seed}"


def _as_file_name(label: str) -> str:
    """Replaces the characters that file names should not have: ``64 × 128`` becomes ``64-128``."""
    return re.sub(r"[^A-Za-z0-9.+]+", "-", label).strip("-")
