"""Converts the values of a swept field to a few levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from nfnet_ray.analysis.tables import StudyTables
from nfnet_ray.tracking.labels import ABSENT, value_label
from nfnet_ray.tracking.swept import swept_range


@dataclass(frozen=True)
class FieldLevels:
    """The levels of a field: numbers in ascending order, then words, none, and absent.

    Attributes:
        labels: the name of each level: a value, or ``0.002 to 0.01`` for a bin.
        index: {value: index of its level}.
        centres: the value of each level, or the median value of a bin.
    """

    labels: tuple[str, ...]
    index: dict[Hashable, int]
    centres: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.labels)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def grouped(
    values: Iterable[Any], most: int, bins: int
) -> tuple[list[list[Any]], list[list[Any]], list[list[Any]]]:
    """Returns the values in groups: (numbers in ascending order, words, none and absent).

    Each value forms a separate group. More than ``most`` numbers are divided into ``bins`` groups of about equal size.
    """
    distinct = list(dict.fromkeys(values))
    numbers = sorted(value for value in distinct if is_number(value))
    outside = [value for value in (None, ABSENT) if value in distinct]
    words = [value for value in distinct if not is_number(value) and value not in outside]
    groups = [[number] for number in numbers]
    if len(numbers) > most:
        bounds = [round(len(numbers) * group / bins) for group in range(bins + 1)]
        groups = [numbers[low:high] for low, high in itertools.pairwise(bounds)]
    return groups, [[word] for word in words], [[value] for value in outside]


def group_labels(groups: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    """Returns the name of each group, with as few digits as distinguish the names."""

    def named(digits: int) -> tuple[str, ...]:
        return tuple(
            value_label(group[0])
            if len(group) == 1
            else f"{_rounded(group[0], digits)} to {_rounded(group[-1], digits)}"
            for group in groups
        )

    several = (named(digits) for digits in range(2, 7))
    return next((labels for labels in several if len(set(labels)) == len(labels)), named(6))


def _rounded(value: float, digits: int) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else value_label(value)


def field_levels(values: Iterable[Any], most: int) -> FieldLevels:
    """Returns each value as a level; more than ``most`` numbers are divided into ``most`` bins of about equal size."""
    groups = list(itertools.chain(*grouped(values, most, most)))
    return FieldLevels(
        group_labels(groups),
        {value: number for number, group in enumerate(groups) for value in group},
        tuple(group[len(group) // 2] for group in groups),
    )


def is_logarithmic(tables: StudyTables, field: str) -> bool:
    """Whether a field should be shown on a log axis.

    A range specifies this itself. A list is logarithmic if the ratios of neighbours are more alike than their
    differences, as in 0.01, 0.02, 0.04; 0 is ignored.
    """
    described = swept_range(tables.study, field)
    if described is not None:
        return bool(described.get("log"))
    numbers = sorted({float(value) for value in tables.trials[field] if is_number(value)})
    positive = [value for value in numbers if value > 0]
    if len(positive) < 3 or numbers[0] < 0:
        return False
    steps = [high - low for low, high in itertools.pairwise(positive)]
    ratios = [math.log(high / low) for low, high in itertools.pairwise(positive)]
    return max(ratios) / min(ratios) < max(steps) / min(steps)
