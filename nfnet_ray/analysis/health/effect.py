"""Tests whether values of the field in question differ by more than chance, or a setting is worse than the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nfnet_ray.analysis.answer import BestSetting, spread_of_single_seeds
from nfnet_ray.analysis.effects.importance import importance
from nfnet_ray.analysis.effects.marginal import pairwise_effects
from nfnet_ray.analysis.effects.noise import noise_of_results, results_at
from nfnet_ray.analysis.effects.stages import stages
from nfnet_ray.analysis.inference.lead import chance_of_lead, with_assumed_spread
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.setting import SettingResult, setting_results
from nfnet_ray.analysis.verdict import Contrast

LEVEL = 0.05
"""The probability of reporting an effect that does not exist."""


@dataclass(frozen=True)
class HypothesisTest:
    """The result of a test of the hypothesis that nothing differs.

    Attributes:
        p_value: the smallest p value times the number of tests (Bonferroni), at most 1.
        assumes_spread: whether single seeds were compared, with an assumed spread between seeds.
    """

    p_value: float
    assumes_spread: bool = False

    @property
    def is_told(self) -> bool:
        """Whether the difference is larger than chance explains."""
        return self.p_value < LEVEL


def is_compared_by_itself(record: StudyRecord) -> bool:
    """Whether the accuracies of single settings show the effect of the field in question.

    This is the case if settings under the same conditions differ only in that field, and if the study is a list of
    points.
    """
    return "points" in record.study or len(set(record.fields) - set(record.conditions)) == 1


def others_by_value(record: StudyRecord, answer: BestSetting) -> list[Contrast]:
    """Returns comparisons of the best setting with the best one of each other value of the field in question."""
    asked = record.fields[0]
    best: dict[Any, Contrast] = {}
    for found in answer.contrasts:  # best first
        if found.other.point[asked] != answer.best.point[asked]:
            best.setdefault(found.other.point[asked], found)
    return list(best.values())


def effect_test(record: StudyRecord, answers: Sequence[BestSetting]) -> HypothesisTest:
    """Tests whether values of the field in question, under any of the conditions, differ in their accuracy.

    If settings differ in other fields, too, the test uses what the field explains beside those, alone or in interaction
    with one of them.
    """
    if not is_compared_by_itself(record):
        return _smallest([HypothesisTest(p_value) for p_value in _explained(record)])
    return _smallest([test for answer in answers for test in _leads(record, answer)])


def behind_test(record: StudyRecord, answer: BestSetting, other: SettingResult) -> HypothesisTest:
    """Tests whether the best setting is better than one that was named in advance, although the best one was chosen."""
    results = [answer.best, *(found.other for found in answer.contrasts)]
    return _test(record, results, results.index(other))


def _smallest(tests: Sequence[HypothesisTest]) -> HypothesisTest:
    if not tests:
        return HypothesisTest(1.0)
    found = min(tests, key=lambda test: test.p_value)
    return replace(found, p_value=min(1.0, found.p_value * len(tests)))


def _explained(record: StudyRecord) -> list[float]:
    """Returns the p values of the field in question at both stages of :func:`importance`, and with each other field."""
    asked = record.fields[0]
    alone, pairs = importance(record), pairwise_effects(record)
    mine = pairs[(pairs["field_a"] == asked) | (pairs["field_b"] == asked)]
    together = mine.drop_duplicates(["field_a", "field_b"])["p_value"].dropna().tolist()
    return [*alone["p_value"][alone["field"] == asked].dropna().tolist(), *together]


def _leads(record: StudyRecord, answer: BestSetting) -> Iterator[HypothesisTest]:
    """Yields the tests under one condition: at the end, with first seeds, and where settings were given up."""
    results = [answer.best, *(found.other for found in others_by_value(record, answer))]
    if len(results) > 1:
        yield _test(record, results)
    if "points" in record.study:  # in other studies, settings may differ in other fields
        return
    if answer.dropped:
        first = replace(record, trials=record.trials[~record.trials["trial"].isin(record.further)])
        yield _test(record, _under_the_conditions(record, answer, setting_results(first)))
    for stage in stages(record):
        there = _under_the_conditions(record, answer, results_at(record, stage))
        if not stage.is_end and len(there) > 1:
            yield _test(record, there)


def _under_the_conditions(
    record: StudyRecord, answer: BestSetting, results: Sequence[SettingResult]
) -> list[SettingResult]:
    at = {field: answer.best.point[field] for field in record.conditions}
    return [result for result in results if all(result.point[field] == value for field, value in at.items())]


def _test(record: StudyRecord, results: Sequence[SettingResult], rival: int | None = None) -> HypothesisTest:
    noise = noise_of_results(results)
    is_single = min(len(result.seed_top1) for result in results) == 1
    if is_single:
        noise = with_assumed_spread(noise, spread_of_single_seeds(record))
    accuracies = np.array([result.top1 for result in results])
    return HypothesisTest(chance_of_lead(accuracies, noise, rival), is_single)
