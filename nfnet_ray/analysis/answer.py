"""The answer to a study's question: the best setting, per stratum, and whether the data can tell.

A *setting* is a point of the space; trials that differ in their seed only are its repetitions. The first
swept field is the question, the others are strata: which clip factor is best depends on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nfnet_ray.analysis.intervals import difference_interval, wilson_interval
from nfnet_ray.analysis.record import METRIC, StudyRecord
from nfnet_ray.tracking.labels import point_label

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SettingResult:
    """The outcome of one setting.

    Attributes:
        point: {dotted name: value} of the swept fields.
        top1: mean over seeds of the accuracy after the last epoch, a fraction.
        low, high: 95% interval of ``top1`` for the draw of validation images. The images are the same for
            all seeds, so more seeds do not narrow it.
        seed_top1: each seed's accuracy, whose mean ``top1`` is.
        validation_images: how many images each of them was measured on.
    """

    point: dict[str, Any]
    top1: float
    low: float
    high: float
    seed_top1: tuple[float, ...]
    validation_images: int


@dataclass(frozen=True)
class BestSetting:
    """The setting with the highest accuracy, and the ones that it cannot be told from.

    Attributes:
        best: the winner. Of equals, the one that comes first in the study's space.
        runner_up: the second best, None if there is no other.
        within_noise: the others whose difference from the best has 0 in its 95% interval, best first.
        candidates: how many settings it was chosen from.
        question: dotted name of the first swept field; None if nothing was swept.
        names: {dotted name: short name to show}.
    """

    best: SettingResult
    runner_up: SettingResult | None
    within_noise: tuple[SettingResult, ...]
    candidates: int
    question: str | None
    names: dict[str, str]

    def sentence(self) -> str:
        """The answer in one sentence, with the interval, the number of images and the number of seeds."""
        best, seeds = self.best, len(self.best.seed_top1)
        where = self._where(best.point)
        return (
            f"{f'Best setting: {where}' if where else 'Result'}: top-1 {_percent(best.top1)} "
            f"(95% interval {100 * best.low:.1f} to {_percent(best.high)}, "
            f"{best.validation_images:,} validation images, {seeds} {'seed' if seeds == 1 else 'seeds'})"
            f"{self._comparison()}"
        )

    def _comparison(self) -> str:
        if self.runner_up is None:
            return ""
        second = f"{self._other(self.runner_up)} ({_percent(self.runner_up.top1)})"
        more = len(self.within_noise) - 1
        if more < 0:
            return f"; ahead of {second} by more than the noise"
        return f"; within noise of {second}" + (f" and {more} more" if more else "")

    def _where(self, point: Mapping[str, Any]) -> str:
        strata = {field: value for field, value in point.items() if field != self.question}
        asked = {field: value for field, value in point.items() if field == self.question}
        return " at ".join(point_label(part, self.names) for part in (asked, strata) if part)

    def _other(self, result: SettingResult) -> str:
        """Another setting, without the strata that it shares with the best."""
        same_stratum = all(
            value == self.best.point[field] for field, value in result.point.items() if field != self.question
        )
        if same_stratum and self.question is not None:
            return point_label({self.question: result.point[self.question]}, self.names)
        return self._where(result.point)


def setting_results(record: StudyRecord) -> list[SettingResult]:
    """The settings that can be compared, in the order of the study's space.

    A setting counts when at least one of its trials has finished and none was stopped early, diverged or
    failed: a setting that fails for one seed in three is not as good as its two survivors, and accuracy
    after an early stop is not accuracy after all epochs. Trials that have yet to run are only missing.
    """
    images = record.study["data"]["validation_images"]
    results = []
    for point, trials in _settings(record):
        finished = trials[trials["state"] == "finished"]
        top1 = [float(value) for value in finished["last_top1"]]
        out_of_the_race = trials["state"].isin(["stopped", "diverged", "failed"]).any()
        if not top1 or out_of_the_race or any(math.isnan(value) for value in top1):
            continue
        mean = sum(top1) / len(top1)
        low, high = wilson_interval(mean, images)
        results.append(SettingResult(point, mean, low, high, tuple(top1), images))
    return results


def best_setting(record: StudyRecord) -> BestSetting | None:
    """The best of all comparable settings (see :func:`setting_results`); None if there is none."""
    return _best(record, setting_results(record))


def best_per_stratum(record: StudyRecord) -> list[BestSetting]:
    """The best setting for each combination of the strata, in the order of the study's space.

    Strata without a comparable setting are left out; a study with one swept field has one stratum.
    """
    strata: dict[tuple[Any, ...], list[SettingResult]] = {}
    for result in setting_results(record):
        strata.setdefault(tuple(result.point[field] for field in record.fields[1:]), []).append(result)
    order = [tuple(point[field] for field in record.fields[1:]) for point, _ in _settings(record)]
    answers = (_best(record, strata[stratum]) for stratum in dict.fromkeys(order) if stratum in strata)
    return [answer for answer in answers if answer is not None]


def time_to_accuracy(record: StudyRecord, threshold: float) -> pd.DataFrame:
    """When each trial first reached a top-1 of ``threshold`` (a fraction).

    Returns:
        A row per trial, in the order of ``record.trials``: ``trial``, the swept fields, ``seed``, ``epoch``
        and ``train_seconds`` (NaN where it was never reached, nor measured).
    """
    columns = ["trial", *record.fields, "seed"]
    table = record.trials[columns].copy()
    reached = record.epochs[record.epochs[METRIC].astype(float) >= threshold].drop_duplicates("trial")
    first = reached.set_index("trial")
    for name in ("epoch", "train_seconds"):
        table[name] = table["trial"].map(first.get(name, {})).astype(float)
    return table


def _settings(record: StudyRecord) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Each point of the space with its trials, in the order of the trials' plan."""
    points = [tuple(row[field] for field in record.fields) for row in record.trials.to_dict("records")]
    settings = []
    for point in dict.fromkeys(points):
        rows = [candidate == point for candidate in points]
        settings.append((dict(zip(record.fields, point, strict=True)), record.trials[rows]))
    return settings


def _best(record: StudyRecord, results: list[SettingResult]) -> BestSetting | None:
    if not results:
        return None
    best, *others = sorted(results, key=lambda result: -result.top1)
    within_noise = tuple(
        other
        for other in others
        if difference_interval(best.top1, other.top1, best.validation_images)[0] <= 0
    )
    return BestSetting(
        best=best,
        runner_up=others[0] if others else None,
        within_noise=within_noise,
        candidates=len(results),
        question=record.fields[0] if record.fields else None,
        names=record.names,
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"
