"""Suggests the clip factor to try next, from the accuracies of earlier factors and the gradients they clipped."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from nfnet_ray.analysis.clipping import (
    CLIP_FACTOR,
    clipping_of,
    interpolated,
    shares_that_factors_would_clip,
)
from nfnet_ray.analysis.inference.intervals import difference_interval
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.setting import SettingResult, setting_results
from nfnet_ray.analysis.verdict import contrast
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.tracking.trial_progress import ENDED
from nfnet_ray.wording import percent

NOTHING, EVERYTHING = 0.0001, 0.95
"""Shares of clipped units. Below the first one AGC has hardly any effect: gains and biases are some 0.2% of the units
of NFNet-F0, and a tenth of them may matter. Above the second one AGC determines the size of nearly every gradient, so
the clip factor acts like a learning rate."""
LEAST_RATIO, LARGEST_RATIO = 1.5, 4.0
"""Bounds of the ratio of a suggested factor to its neighbour. The ratio in the paper's grid is 2 (section 4.1)."""
_MOST_NAMED = 12
"""The most clip factors that are listed one by one; a random search has hundreds."""


@dataclass(frozen=True)
class ClipFactorSuggestion:
    """A suggestion of the clip factor to try next under one condition.

    Attributes:
        factor: the suggested factor; None if no further factor is worth a trial.
        reasoning: the reasons in one or two sentences.
        stratum: {field: value} of the condition; empty if there is only one condition.
    """

    factor: float | None
    reasoning: str
    stratum: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TriedFactor:
    """A clip factor that was tried, with the data on which :func:`suggest_factor` bases its suggestion.

    Attributes:
        factor: the clip factor; infinity for no clipping.
        top1: accuracy of each seed after the last epoch, fractions; empty if it was stopped early, diverged or failed.
        count: returns {factor: share of the units that the factor would have clipped during this training}, in
            ascending order; None if it was not counted. It is called only for the best factor and its neighbours,
            because reading the records of a study of 1,000 trials takes ten seconds.
        result: the images that its trials classified correctly, for a comparison image by image; None if it cannot be
            compared.
    """

    factor: float
    top1: tuple[float, ...] = ()
    count: Callable[[], Mapping[float, float] | None] = lambda: None
    result: SettingResult | None = field(default=None, compare=False, repr=False)

    @cached_property
    def shares(self) -> Mapping[float, float] | None:
        """The result of :attr:`count`."""
        return self.count()

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds; -1 if there are none, which is lower than all accuracies."""
        return sum(self.top1) / len(self.top1) if self.top1 else -1.0

    def clipped(self, factor: float | None = None) -> float | None:
        """Returns the share of units that ``factor``, by default its own, would have clipped (log interpolation)."""
        factor = self.factor if factor is None else factor
        if self.shares is None:
            return None
        points = [(math.log(at), share) for at, share in self.shares.items()]
        return interpolated(points, math.inf if math.isinf(factor) else math.log(factor))

    def factor_that_clips(self, share: float) -> float | None:
        """Returns the factor that would have clipped this share of the units; None outside the counted range."""
        if self.shares is None:
            return None
        points = sorted((at, math.log(factor)) for factor, at in self.shares.items() if 0 < at < 1)
        if not points or not points[0][0] <= share <= points[-1][0]:
            return None
        return math.exp(interpolated(points, share))


def suggest_clip_factors(record: StudyRecord) -> list[ClipFactorSuggestion]:
    """Returns a suggestion for each condition of a study that sweeps the clip factor and counted what it clips.

    Seeds of a setting are pooled. A factor that was stopped early, diverged or failed is worse than every factor that
    finished. Conditions with an unfinished trial are left out.
    """
    if CLIP_FACTOR not in record.fields:
        return []
    others = [field for field in record.fields if field != CLIP_FACTOR]
    strata: dict[tuple[Any, ...], list[Mapping[Hashable, Any]]] = {}
    for row in record.trials.to_dict("records"):
        strata.setdefault(tuple(row[field] for field in others), []).append(row)
    images = record.study["data"]["validation_images"]
    found = []
    for values, rows in strata.items():
        tried = _tried(record, rows)
        if tried:
            suggestion = suggest_factor(tried, images)
            found.append(replace(suggestion, stratum=dict(zip(others, values, strict=True))))
    return found


def extend_arguments(record: StudyRecord, suggestions: Sequence[ClipFactorSuggestion]) -> list[str]:
    """Returns the flags that add the suggested factors to those of the study.

    The list is empty if nothing is suggested, or if the study's factors are not a list of values that could be
    extended.
    """
    factors = {one.factor for one in suggestions if one.factor is not None}
    values = record.study["space"].get(CLIP_FACTOR)
    if not factors or not isinstance(values, list):
        return []
    # A value that is not listed would be left out of the extended study.
    numbers = sorted(factors | {float(value) for value in values if value is not None})
    listed = [value_label(number) for number in numbers] + ["none"] * (None in values)
    return ["--extend", record.study["name"], "--sweep", f"{CLIP_FACTOR}={','.join(listed)}"]


def extend_command(record: StudyRecord, suggestions: Sequence[ClipFactorSuggestion]) -> str:
    """Returns the command line that adds the suggested factors to the study; empty if nothing is suggested."""
    arguments = extend_arguments(record, suggestions)
    return command_with(record, arguments) if arguments else ""


def command_with(record: StudyRecord, arguments: Sequence[str]) -> str:
    """Returns the study's command with other arguments (FLAG, VALUE, …) and the same ``--storage``.

    For a study that was started from Python, the call is returned, without the storage, which its journal does not
    contain. For a study of an earlier version the result is empty.
    """
    source = record.study.get("source")
    if source is not None and source.get("file") == "":
        return _call(arguments)
    words = shlex.split(record.study["command"])
    place = next((number for number, word in enumerate(words) if word.endswith(".py")), None)
    if place is None:
        return ""
    program = words[: place + 1]
    for number, word in enumerate(words):  # the storage, in which --extend looks for the study
        if word == "--storage":
            program += words[number : number + 2]
        elif word.startswith("--storage="):
            program.append(word)
    return shlex.join([*program, *arguments])


def _call(arguments: Sequence[str]) -> str:
    """Returns the call of ``nfnet_ray.run`` that is equivalent to a program with these arguments."""
    keywords: dict[str, Any] = {}
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        keywords[name] = int(value) if value.isdecimal() else value
        if name == "sweep":
            swept, _, domain = value.partition("=")
            keywords[name] = {swept: domain}
    return f"nfnet_ray.run({', '.join(f'{name}={value!r}' for name, value in keywords.items())})"


def suggest_factor(tried: Sequence[TriedFactor], validation_images: int) -> ClipFactorSuggestion:
    """Suggests the clip factor to try next, given at least one factor that was tried under one condition.

    * If the best factor is the largest or the smallest one, the next one lies beyond it, where the share of clipped
      units (or of units that are not clipped) is half as large.
    * If the best factor clips nothing, larger factors lead to the same network.
    * If it clips nearly everything, a smaller factor acts like a smaller learning rate.
    * Between two factors the next one is their geometric mean, unless the neighbours cannot be told apart from the
      best.
    """
    by_factor = sorted(tried, key=lambda one: one.factor)
    if all(one.mean < 0 for one in by_factor):
        return _after_no_success(by_factor)
    best = max(by_factor, key=lambda one: (one.mean, -one.factor))
    place = by_factor.index(best)
    smaller = by_factor[place - 1] if place else None
    larger = by_factor[place + 1] if place + 1 < len(by_factor) else None
    if math.isinf(best.factor):
        return _after_none(best, smaller)
    factors, share = [one.factor for one in by_factor], best.clipped()
    said = f"The best of {_named(factors)} is {_factor(best.factor)}{_clips(best)}"
    if len(factors) == 1:
        said = f"Only {_factor(best.factor)} was tried{_clips(best)}"
    if share is not None and share < NOTHING:
        if smaller is None:
            return _one_that_clips(said, best, factors)
        why = f"from {_factor(best.factor)} on factors change hardly anything, and smaller ones are worse"
        return ClipFactorSuggestion(None, f"{said}: {why}.")
    if larger is None or math.isinf(larger.factor):
        return _beyond_the_largest(said, best, factors)
    if smaller is None:
        return _beyond_the_smallest(said, best, factors)
    return _between(said, smaller, best, larger, validation_images)


def _one_that_clips(said: str, best: TriedFactor, factors: Sequence[float]) -> ClipFactorSuggestion:
    down = _beyond(best, factors, -1)
    why = f"larger factors change hardly anything, and {_factor(down)} would clip {_at(best, down)}"
    return ClipFactorSuggestion(down, f"{said}: {why}.")


def _beyond_the_largest(said: str, best: TriedFactor, factors: Sequence[float]) -> ClipFactorSuggestion:
    up = _beyond(best, factors, 1)
    why = f"at {_factor(up)} it would be {_at(best, up)}, by its own gradients"
    if len(factors) > 1:
        why = f"no larger factor was tried, and {why}"
    return ClipFactorSuggestion(up, f"{said}; {why}.")


def _beyond_the_smallest(said: str, best: TriedFactor, factors: Sequence[float]) -> ClipFactorSuggestion:
    down, share = _beyond(best, factors, -1), best.clipped()
    why = f"at {_factor(down)} it would be {_at(best, down)}, by its own gradients"
    if share is not None and share > EVERYTHING:
        why = "as nearly all gradients are clipped already, it acts as a smaller learning rate would"
    return ClipFactorSuggestion(down, f"{said}; no smaller factor was tried, and {why}.")


def _between(
    said: str, smaller: TriedFactor, best: TriedFactor, larger: TriedFactor, validation_images: int
) -> ClipFactorSuggestion:
    better = smaller if smaller.mean > larger.mean else larger
    why = None
    if all(one.top1 and _is_within_noise(best, one, validation_images) for one in (smaller, larger)):
        why = f"{_factor(smaller.factor)} and {_factor(larger.factor)} on its two sides cannot be told apart from it"
    elif max(better.factor / best.factor, best.factor / better.factor) < LEAST_RATIO:
        why = f"its neighbours are within a ratio of {LEAST_RATIO:g}"
    if why:
        return ClipFactorSuggestion(None, f"{said}; {why}, so more seeds say more than more factors.")
    between = _round(math.sqrt(best.factor * better.factor))
    which = f"{_factor(better.factor)}, the better of its neighbours"
    return ClipFactorSuggestion(
        between, f"{said}; {_factor(between)}, towards {which}, would clip {_at(best, between)}."
    )


def _after_no_success(by_factor: Sequence[TriedFactor]) -> ClipFactorSuggestion:
    finite = [one for one in by_factor if not math.isinf(one.factor)]
    if not finite:
        measured = by_factor[0].factor_that_clips(0.5)
        if measured is None:
            return ClipFactorSuggestion(
                0.01, "Nothing finished without clipping; 0.01 is the paper's factor for 4096 images."
            )
        factor = _round(measured)
        would = f"{_factor(factor)} would have clipped half of the units"
        return ClipFactorSuggestion(factor, f"Nothing finished without clipping; {would}.")
    smallest = finite[0]
    down = _beyond(smallest, [one.factor for one in finite], -1)
    return ClipFactorSuggestion(
        down,
        f"No trial finished, down to {_factor(smallest.factor)}{_clips(smallest)}; {_factor(down)} would clip "
        f"{_at(smallest, down)}.",
    )


def _after_none(best: TriedFactor, smaller: TriedFactor | None) -> ClipFactorSuggestion:
    """Suggests a factor if the best training did not clip; ``smaller`` is the largest clip factor."""
    if smaller is None:
        target = best.factor_that_clips(0.05)
        if target is None:
            return ClipFactorSuggestion(
                None, "Only no clipping was tried, and its gradients were not counted."
            )
        factor = _round(target)
        would = f"a factor of {_factor(factor)} would have clipped 5% of the units"
        return ClipFactorSuggestion(factor, f"Only no clipping was tried; {would}.")
    said = f"No clipping is best; the largest factor, {_factor(smaller.factor)}, clips"
    share = smaller.clipped()
    if share is not None and share < NOTHING:
        what = f"{_share(share)} of the units already, so nothing lies between the two"
        return ClipFactorSuggestion(None, f"{said} {what}.")
    up = _beyond(smaller, [smaller.factor], 1)
    what = "an unknown share" if share is None else _share(share)
    return ClipFactorSuggestion(
        up, f"{said} {what} of the units, and {_factor(up)} would clip {_at(smaller, up)}."
    )


def _beyond(edge: TriedFactor, factors: Sequence[float], direction: int) -> float:
    """Returns the factor beyond the edge at which half as many units are clipped, or half as many are not clipped."""
    share = edge.clipped()
    target = None
    if share is not None:
        target = edge.factor_that_clips(share / 2 if direction > 0 else (1 + share) / 2)
    if target is None:  # nothing was counted there: use the ratio of the grid
        finite = [factor for factor in factors if not math.isinf(factor)]
        ratio = (finite[-1] / finite[0]) ** (1 / (len(finite) - 1)) if len(finite) > 1 else 2.0
        target = edge.factor * ratio**direction
    ratio = max(target / edge.factor, edge.factor / target)
    ratio = min(max(ratio, LEAST_RATIO), LARGEST_RATIO)
    return _round(edge.factor * ratio**direction)


def _tried(record: StudyRecord, rows: Sequence[Mapping[Hashable, Any]]) -> list[TriedFactor]:
    """Returns the factors under one condition with their seeds; empty with unfinished trials or without counts."""
    if any(row["state"] not in ENDED for row in rows):
        return []
    results = {tuple(result.point.values()): result for result in setting_results(record)}
    settings: dict[float, list[Mapping[Hashable, Any]]] = {}
    for row in rows:
        value = row[CLIP_FACTOR]
        if value is None or isinstance(value, int | float):
            settings.setdefault(math.inf if value is None else float(value), []).append(row)
    found = []
    for factor, trials in settings.items():
        top1 = [float(trial["last_top1"]) for trial in trials if trial["state"] == "finished"]
        if len(top1) < len(trials) or any(math.isnan(value) for value in top1):
            top1 = []
        names = tuple(str(trial["trial"]) for trial in trials)
        result = results.get(tuple(trials[0][name] for name in record.fields))
        found.append(TriedFactor(factor, tuple(top1), partial(_shares, record, names), result))
    return found if any(record.clipping.get(str(row["trial"])) for row in rows) else []


def _shares(record: StudyRecord, trials: Sequence[str]) -> Mapping[float, float] | None:
    records = [kept for trial in trials for kept in clipping_of(record, trial).values()]
    return shares_that_factors_would_clip(records)


def _is_within_noise(best: TriedFactor, other: TriedFactor, images: int) -> bool:
    """Whether the interval of the difference contains 0, image by image if the correctness of each image is known.

    For single seeds, the interval covers the images only, without the spread between seeds that the answer assumes.
    This is sufficient for deciding what to try next.
    """
    if best.result is not None and other.result is not None:
        return contrast(best.result, other.result).low <= 0
    return difference_interval(best.top1, other.top1, images)[0] <= 0


def _round(factor: float) -> float:
    """Rounds to two significant digits, of which the second is 0 or 5, as people write factors."""
    exponent = math.floor(math.log10(factor))
    digits = round(factor / 10**exponent * 2) / 2
    return float(f"{digits * 10**exponent:.2g}")


def _named(factors: Sequence[float]) -> str:
    """Lists the factors in ascending order, or only the first and the last one if there are many."""
    words = [_factor(factor) for factor in factors]
    if len(words) > _MOST_NAMED:
        numbers = [word for word, factor in zip(words, factors, strict=True) if not math.isinf(factor)]
        said = f"{len(numbers):,} factors from {numbers[0]} to {numbers[-1]}"
        return said if len(numbers) == len(words) else f"{said} and {words[-1]}"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _factor(factor: float) -> str:
    return "no clipping" if math.isinf(factor) else value_label(factor)


def _share(share: float) -> str:
    return "none" if share == 0 else "under 0.1%" if share < 0.001 else percent(share)


def _clips(tried: TriedFactor) -> str:
    share = tried.clipped()
    return "" if share is None else f", which clips {_share(share)} of the units"


def _at(tried: TriedFactor, factor: float) -> str:
    share = tried.clipped(factor)
    return "an unknown share" if share is None else _share(share)
