"""The answer to a study's question: the best setting, per stratum, and whether the data can tell.

A *setting* is a point of the space; trials that differ in their seed only are its repetitions. The first
swept field is the question. The other fields that have a list of values are conditions, and each combination of their
values is a stratum: which clip factor is best depends on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nfnet_ray.analysis.intervals import accuracy_interval, difference_interval
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.labels import ABSENT, point_label
from nfnet_ray.wording import count, percent

if TYPE_CHECKING:
    import pandas as pd

SEEDS_NOT_MEASURED = "the noise between seeds was not measured: run with --seeds 3"


@dataclass(frozen=True)
class SettingResult:
    """The outcome of one setting.

    Attributes:
        point: {dotted name: value} of the swept fields.
        top1: mean over seeds of the accuracy after the last epoch, a fraction.
        low, high: 95% interval of ``top1``, for the draw of validation images and, from two seeds on, of seeds
            (:func:`nfnet_ray.analysis.intervals.accuracy_interval`).
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
    """The setting with the highest accuracy, and whether it can be told from the others.

    Attributes:
        best: the winner. Of equals, the one that comes first in the study's space.
        runner_up: the second best, None if there is no other.
        within_noise: the others whose difference from the best has 0 in its 95% interval, best first. Where either
            of the two has a single seed the interval is that of the images alone: another seed may change the order.
        seeds_measured: whether each of them has two seeds or more; else nothing is known of the noise between seeds.
        candidates: how many settings it was chosen from.
        question: dotted name of the first swept field; None if nothing was swept.
        conditions: dotted names of the fields that divide the settings into strata.
        names: {dotted name: short name to show}.
    """

    best: SettingResult
    runner_up: SettingResult | None
    within_noise: tuple[SettingResult, ...]
    seeds_measured: bool
    candidates: int
    question: str | None
    conditions: tuple[str, ...]
    names: dict[str, str]

    def sentence(self) -> str:
        """The answer in one sentence, with the interval and what it covers, the number of images and of seeds."""
        best, seeds = self.best, len(self.best.seed_top1)
        where = self._where(best.point)
        covers = "images" if seeds == 1 else "seeds and images"
        return (
            f"{f'Best setting: {where}' if where else 'Result'}: top-1 {percent(best.top1)} "
            f"(95% interval over {covers} {100 * best.low:.1f} to {percent(best.high)}; "
            f"{count(best.validation_images, 'validation image')}, {count(seeds, 'seed')})"
            f"{self._comparison()}"
        )

    def caution(self) -> str:
        """What the intervals cover, and how optimistic the best of several is; sentences for a note."""
        words = ["Accuracy is that after the last epoch."]
        if len(self.best.seed_top1) > 1:
            words.append(
                "The interval covers the draw of the seeds (Student's t) and of the validation images (Wilson)."
            )
        else:
            words.append(
                "The interval covers the draw of the validation images alone (Wilson). How far another seed would "
                "move the accuracy was not measured."
            )
        if self.runner_up is not None:
            covers = "seeds (Welch) and images" if self.seeds_measured else "images alone"
            words.append(
                f"“Within noise”: the 95% interval of the difference (Newcombe), over {covers}, includes 0. The best "
                f"is the highest of {self.candidates} settings, so its accuracy is somewhat optimistic."
            )
        return " ".join(words)

    def _comparison(self) -> str:
        if self.runner_up is None:
            return ""
        if self.within_noise:
            first, more = self.within_noise[0], len(self.within_noise) - 1
            words = f"; within noise of {self._named(first)}" + (f" and {more} more" if more else "")
            return words if self.seeds_measured else f"{words}; {SEEDS_NOT_MEASURED}"
        if self.seeds_measured:
            return f"; ahead of {self._named(self.runner_up)} by more than the noise of seeds and images"
        return f"; next is {self._named(self.runner_up)}; {SEEDS_NOT_MEASURED}"

    def _named(self, other: SettingResult) -> str:
        return f"{self._other(other)} ({percent(other.top1)})"

    def _where(self, point: Mapping[str, Any]) -> str:
        strata = {
            field: value for field, value in point.items() if field in self.conditions and value is not ABSENT
        }
        asked = {field: value for field, value in point.items() if field not in self.conditions}
        return " at ".join(filter(None, (point_label(part, self.names) for part in (asked, strata))))

    def _other(self, result: SettingResult) -> str:
        """Another setting, without the strata that it shares with the best."""
        if any(result.point[field] != self.best.point[field] for field in self.conditions):
            return self._where(result.point)
        asked = {field: value for field, value in result.point.items() if field not in self.conditions}
        return point_label(asked, self.names)


def setting_results(record: StudyRecord) -> list[SettingResult]:
    """The settings that can be compared, in the order of the study's space.

    A setting counts when at least one of its trials has finished and none was stopped early, diverged or
    failed: a setting that fails for one seed in three is not as good as its two survivors, and accuracy
    after an early stop is not accuracy after all epochs. Trials that have yet to run are only missing.
    """
    images = record.study["data"]["validation_images"]
    results = []
    for point, trials in _settings(record):
        top1 = [float(trial["last_top1"]) for trial in trials if trial["state"] == "finished"]
        out_of_the_race = any(trial["state"] in ("stopped", "diverged", "failed") for trial in trials)
        if not top1 or out_of_the_race or any(math.isnan(value) for value in top1):
            continue
        mean = sum(top1) / len(top1)
        low, high = accuracy_interval(top1, images)
        results.append(SettingResult(point, mean, low, high, tuple(top1), images))
    return results


def best_setting(record: StudyRecord) -> BestSetting | None:
    """The best of all comparable settings (see :func:`setting_results`); None if there is none."""
    return _best(record, setting_results(record))


def best_per_stratum(record: StudyRecord) -> list[BestSetting]:
    """The best setting for each combination of the strata, in the order of the study's space.

    Strata without a comparable setting are left out; a study without conditions has one stratum.
    """
    strata: dict[tuple[Any, ...], list[SettingResult]] = {}
    for result in setting_results(record):
        strata.setdefault(tuple(result.point[field] for field in record.conditions), []).append(result)
    order = [tuple(point[field] for field in record.conditions) for point, _ in _settings(record)]
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


def _settings(record: StudyRecord) -> list[tuple[dict[str, Any], list[dict[Hashable, Any]]]]:
    """Each point of the space with its trials, in the order of the trials' plan."""
    settings: dict[tuple[Any, ...], list[dict[Hashable, Any]]] = {}
    for trial in record.trials.to_dict("records"):
        settings.setdefault(tuple(trial[field] for field in record.fields), []).append(trial)
    return [(dict(zip(record.fields, point, strict=True)), trials) for point, trials in settings.items()]


def _best(record: StudyRecord, results: list[SettingResult]) -> BestSetting | None:
    if not results:
        return None
    best, *others = sorted(results, key=lambda result: -result.top1)
    within_noise = tuple(
        other
        for other in others
        if difference_interval(best.seed_top1, other.seed_top1, best.validation_images)[0] <= 0
    )
    return BestSetting(
        best=best,
        runner_up=others[0] if others else None,
        within_noise=within_noise,
        seeds_measured=all(len(result.seed_top1) > 1 for result in results),
        candidates=len(results),
        question=record.fields[0] if record.fields else None,
        conditions=record.conditions,
        names=record.names,
    )
