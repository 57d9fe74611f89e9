"""Finds the differences between the conditions of trials: the field, its values, and the trials that have them.

A field in the space of a study is part of its question, so it is not reported as a difference within the study or to
it. A field that varies with the points of a study, such as the evaluation size of each network's own recipe, is only
remarked. The same holds for image sizes if each network has its own published size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nfnet_ray.analysis.tables import StudyTables
from nfnet_ray.errors import UserError
from nfnet_ray.models.catalogue import get_model
from nfnet_ray.tracking.conditions.fields import (
    CONDITION_FIELDS,
    UNKNOWN,
    ConditionField,
    Conditions,
    Fact,
    Weight,
)
from nfnet_ray.tracking.descriptions import StudyDescription
from nfnet_ray.tracking.swept import beside_the_question, swept_fields, tied_to
from nfnet_ray.wording import count, in_a_row

# {condition: attribute of a model} of the sizes for which each network has its own published value.
_OWN_SIZES = {"eval_size": "test_size", "image_size": "train_size"}
_MOST_NAMED = 3
_NOT_BEGUN = "not started"


@dataclass(frozen=True)
class ConditionGroup:
    """The trials that share a value of a condition; ``where`` names these trials."""

    fact: Fact
    trials: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class ConditionDifference:
    """A condition that is not the same for all trials.

    Attributes:
        weight: the importance of the difference; see :data:`nfnet_ray.tracking.conditions.fields.Weight`.
        groups: the trials by value, in the order of the record; trials whose value is unknown are last.
        is_known: whether at least two different values are known. Otherwise all values may be equal.
        why_quiet: the reason why the difference is only remarked; empty otherwise.
    """

    field: ConditionField
    weight: Weight
    groups: tuple[ConditionGroup, ...]
    is_known: bool
    why_quiet: str

    @property
    def values(self) -> str:
        """Formats the values with their trials: ``64 in agc_sweep, 72 in efficientnet_baselines``."""
        return "; ".join(f"{group.fact.text} ({group.where})" for group in self.groups)

    def sentence(self) -> str:
        """Returns what differs, where, and what that means for the comparison, without a full stop."""
        touches = " and ".join(self.field.touches)
        if not self.is_known:
            unknown = in_a_row([group.where for group in self.groups if not group.fact.is_known])
            return f"whether {self.field.label} is the same is unknown: it is not recorded for {unknown}"
        if self.weight == "quiet":
            why = f", {self.why_quiet}" if self.why_quiet else ""
            return f"{self.field.label} differs{why}: {self.values}"
        return f"{self.field.label} differs, which affects {touches}: {self.values}"


def condition_differences(record: StudyTables) -> list[ConditionDifference]:
    """Returns the conditions that differ between trials of one or several studies, the most important first.

    Trials without an epoch are left out, because they have no accuracy to compare, and because a worker reports its
    hardware with its first epoch. If no trial has an epoch, the trials that have not begun are compared.
    """
    table = record.trials
    measured = [trial for trial, epochs in zip(table["trial"], table["epochs"], strict=True) if epochs > 0]
    begun = [
        trial for trial, state in zip(table["trial"], table["state"], strict=True) if state != _NOT_BEGUN
    ]
    trials = [trial for trial in measured or begun or table["trial"] if trial in record.measured_under]
    studies = _studies(record)
    found = [
        difference
        for field in CONDITION_FIELDS
        if (difference := _difference(field, trials, record.measured_under, studies)) is not None
    ]
    # The names of devices are more informative than the hardware of a whole cluster.
    with_devices = all(record.measured_under[trial]["device"].is_known for trial in trials)
    left_out = "hardware" if with_devices else "device"
    found = [difference for difference in found if difference.field.name != left_out]
    order = ("apart", "marked", "quiet")
    return sorted(found, key=lambda difference: (not difference.is_known, order.index(difference.weight)))


@dataclass(frozen=True)
class _Study:
    name: str
    description: StudyDescription
    trials: frozenset[str]


def _studies(record: StudyTables) -> list[_Study]:
    if not record.parts:
        return [_Study(record.study["name"], record.study, frozenset(record.trials["trial"]))]
    table = record.trials
    return [
        _Study(name, part.study, frozenset(table.loc[table["study"] == name, "trial"]))
        for name, part in record.parts.items()
    ]


def _difference(
    field: ConditionField,
    trials: Sequence[str],
    measured_under: Mapping[str, Conditions],
    studies: Sequence[_Study],
) -> ConditionDifference | None:
    asking = [study for study in studies if _is_asked(study.description, field)]
    facts = {
        trial: _fact(field.name, measured_under[trial])
        for trial in trials
        if field.name in measured_under[trial] and not any(trial in study.trials for study in asking)
    }
    known = {fact.value for fact in facts.values() if fact.is_known}
    unknown = [trial for trial, fact in facts.items() if not fact.is_known]
    if len(known) + bool(unknown) < 2 or not known:
        return None
    is_known = len(known) > 1
    weight, why = field.weight, ""
    if not is_known:
        weight = "quiet"
    elif _are_own_sizes(field, facts, measured_under):
        weight, why = "quiet", "each network at its own published size"
    elif _goes_along(field, facts, studies):
        weight, why = "quiet", "as each point of the study has its own"
    by_value: dict[object, list[str]] = {}
    for trial, fact in facts.items():
        by_value.setdefault((fact.is_known, fact.value if fact.is_known else fact.text), []).append(trial)
    ordered = sorted(by_value.values(), key=lambda group: not facts[group[0]].is_known)
    groups = [
        ConditionGroup(facts[group[0]], tuple(group), _where(group, facts, studies)) for group in ordered
    ]
    return ConditionDifference(field, weight, tuple(groups), is_known, why)


def _is_asked(study: StudyDescription, field: ConditionField) -> bool:
    """Whether the field is in the space of a study, either swept itself or tied to a swept field."""
    if field.recipe is None:
        return False
    return field.recipe in swept_fields(study) or (
        field.recipe in study["space"] and tied_to(study, field.recipe) is not None
    )


def _fact(name: str, conditions: Conditions) -> Fact:
    """Returns the value. A size that a Recipe of an earlier version leaves to the network is its published one."""
    fact = conditions.get(name, UNKNOWN)
    if fact.is_known or name not in _OWN_SIZES:
        return fact
    size = _own_size(name, conditions)
    return UNKNOWN if size is None else Fact(size, str(size))


def _own_size(name: str, conditions: Conditions) -> int | None:
    return _published_size(str(conditions["network"].value), _OWN_SIZES[name])


@functools.cache
def _published_size(network: str, name: str) -> int | None:
    try:
        return int(getattr(get_model(network), name))
    except UserError:  # a network that this version does not have
        return None


def _are_own_sizes(
    field: ConditionField, facts: Mapping[str, Fact], measured_under: Mapping[str, Conditions]
) -> bool:
    return field.name in _OWN_SIZES and all(
        fact.value == _own_size(field.name, measured_under[trial]) for trial, fact in facts.items()
    )


def _goes_along(field: ConditionField, facts: Mapping[str, Fact], studies: Sequence[_Study]) -> bool:
    """Whether the values differ only within studies in whose points the field varies beside the question."""
    sets = []
    for study in studies:
        values = {fact.value for trial, fact in facts.items() if trial in study.trials}
        if len(values) > 1 and not (field.recipe and beside_the_question(study.description, field.recipe)):
            return False
        sets.append(values)
    present = [values for values in sets if values]
    return all(values == present[0] for values in present)


def _where(group: Sequence[str], facts: Mapping[str, Fact], studies: Sequence[_Study]) -> str:
    """Names the trials: the studies if all of a study's trials are in the group, else some of its trials."""
    parts = []
    for study in studies:
        mine = [trial for trial in group if trial in study.trials]
        compared = sum(trial in study.trials for trial in facts)
        if not mine:
            continue
        if len(mine) == compared:
            parts.append(study.name if len(studies) > 1 else f"all {count(len(mine), 'trial')}")
            continue
        which = f"{len(mine):,} of {count(compared, 'trial')}"
        if len(mine) <= _MOST_NAMED:
            which = in_a_row([trial.removeprefix(f"{study.name}/") for trial in mine])
        parts.append(f"{which} of {study.name}" if len(studies) > 1 else which)
    return in_a_row(parts)


def texts(groups: Iterable[ConditionGroup]) -> dict[str, str]:
    """Returns {trial: value of its group, as it is shown}."""
    return {trial: group.fact.text for group in groups for trial in group.trials}
