"""The comparability guard: decides which trials may share an axis, and which differences have to be mentioned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nfnet_ray.analysis.comparability.differences import ConditionDifference, condition_differences, texts
from nfnet_ray.analysis.tables import StudyTables, once_of_a_record
from nfnet_ray.tracking.conditions.fields import VERSIONS
from nfnet_ray.wording import in_a_row

_MOST_MARKS = 2
"""The most marks of a trial in a legend; the sentences contain all of them."""


@dataclass(frozen=True)
class AxesGroup:
    """Trials that may share both axes. ``title`` has the values that separate them from other trials, if any."""

    title: str
    trials: frozenset[str]


@dataclass(frozen=True)
class Comparability:
    """The comparability of the trials of a record.

    Attributes:
        differences: all differences, the most important first.
        axes: groups of trials that may share axes of accuracy and time, in the order of the record; one group if all
            may.
        marks: {trial: its values of the marked conditions}, for a legend; without trials that have no marks.
    """

    differences: tuple[ConditionDifference, ...]
    axes: tuple[AxesGroup, ...]
    marks: dict[str, str]

    @property
    def weighty(self) -> list[ConditionDifference]:
        """The differences that are known and not quiet."""
        return [one for one in self.differences if one.is_known and one.weight != "quiet"]

    @property
    def remarks(self) -> list[ConditionDifference]:
        """The quiet differences, and the conditions that the journals do not record."""
        return [one for one in self.differences if not one.is_known or one.weight == "quiet"]

    def sentences(self) -> list[str]:
        """The important differences with their values and trials: first those that separate trials, then the others."""
        return [f"{said[0].upper()}{said[1:]}." for said in (one.sentence() for one in self.weighty)]

    def remark_sentences(self) -> list[str]:
        """The remarks: first the intended differences, then one sentence about conditions that are not recorded."""
        said = [one.sentence() for one in self.remarks if one.is_known]
        unknown = [one for one in self.remarks if not one.is_known]
        by_place: dict[str, list[str]] = {}
        for one in unknown:
            where = " and ".join(group.where for group in one.groups if not group.fact.is_known)
            by_place.setdefault(where, []).append(one.field.label)
        said += [
            f"not recorded for {where}, and so perhaps different: {', '.join(labels)}"
            for where, labels in by_place.items()
        ]
        return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in said]


def not_one_accuracy(record: StudyTables) -> str:
    """Says why accuracies of a record's trials cannot be compared; empty if they can.

    Versions are not a reason: another version adds numbers in another order, and the version is marked wherever the
        accuracy is shown.
    """
    labels = [
        one.field.label
        for one in comparability(record).weighty
        if "accuracy" in one.field.touches and one.field.name not in VERSIONS
    ]
    return f"they differ in {in_a_row(labels)}" if labels else ""


@once_of_a_record
def comparability(record: StudyTables) -> Comparability:
    """Determines which of a record's trials may share axes, and what differs between those that do."""
    differences = condition_differences(record)
    apart = [one for one in differences if one.is_known and one.weight == "apart"]
    axes = _axes(record, apart)
    differences = [_within(one, axes) for one in differences]
    marked = [one for one in differences if one.is_known and one.weight == "marked"]
    return Comparability(tuple(differences), axes, _marks(record, marked))


def _within(difference: ConditionDifference, axes: Sequence[AxesGroup]) -> ConditionDifference:
    """Makes a marked difference quiet if it does not occur between trials that share axes."""
    values = texts(difference.groups)
    if difference.weight != "marked" or any(
        len({values[trial] for trial in group.trials if trial in values}) > 1 for group in axes
    ):
        return difference
    return replace(difference, weight="quiet", why_quiet="between trials that have axes of their own")


def _axes(record: StudyTables, apart: Sequence[ConditionDifference]) -> tuple[AxesGroup, ...]:
    values = [texts(one.groups) for one in apart]
    found: dict[tuple[str, ...], set[str]] = {}
    for trial in record.trials["trial"]:
        if values and not any(trial in value for value in values):
            continue  # the trial has not begun
        found.setdefault(tuple(value.get(trial, "") for value in values), set()).add(trial)
    return tuple(
        AxesGroup(
            ", ".join(f"{one.field.label} {text}" for one, text in zip(apart, key, strict=True) if text),
            frozenset(trials),
        )
        for key, trials in found.items()
    )


def _marks(record: StudyTables, marked: Sequence[ConditionDifference]) -> dict[str, str]:
    """Returns the marks of each trial. Marks of versions come last, because they are many and the least important."""
    values = [(one.field.label, texts(one.groups)) for one in marked]
    marks = {}
    for trial in record.trials["trial"]:
        mine = [f"{label} {value[trial]}" for label, value in values if trial in value]
        if mine:
            more = f", {len(mine) - _MOST_MARKS} more" if len(mine) > _MOST_MARKS else ""
            marks[trial] = ", ".join(mine[:_MOST_MARKS]) + more
    return marks
