"""The interface of a study's tables: :class:`nfnet_ray.analysis.StudyRecord` as the statistical functions use it.

The record has methods that call these functions, so they cannot import the record. They accept any object with these
attributes, which the record's docstring explains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nfnet_ray.command_line.python_arguments import refusal
from nfnet_ray.correct_images import CorrectImages
from nfnet_ray.tracking.conditions.fields import Conditions
from nfnet_ray.tracking.descriptions import StudyDescription

if TYPE_CHECKING:
    import pandas as pd


STUDY = "study"
"""The column, and field, of a record of several studies that contains the study of each trial."""


class StudyTables(Protocol):
    """The attributes and methods of a :class:`nfnet_ray.analysis.StudyRecord` that statistical functions need."""

    @property
    def study(self) -> StudyDescription: ...
    @property
    def fields(self) -> tuple[str, ...]: ...
    @property
    def conditions(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> dict[str, str]: ...
    @property
    def epochs(self) -> pd.DataFrame: ...
    @property
    def trials(self) -> pd.DataFrame: ...
    @property
    def further(self) -> Set[str]: ...
    @property
    def pauses(self) -> Mapping[str, Mapping[float, int]]: ...
    @property
    def measured_under(self) -> Mapping[str, Conditions]: ...
    @property
    def parts(self) -> Mapping[str, StudyTables]: ...
    @property
    def price_per_hour(self) -> float | None: ...
    @property
    def is_stretched(self) -> bool: ...
    @property
    def rungs_in_seconds(self) -> bool: ...
    def correct(self, trial: str, epoch: int) -> CorrectImages | None: ...


Record = TypeVar("Record")
Found = TypeVar("Found")


def once_of_a_record(find: Callable[[Record], Found]) -> Callable[[Record], Found]:
    """Caches a function's result in the record that is its argument, because a report needs it a dozen times.

    As with :func:`functools.cached_property`, the result must not be modified. For a record that
    :func:`dataclasses.replace` creates from another one, the function is called again.
    """
    name = f"{find.__module__}.{find.__qualname__}"

    @functools.wraps(find)
    def known(record: Record) -> Found:
        if not hasattr(record, "__dict__"):  # most likely the name of a study
            raise refusal("record", record, "what nfnet_ray.load_study and nfnet_ray.run return")
        kept: dict[str, Any] = vars(record)
        if name not in kept:
            kept[name] = find(record)
        found: Found = kept[name]
        return found

    return known
