"""Answers a study's question: names the best setting of each stratum, and says whether the data can tell it apart.

A *setting* is a point of the space; trials that differ only in their seed are its repetitions. The first swept field is
the one in question. The other fields with a list of values are conditions, and each combination of their values is a
stratum, because e.g. the best clip factor depends on the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nfnet_ray.analysis.comparability import not_one_accuracy
from nfnet_ray.analysis.confirmation import Confirmation, confirmation_of
from nfnet_ray.analysis.effects.given_up import NONE_GIVEN_UP, GivenUp, given_up
from nfnet_ray.analysis.inference.assumed_noise import assumed_spread
from nfnet_ray.analysis.inference.holdout import held_out
from nfnet_ray.analysis.inference.paired import Moments
from nfnet_ray.analysis.inference.selection import Optimism, Rung, kept_of_one_seed, noise_of, optimism
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.setting import (
    SettingResult,
    setting_result,
    setting_results,
    trials_by_setting,
)
from nfnet_ray.analysis.tables import STUDY, once_of_a_record
from nfnet_ray.analysis.verdict import (
    EQUAL_WITHIN,
    SEEDS_NOT_MEASURED,
    SEEDS_TO_COME,
    Contrast,
    Kind,
    contrast,
    with_seed_spread,
)
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.labels import ABSENT, point_label, without_absent
from nfnet_ray.tracking.swept import winner_fields
from nfnet_ray.wording import agree, as_points, count, decimal, in_points, percent, percents

if TYPE_CHECKING:
    import pandas as pd

# A smaller optimism, as a fraction, is not mentioned, because accuracies are shown to 0.1 points.
_WORTH_SAYING = 0.0005
_LEAST_CONTENDERS = 2


@dataclass(frozen=True)
class BestSetting:
    """The setting with the highest accuracy, and how it compares with the other settings.

    Attributes:
        best: the winner. Of several equal settings, the one that comes first in the study's space. With
            ``is_held_out``, its accuracy and interval refer to images on which it was not chosen.
        runner_up: the second best setting; None if there is no other setting.
        contrasts: comparisons of the best setting with each of the others, best first. They use its reruns with fresh
            seeds if some have finished, else the sweep.
        optimism: the amount by which choosing the best of several settings inflates its accuracy; None if the
            correctness of each image is not known, if there is nothing to choose from, and with ``is_held_out``.
        is_held_out: whether the best setting was chosen on one part of the validation images and is quoted on the
            other.
        confirmation: the reruns of the best setting with fresh seeds; None if it is not to be rerun.
        dropped: settings that were dropped after their first seed, best first. They are not in ``contrasts``.
        seeds_to_come: whether contenders will be trained with further seeds, perhaps later.
        seed_spread: the standard deviation between seeds, a fraction, that is used to drop settings and to compare
            settings with a single seed.
        assumed_spread: the origin of ``seed_spread`` in words: assumed, or measured in earlier studies.
        seeds_measured: whether every comparison covers seeds; otherwise the noise between seeds is unknown.
        candidates: the number of settings from which the best one was chosen. It includes settings that were given up
            at a rung or dropped after their first seed if ``optimism`` takes these into account.
        equal_within: the difference in accuracy, a fraction, below which settings are equal in practice.
        question: dotted name of the first swept field; None if no field was swept.
        conditions: dotted names of the fields that divide the settings into strata.
        names: {dotted name: short name to show}.
    """

    best: SettingResult
    runner_up: SettingResult | None
    contrasts: tuple[Contrast, ...]
    optimism: Optimism | None
    is_held_out: bool
    seeds_measured: bool
    candidates: int
    equal_within: float
    question: str | None
    conditions: tuple[str, ...]
    names: dict[str, str]
    confirmation: Confirmation | None
    dropped: tuple[SettingResult, ...]
    seeds_to_come: bool
    seed_spread: float
    assumed_spread: str

    @property
    def quoted(self) -> SettingResult:
        """The result to quote: that of the reruns with fresh seeds if there are any, else that of the sweep."""
        confirmed = self.confirmation.result if self.confirmation else None
        return confirmed or self.best

    @property
    def within_noise(self) -> tuple[SettingResult, ...]:
        """The other settings, best first, whose difference from the best has 0 in its 95% interval (images and
        seeds)."""
        return tuple(found.other for found in self.contrasts if self.over_seeds(found)[0] <= 0)

    def over_seeds(self, found: Contrast) -> tuple[float, float]:
        """Returns the 95% interval of a comparison over images and seeds.

        Single seeds show no spread, so :attr:`seed_spread` is used for them.
        """
        if found.covers_seeds:
            return found.low, found.high
        best = self.best if found.rests_on == "sweep" else self.quoted
        seeds = len(best.seed_top1), len(found.against.seed_top1)
        return with_seed_spread(found, self.seed_spread, seeds)

    @property
    def verdict(self) -> Kind | None:
        """``better`` than all others, ``equal`` in practice to those it is not better than, or ``cannot tell``.

        None if there is no other setting.
        """
        kinds = {found.kind for found in self.contrasts}
        if not kinds:
            return None
        return next(kind for kind in ("cannot tell", "equal", "better") if kind in kinds)

    @property
    def corrected_top1(self) -> float:
        """The accuracy, a fraction, after subtraction of the optimism from choosing the best of several."""
        return self.best.top1 - (self.optimism.mean if self.optimism else 0.0)

    def sentence(self) -> str:
        """Returns the answer with its interval, what it covers, and the comparison; without the last full stop."""
        best, seeds = self.quoted, len(self.quoted.seed_top1)
        where, is_confirmed = self._where(best.point), best is not self.best
        covers = "images" if seeds == 1 else "seeds and images"
        images = count(best.validation_images, "validation image")
        if self.is_held_out:
            images += " that it was not chosen on"
        result = (
            f"{f'Best setting: {where}' if where else 'Result'}: top-1 {percent(best.top1)} "
            f"{'in reruns with fresh seeds ' if is_confirmed else ''}"
            f"(95% interval over {covers} {percents(best.low, best.high)}; "
            f"{images}, {count(seeds, 'seed')})"
        )
        luck = "" if is_confirmed else self._luck()
        sentences = [result, luck, self._confirmed(), *self._comparison(), self._dropped()]
        return ". ".join(filter(None, sentences))

    def caution(self) -> str:
        """Returns sentences for a note: what the intervals cover, and how optimistic the best of several is."""
        words = ["Accuracy is that after the last epoch."]
        if len(self.quoted.seed_top1) > 1:
            words.append(
                "The interval covers sampling variance (the draw of the validation images) and seed variance; study "
                "variance (other points of the space) is not in it."
            )
        else:
            words.append(
                "The interval covers sampling variance alone, the draw of the validation images. How far another seed "
                "would move the accuracy was not measured."
            )
        if self.runner_up is not None:
            words += self._caution_of_comparison()
        return " ".join(words)

    def _caution_of_comparison(self) -> list[str]:
        covers = "seeds and images" if self.seeds_measured else f"images, with {self.assumed_spread}"
        how = "image by image" if self.contrasts[0].is_paired else "as if each had images of its own"
        words = [
            f"Settings are compared {how}, over {covers}. A setting is better if the 95% interval of the difference "
            f"lies above 0, and equal in practice if it lies within {as_points(f'{100 * self.equal_within:.2g}')} of 0."
        ]
        if self.is_held_out:
            words.append(
                "The best was chosen on one part of the validation images and is quoted on the other."
            )
        elif self.quoted is not self.best:
            words.append(
                f"The best of {self.candidates} was chosen in the sweep and rerun with seeds that the sweep did not "
                "use, so its accuracy is free of the luck of its seeds; the images are those that it was chosen on."
            )
        elif self.optimism is not None:
            words.append(
                f"The best of {self.candidates} was chosen on the images and seeds that it is quoted on; the luck in "
                "that was estimated by drawing the study again, and the lower bound of the interval allows for it."
            )
            if not self.seeds_measured:
                words.append(
                    "Of single seeds that is the luck in the images; the luck of its seed is not in it."
                )
        else:
            words.append(
                f"The best is the highest of {self.candidates} settings, so its accuracy is somewhat optimistic."
            )
        words += self._caution_of_reruns()
        if self.dropped:
            words.append(
                "The others were dropped after 1 seed: they were below the best by more than the images and a spread "
                f"between seeds of {in_points(self.seed_spread)} explain in 95% of cases."
            )
        return words

    def _caution_of_reruns(self) -> list[str]:
        """Says on which trials a comparison by reruns is based."""
        in_sweep = [found for found in self.contrasts if found.rests_on == "reruns of the best"]
        if not in_sweep:
            return []
        words = ["It is compared by its reruns, and the others by their seeds of the sweep."]
        if any(len(found.against.seed_top1) == 1 for found in in_sweep) and self.seeds_measured:
            words.append("Those that have a single seed are taken to spread as the reruns do.")
        if len(in_sweep) > 1:
            words.append("The next best is itself the luckiest of several, so it may seem too good.")
        return words

    def _luck(self) -> str:
        if self.optimism is None or self.optimism.mean < _WORTH_SAYING:
            return ""
        return (
            f"About {in_points(self.optimism.mean)} of it are the luck of the best of {self.candidates}, "
            f"so expect {percent(self.corrected_top1)}"
        )

    def _dropped(self) -> str:
        if not self.dropped:
            return ""
        others = agree(len(self.dropped), "1 other was", f"{len(self.dropped):,} others were")
        best = "" if len(self.dropped) == 1 else ", the best of them"
        return f"{others} dropped after 1 seed{best}: {self._named(self.dropped[0])}"

    def _confirmed(self) -> str:
        said = self.confirmation.sentence() if self.confirmation else ""
        return f"{said[0].upper()}{said[1:]}" if said else ""

    def _comparison(self) -> list[str]:
        """Returns sentences that compare the best setting with the others."""
        if not self.contrasts:
            return []
        first = self.contrasts[0]
        if not self.seeds_measured:
            known = SEEDS_TO_COME if self.seeds_to_come else SEEDS_NOT_MEASURED
            near = [found for found in self.contrasts if self.over_seeds(found)[0] <= 0]
            if not near:
                behind = f"behind by more than the images and {self.assumed_spread} explain"
                return [f"Next is {self._compared(first)}, {behind}", known]
            more = f" and {len(near) - 1} more" if len(near) > 1 else ""
            return [
                f"It cannot be told apart from {self._compared(near[0])}{more}, with {self.assumed_spread}",
                known,
            ]
        if self.verdict == "better":
            return [f"It is better than {self._compared(first)}{_probability(first)}"]
        told = [found for found in self.contrasts if found.kind == self.verdict]
        more = f" and {len(told) - 1} more" if len(told) > 1 else ""
        if self.verdict == "equal":
            within = as_points(f"{100 * self.equal_within:.2g}")
            return [f"It is equal in practice (within {within}) to {self._compared(told[0])}{more}"]
        if told[0].low > 0:  # reruns that diverged or failed might have been less accurate
            return [f"It is not called better than {self._compared(told[0])}{more}, as reruns were lost"]
        how = "is not better than" if told[0].high < 0 else "cannot be told apart from"
        return [f"It {how} {self._compared(told[0])}{more}{_probability(told[0])}", told[0].needed]

    def _compared(self, found: Contrast) -> str:
        """Names the other setting with the accuracy that was used in the comparison."""
        of = {"sweep": "", "reruns": " in its reruns", "reruns of the best": " in the sweep"}[found.rests_on]
        return f"{self._other(found.other)} ({percent(found.against.top1)}{of})"

    def _named(self, other: SettingResult) -> str:
        return f"{self._other(other)} ({percent(other.top1)})"

    def _where(self, point: Mapping[str, Any]) -> str:
        strata = {
            field: value for field, value in point.items() if field in self.conditions and value is not ABSENT
        }
        asked = {field: value for field, value in point.items() if field not in self.conditions}
        return " at ".join(filter(None, (point_label(part, self.names) for part in (asked, strata))))

    def _other(self, result: SettingResult) -> str:
        """Names another setting, without the conditions that it shares with the best one."""
        if any(result.point[field] != self.best.point[field] for field in self.conditions):
            return self._where(result.point)
        asked = {field: value for field, value in result.point.items() if field not in self.conditions}
        return point_label(asked, self.names)


@once_of_a_record
def best_setting(record: StudyRecord) -> BestSetting | None:
    """Returns the best of all comparable settings (see :func:`setting_results`); None if there is none.

    Raises UserError for several studies whose accuracies are not comparable; each of them has its own best setting.
    """
    if record.parts and (why := not_one_accuracy(record)):
        raise UserError(
            f"{record.study['name']} have no common best setting, as {why}; use best_per_stratum for each"
        )
    return _best(record, setting_results(record))


def winners(record: StudyRecord) -> list[dict[str, Any]]:
    """Returns the points of the settings to confirm: the winners, by the rule of the answer.

    There is one point for each combination of the conditions that has a comparable setting, and a single one if the
    search learns from results. Of several equal settings, the one that comes first in the study's space is the winner.
    """
    found = []
    for results in _by_winner(record).values():
        racing, _ = _in_the_race(record, results)
        found.append(without_absent(racing[_ranking(record, racing).order[0]].point))
    return found


def contenders(record: StudyRecord) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Returns the points of the contenders by the first seed of each setting, and {trial: reason} of the others.

    A setting is dropped if the paired 95% interval of its difference from the best lies below 0. The interval covers
    the images and a spread between seeds, which is the study's own or an assumed one, as a single seed shows none.
    Under each combination of conditions, the two best settings are always contenders, so that the verdict can compare
    seeds of both. Settings that were given up, diverged or failed are neither contenders nor dropped.
    """
    first = replace(record, trials=record.trials[~record.trials["trial"].isin(record.further)])
    names = {_key(point): str(trials[0]["trial"]) for point, trials in trials_by_setting(first)}
    spread = spread_of_single_seeds(record)
    points: list[dict[str, Any]] = []
    dropped: dict[str, str] = {}
    for results in _by_winner(first).values():
        split = _on_both_parts(first, results)
        chosen_on = split[0] if split else results
        best, *others = sorted(chosen_on, key=lambda result: -result.top1)
        points.append(without_absent(best.point))
        for number, other in enumerate(others):
            found = contrast(best, other)
            low, high = with_seed_spread(found, spread)
            if low <= 0 or number + 2 <= _LEAST_CONTENDERS:
                points.append(without_absent(other.point))
                continue
            dropped[names[_key(other.point)]] = (
                f"dropped after 1 seed: {decimal(100 * found.difference)} points below the best (95% interval "
                f"{decimal(100 * low)} to {decimal(100 * high)}, with {spread_words(record)})"
            )
    return points, dropped


def spread_of_single_seeds(record: StudyRecord) -> float:
    """Returns the standard deviation between seeds, a fraction, for single seeds: of earlier studies, or assumed.

    For several studies together, the largest of their values is returned.
    """
    if record.parts:
        return max(map(spread_of_single_seeds, record.parts.values()))
    share = record.study["recipe"].get("data.train_share", 1.0)
    if "data.train_share" in record.fields:
        share = min(record.trials["data.train_share"], default=share)
    return record.study.get(
        "seed_spread", assumed_spread(round(share * record.study["data"]["train_images"]))
    )


def spread_words(record: StudyRecord) -> str:
    """Describes the spread, such as ``an assumed spread between seeds of 0.3 points``, or that of earlier studies."""
    which = "the earlier" if "seed_spread" in record.study else "an assumed"
    return f"{which} spread between seeds of {in_points(spread_of_single_seeds(record))}"


def _by_winner(record: StudyRecord) -> dict[tuple[Any, ...], list[SettingResult]]:
    """Returns the comparable settings for each combination of conditions that has a winner."""
    fields = winner_fields(record.study)
    strata: dict[tuple[Any, ...], list[SettingResult]] = {}
    for result in setting_results(record):
        strata.setdefault(tuple(result.point[field] for field in fields), []).append(result)
    return strata


def _in_the_race(
    record: StudyRecord, results: Sequence[SettingResult]
) -> tuple[list[SettingResult], list[SettingResult]]:
    """Returns the settings that can be the best, and those that were dropped after their first seed, best first."""
    dropped = {
        _key(point)
        for point, trials in trials_by_setting(record)
        if any(trial["trial"] in record.dropped for trial in trials)
    }
    # A setting that received more seeds before an extension can be compared like the others.
    others = [result for result in results if _key(result.point) in dropped and len(result.seed_top1) == 1]
    racing = [result for result in results if result not in others]
    if not racing:  # all settings of this stratum of the answer were dropped
        return list(results), []
    return racing, sorted(others, key=lambda result: -result.top1)


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(point.values())


@once_of_a_record
def best_per_stratum(record: StudyRecord) -> Sequence[BestSetting]:
    """Returns the best setting for each combination of the conditions, in the order of the study's space.

    Strata without a comparable setting are left out, and a study without conditions has one stratum. In a record of
    several studies, each study has its own strata.
    """
    if record.parts:
        return [
            _of_study(answer, name)
            for name, part in record.parts.items()
            for answer in best_per_stratum(part)
        ]
    strata: dict[tuple[Any, ...], list[SettingResult]] = {}
    for result in setting_results(record):
        strata.setdefault(tuple(result.point[field] for field in record.conditions), []).append(result)
    order = [tuple(point[field] for field in record.conditions) for point, _ in trials_by_setting(record)]
    answers = (_best(record, strata[stratum]) for stratum in dict.fromkeys(order) if stratum in strata)
    return [answer for answer in answers if answer is not None]


def _of_study(answer: BestSetting, study: str) -> BestSetting:
    """Returns the answer of one of several studies, with the study's name added to the point of each setting."""

    def named(result: SettingResult) -> SettingResult:
        return replace(result, point={**result.point, STUDY: study})

    confirmation = answer.confirmation
    if confirmation is not None and confirmation.result is not None:
        confirmation = replace(confirmation, result=named(confirmation.result))
    return replace(
        answer,
        best=named(answer.best),
        runner_up=named(answer.runner_up) if answer.runner_up else None,
        contrasts=tuple(
            replace(found, other=named(found.other), against=named(found.against))
            for found in answer.contrasts
        ),
        dropped=tuple(map(named, answer.dropped)),
        confirmation=confirmation,
        conditions=(*answer.conditions, STUDY),
        names={**answer.names, STUDY: STUDY},
    )


def time_to_accuracy(record: StudyRecord, threshold: float) -> pd.DataFrame:
    """Returns when each trial first reached a top-1 of ``threshold`` (a fraction).

    Such a moment lies within a schedule, where the learning rate is still high. A complete schedule of that length
    would have been more accurate, or equally accurate sooner. :func:`nfnet_ray.analysis.time_to_target` compares
    complete schedules.

    Returns:
        A row per trial, in the order of ``record.trials``: ``trial``, the swept fields, ``seed``, ``epoch``
        and ``train_seconds`` (NaN if the accuracy was never reached, or the time not measured).
    """
    columns = ["trial", *record.fields, "seed"]
    table = record.trials[columns].copy()
    reached = record.epochs[record.epochs[METRIC].astype(float) >= threshold].drop_duplicates("trial")
    first = reached.set_index("trial")
    for name in ("epoch", "train_seconds"):
        table[name] = table["trial"].map(first.get(name, {})).astype(float)
    return table


def _best(record: StudyRecord, results: Sequence[SettingResult]) -> BestSetting | None:
    if not results:
        return None
    results, dropped = _in_the_race(record, results)
    order, quoted_on, is_held_out = _ranking(record, results)
    best, *others = [quoted_on[number] for number in order]
    equal_within = record.study.get("equal_within", EQUAL_WITHIN)
    holdout = record.study.get("holdout") if is_held_out else None
    confirmation = confirmation_of(record, best, holdout)
    contrasts = _contrasts(record, best, others, confirmation, holdout)
    rivals = NONE_GIVEN_UP if is_held_out else given_up(record, results)
    left = [] if is_held_out else _rivals_of_contenders(results, dropped)
    luck = None if is_held_out else _optimism([results[number] for number in order], rivals, left)
    if luck is not None:
        best = replace(best, low=luck.low)
    return BestSetting(
        best=best,
        runner_up=others[0] if others else None,
        contrasts=contrasts,
        optimism=luck,
        is_held_out=is_held_out,
        seeds_measured=all(found.covers_seeds for found in contrasts)
        and (bool(contrasts) or len(best.seed_top1) > 1),
        candidates=len(results) + (len(rivals.settings) + len(left) if luck is not None else 0),
        equal_within=equal_within,
        question=record.fields[0] if record.fields else None,
        conditions=record.conditions,
        names=record.names,
        confirmation=confirmation,
        dropped=tuple(dropped),
        seeds_to_come=bool(record.study.get("more_seeds")),
        seed_spread=spread_of_single_seeds(record),
        assumed_spread=spread_words(record),
    )


def _contrasts(
    record: StudyRecord,
    best: SettingResult,
    others: Sequence[SettingResult],
    confirmation: Confirmation | None,
    holdout: float | None,
) -> tuple[Contrast, ...]:
    """Compares the best setting with each of the others.

    The accuracy of the best setting in the sweep is inflated, because it was chosen as the best of several. Once the
    setting has been rerun, its reruns are compared instead. The same holds for other settings with reruns, such as the
    winner under another condition.
    """
    equal_within = record.study.get("equal_within", EQUAL_WITHIN)
    if confirmation is None or confirmation.result is None or record.reruns is None:
        return tuple(contrast(best, other, equal_within) for other in others)
    rerun = {tuple(row[field] for field in record.fields) for row in record.reruns.to_dict("records")}
    found = []
    for other in others:
        of_other = confirmation_of(record, other, holdout) if _key(other.point) in rerun else None
        reruns = of_other.result if of_other else None
        one = contrast(confirmation.result, reruns or other, equal_within, one_spread=True)
        one = replace(one, other=other, rests_on="reruns" if reruns else "reruns of the best")
        if confirmation.lost and one.kind == "better":  # lost reruns might have been less accurate
            one = replace(one, kind="cannot tell")
        found.append(one)
    return tuple(found)


class _Ranking(NamedTuple):
    """The indices of settings, the best first; the results to quote; whether these refer to other images."""

    order: list[int]
    quoted_on: Sequence[SettingResult]
    is_held_out: bool


def _ranking(record: StudyRecord, results: Sequence[SettingResult]) -> _Ranking:
    split = _on_both_parts(record, results)
    chosen_on, quoted_on = split or (results, results)
    order = sorted(range(len(results)), key=lambda number: -chosen_on[number].top1)
    return _Ranking(order, quoted_on, split is not None)


def _on_both_parts(
    record: StudyRecord, results: Sequence[SettingResult]
) -> tuple[list[SettingResult], list[SettingResult]] | None:
    """Returns the results on the images for choosing and on those for quoting; None without ``--holdout`` or bits."""
    share = record.study.get("holdout")
    if not share or any(result.images is None for result in results):
        return None
    parts: tuple[list[SettingResult], list[SettingResult]] = ([], [])
    for result in results:
        assert result.images is not None
        quoted = held_out(len(result.images.measured), share)
        for part, chosen in zip(parts, (~quoted, quoted), strict=True):
            images = result.images.only(chosen)
            number = int(np.count_nonzero(images.measured))
            if not number:
                return None
            top1 = images.correct[:, images.measured].mean(axis=1).tolist()
            part.append(setting_result(result.point, top1, number, images))
    return parts


def _rivals_of_contenders(
    contenders: Sequence[SettingResult], dropped: Sequence[SettingResult]
) -> list[SettingResult]:
    """Estimates the results that dropped settings would have had with all seeds of the contenders.

    Contenders were partly chosen for a lucky first seed, so their means over all seeds tend to be lower. The results of
    the dropped settings are shifted by the same mean difference. The list is empty if a contender has a single seed, or
    if the correctness of each image is not known.
    """
    if not dropped or any(len(one.seed_top1) == 1 or one.images is None for one in contenders):
        return []
    gain = fmean(one.top1 - one.seed_top1[0] for one in contenders)
    known = [one for one in dropped if one.images is not None]
    return [replace(one, top1=min(max(one.top1 + gain, 0.0), 1.0)) for one in known]


def _optimism(
    finished: Sequence[SettingResult], rivals: GivenUp, dropped: Sequence[SettingResult]
) -> Optimism | None:
    """Estimates the optimism of the first finished setting, which is the best; ``dropped`` are no longer contenders."""
    results = [*finished, *rivals.settings, *dropped]
    images = [result.images for result in results if result.images is not None]
    if len(results) < 2 or len(images) < len(results) or len({len(one.measured) for one in images}) > 1:
        return None
    measured = np.logical_and.reduce([one.measured for one in images])
    if measured.sum() < 2:
        return None
    moments = Moments.of(np.concatenate([one.correct[:, measured] for one in images]))
    noise = noise_of(
        moments, [len(result.seed_top1) for result in results], singles_like_others=bool(dropped)
    )
    best = results[0]
    top1 = np.minimum([result.top1 for result in results], best.top1)
    rungs = rivals.rungs(len(finished) + len(dropped))
    if dropped:  # choosing the contenders is treated like a rung
        seeds = fmean(len(result.seed_top1) for result in finished)
        rungs.append(Rung(len(finished), kept_of_one_seed(noise, seeds)))
    return optimism(top1, noise, best.low, len(best.seed_top1), rungs=rungs)


def _probability(found: Contrast) -> str:
    """Formats a probability as `` (probability of being better: 97%)``.

    The probability is left out if the reruns of the best setting cannot be told apart from another setting's results in
    the sweep. That setting is the luckiest of the others, so the probability would be too low.
    """
    if found.rests_on == "reruns of the best" and found.kind != "better":
        return ""
    share = found.probability
    shown = "over 99.9%" if share > 0.999 else percent(share) if share > 0.99 else f"{100 * share:.0f}%"
    return f" (probability of being better: {shown})"
