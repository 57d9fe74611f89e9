"""Compares accuracy against training time by budgets, and the training times at which an accuracy is reached.

In a study that sweeps ``schedule.epochs``, each trial trains one complete schedule, its *budget*. The points of a long
training's curve are no substitute, because its learning rate is still high where a short training has ended.

Between two budgets of a setting, the logarithm of the time is interpolated linearly in the accuracy. There is no
extrapolation beyond the shortest and the longest budget. The intervals of times and accuracies cover seeds: each mean
is drawn many times from Student's t around it, with a spread between seeds that is pooled over all settings and budgets
as far as they are alike (:func:`~nfnet_ray.analysis.inference.selection.moderated_variances`). A bootstrap of three
seeds would find only two thirds of their variance. If the correctness of each image is known, the intervals also cover
images: accuracies are drawn with the covariances that the images imply, since other images move all curves in part
together and in part separately. In simulation the interval of a ratio covers 95 to 97%
(``tests/quick/test_frontier.py``).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.analysis.comparability import comparability
from nfnet_ray.analysis.inference.paired import Bits, Moments
from nfnet_ray.analysis.inference.selection import moderated_variances, noise_of
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.setting import SettingImages, trials_by_setting
from nfnet_ray.analysis.tables import STUDY
from nfnet_ray.tracking.labels import ABSENT, point_label
from nfnet_ray.wording import count, percent

if TYPE_CHECKING:
    import pandas as pd

BUDGET = "schedule.epochs"
NETWORK = "model.name"
# The share of draws below a bound of 2.5% then has a standard error of 0.25%: sqrt(0.025 * 0.975 / 4000).
DRAWS = 4000
_TARGET_STEP = 0.005
"""Targets are multiples of half a point."""
_MOST_OUTSIDE = 0.025
"""The largest share of the draws that may miss a target, or that may exceed it with the shortest budget already."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """The results of a setting's seeds with one budget.

    Attributes:
        epochs: the length of the complete schedule.
        train_seconds: the training time of each seed.
        top1: the accuracy of each seed, a fraction.
        images: the images that each seed classified correctly; None if the journal does not contain them.
    """

    epochs: int
    train_seconds: tuple[float, ...]
    top1: tuple[float, ...]
    images: SettingImages | None = field(default=None, compare=False, repr=False)

    @property
    def mean_seconds(self) -> float:
        """The geometric mean of the seeds' training times."""
        return math.exp(fmean(map(math.log, self.train_seconds)))

    @property
    def mean_top1(self) -> float:
        """The arithmetic mean of the seeds' accuracies, a fraction."""
        return fmean(self.top1)


@dataclass(frozen=True)
class Curve:
    """A setting with all of its budgets, shortest first. ``label`` is its name, such as ``nfnet_pico``."""

    point: Mapping[str, Any]
    label: str
    budgets: tuple[Budget, ...]


@dataclass(frozen=True)
class EqualAccuracy:
    """The training time of one setting relative to another's at an accuracy that both reach.

    Attributes:
        one, other: the labels of the settings.
        target: the accuracy, a fraction.
        ratio: the time of ``one`` divided by the time of ``other``.
        low, high: the 95% interval of ``ratio`` over ``covers``; None for single seeds.
        seeds: the smallest number of seeds of a budget.
        covers: ``seeds and images``, or ``seeds`` if the correctness of each image is not known.
    """

    one: str
    other: str
    target: float
    ratio: float
    low: float | None
    high: float | None
    seeds: int
    covers: str = "seeds"

    def sentence(self) -> str:
        """Formats ``At equal accuracy (94%) nfnet_pico takes 0.42 of test_efficientnet's training time (…)``."""
        seeds = count(self.seeds, "seed")
        interval = (
            f"95% interval over {self.covers} {self.low:.2f} to {self.high:.2f}, {seeds}"
            if self.low is not None
            else f"{seeds}: what another seed would give was not measured"
        )
        return (
            f"At equal accuracy ({percent(self.target)}) {self.one} takes {self.ratio:.2f} of {self.other}'s training "
            f"time ({interval})"
        )


def curves(record: StudyRecord) -> list[Curve]:
    """Returns each setting of a study with its budgets, in the study's order; empty without ``schedule.epochs``.

    In a record of several studies, a setting whose study sweeps no budgets has a single budget.

    As in an answer, a budget with which a seed was given up, diverged or failed is left out, because the results of its
    other seeds do not represent the budget. Trials that have not run yet are simply missing.
    """
    if BUDGET not in record.fields and not record.parts:
        return []
    others = [field for field in record.fields if field != BUDGET]
    found: dict[tuple[Any, ...], dict[int, list[Mapping[Hashable, Any]]]] = {}
    for point, trials in trials_by_setting(record):
        setting = found.setdefault(tuple(point[field] for field in others), {})
        if any(trial["state"] in ("stopped", "diverged", "failed") for trial in trials):
            continue
        for trial in trials:
            is_measured = trial["state"] == "finished" and trial["train_seconds"] > 0
            if is_measured and not math.isnan(trial["last_top1"]):
                setting.setdefault(int(trial["epochs"]), []).append(trial)
    return [
        Curve(
            dict(zip(others, key, strict=True)),
            curve_label(record, dict(zip(others, key, strict=True))),
            tuple(
                Budget(
                    epochs,
                    tuple(float(trial["train_seconds"]) for trial in trials),
                    tuple(float(trial["last_top1"]) for trial in trials),
                    SettingImages.of([record.correct(str(trial["trial"]), epochs) for trial in trials]),
                )
                for epochs, trials in sorted(budgets.items())
            ),
        )
        for key, budgets in found.items()
        if budgets
    ]


def curve_label(record: StudyRecord, point: Mapping[str, Any]) -> str:
    """Returns the label of a setting, with its study if there are several: ``nfnet_pico (efficientnet_baselines)``."""
    study = str(point[STUDY]) if record.parts else ""
    fields = record.parts[study].fields if record.parts else record.fields
    asked = {field: point[field] for field in fields if field not in (BUDGET, NETWORK)}
    network = [str(point[NETWORK])] if point.get(NETWORK, ABSENT) is not ABSENT else []
    label = ", ".join([*network, *([point_label(asked, record.names)] if asked else [])])
    if not study:
        return label
    return f"{label} ({study})" if label else study


def frontier(record: StudyRecord) -> pd.DataFrame:
    """Returns a table with a row for each setting and budget, shortest training first.

    Returns:
        The swept fields, ``seeds``, ``train_seconds`` (geometric mean), ``top1`` (mean, a fraction) and
        ``is_on_frontier``: whether no setting with a shorter training is as accurate.
    """
    import pandas as pd

    rows = [
        {
            **curve.point,
            BUDGET: budget.epochs,
            "seeds": len(budget.top1),
            "train_seconds": budget.mean_seconds,
            "top1": budget.mean_top1,
        }
        for curve in curves(record)
        for budget in curve.budgets
    ]
    table = pd.DataFrame(rows, columns=None if rows else [*record.fields, "seeds", "train_seconds", "top1"])
    table = table.sort_values("train_seconds", ignore_index=True)
    table["is_on_frontier"] = table["top1"] > table["top1"].cummax().shift(fill_value=-1.0)
    return table


def time_to_target(record: StudyRecord, target: float) -> pd.DataFrame:
    """Returns how long each setting has to be trained to reach an accuracy with a complete schedule.

    Args:
        target: top-1, a fraction.

    Returns:
        A row for each setting: its fields, ``train_seconds`` and its 95% interval ``low`` to ``high`` over seeds and,
        if the correctness of each image is known, over images.
        ``train_seconds`` is infinite if the longest budget does not reach the target, and NaN if the shortest one
        exceeds it. With other images or seeds, a setting may exceed the target with its shortest budget, in which case
        ``low`` is 0, or miss it with its longest budget, in which case ``high`` is infinite. The interval of a setting
        that has a budget with a single seed is NaN.
    """
    import pandas as pd

    found = curves(record)
    noise = _noise(found)
    rows = []
    for number, curve in enumerate(found):
        low = high = math.nan
        if noise is not None and min(len(budget.top1) for budget in curve.budgets) > 1:
            (drawn,) = _drawn_log_seconds([curve], target, noise, first_key=number)
            low, high = (math.exp(bound) for bound in _quantiles(drawn))
        seconds = math.exp(float(_log_seconds(*_means(curve), target)[0]))
        reached = seconds if seconds > 0 else math.nan
        rows.append({**curve.point, "train_seconds": reached, "low": low, "high": high})
    return pd.DataFrame(rows)


def equal_accuracy(
    one: Curve, other: Curve, among: Sequence[Curve], target: float | None = None
) -> EqualAccuracy | None:
    """Compares the training times of two settings at an accuracy that both reach; None if there is no such accuracy.

    Args:
        among: all settings of the study, from whose seeds the noise is estimated.
        target: the accuracy, a fraction; by default the highest one that both reach, in multiples of half a point.
    """
    noise = _noise(among)
    fewest = min(len(budget.top1) for curve in (one, other) for budget in curve.budgets)
    if target is None:
        target = _highest_target(one, other, noise)
    if target is None:
        return None
    seconds = [float(_log_seconds(*_means(curve), target)[0]) for curve in (one, other)]
    if not all(map(math.isfinite, seconds)):
        return None
    low = high = None
    if noise is not None and fewest > 1:
        draws = _drawn_log_seconds((one, other), target, noise)
        with np.errstate(invalid="ignore"):
            ratios = draws[0] - draws[1]
        low, high = (math.exp(bound) for bound in _quantiles(ratios[~np.isnan(ratios)]))
    covers = "seeds" if _shared_images((one, other)) is None else "seeds and images"
    ratio = math.exp(seconds[0] - seconds[1])
    return EqualAccuracy(one.label, other.label, target, ratio, low, high, fewest, covers)


def time_sentences(record: StudyRecord) -> list[str]:
    """Answers a study of budgets: compares each normaliser-free network with each other one; else the first setting.

    The list is empty for a study that sweeps no budget. For several studies, networks are compared if they may share
    axes (:mod:`nfnet_ray.analysis.comparability`) and have at least two budgets.
    """
    if not record.parts:
        return _time_sentences(curves(record))
    guard = comparability(record)
    said = []
    for group in guard.axes:
        mine = replace(record, trials=record.trials[record.trials["trial"].isin(group.trials)])
        where = f"{group.title}: " if len(guard.axes) > 1 else ""
        several = [curve for curve in curves(mine) if len(curve.budgets) > 1]
        said += [f"{where}{sentence}" for sentence in _time_sentences(several)]
    return said


def _time_sentences(found: list[Curve]) -> list[str]:
    if len(found) < 2:
        return []
    free = [curve for curve in found if str(curve.point.get(NETWORK, "")).startswith("nf")]
    rest = [curve for curve in found if curve not in free]
    if not free or not rest:
        free, rest = found[:1], found[1:]
    sentences = []
    for one in free:
        for other in rest:
            compared = equal_accuracy(one, other, found)
            sentences.append(compared.sentence() if compared else _apart(one, other))
    return sentences


def _apart(one: Curve, other: Curve) -> str:
    ends = [(curve.budgets[0].mean_top1, curve.budgets[-1].mean_top1) for curve in (one, other)]
    said = " and ".join(
        f"{curve.label} {percent(low)} to {percent(high)}"
        for curve, (low, high) in zip((one, other), ends, strict=True)
    )
    lowest = max(curve.budgets[0].mean_top1 for curve in (one, other))
    if lowest <= min(curve.budgets[-1].mean_top1 for curve in (one, other)):
        return (
            f"{one.label} and {other.label} cannot be compared: there is no accuracy that both surely reach with "
            f"these budgets and seeds ({said}); a shorter budget or more seeds would tell"
        )
    return f"{one.label} and {other.label} reach no accuracy in common with these budgets: {said}"


def _means(curve: Curve) -> tuple[Floats, Floats]:
    """Returns (log of the seconds, accuracy), each (1, budgets)."""
    seconds = np.array([[math.log(budget.mean_seconds) for budget in curve.budgets]])
    return seconds, np.array([[budget.mean_top1 for budget in curve.budgets]])


@dataclass(frozen=True)
class _Noise:
    """{(label, epochs): variance between seeds} of accuracies and of log seconds, with their degrees of freedom."""

    top1: Mapping[tuple[str, int], float]
    log_seconds: Mapping[tuple[str, int], float]
    freedom: tuple[float, float]


def _noise(among: Sequence[Curve]) -> _Noise | None:
    several = [
        ((curve.label, budget.epochs), budget)
        for curve in among
        for budget in curve.budgets
        if len(budget.top1) > 1
    ]
    if not several:
        return None
    free = np.array([len(budget.top1) - 1.0 for _, budget in several])
    top1, free_top1 = moderated_variances(
        np.array([float(np.var(budget.top1, ddof=1)) for _, budget in several]), free
    )
    logs = np.array([float(np.var(np.log(budget.train_seconds), ddof=1)) for _, budget in several])
    seconds, free_seconds = moderated_variances(logs, free)
    keys = [key for key, _ in several]
    return _Noise(
        dict(zip(keys, top1.tolist(), strict=True)),
        dict(zip(keys, seconds.tolist(), strict=True)),
        (free_top1, free_seconds),
    )


def _drawn(found: Sequence[Curve], noise: _Noise, first_key: int = 0) -> list[tuple[Floats, Floats]]:
    """Draws (log of the seconds, accuracy) of each curve with other seeds and images, each (DRAWS, budgets)."""
    by_images = _moved_by_images(found)
    drawn = []
    for number, curve in enumerate(found):
        draw = np.random.default_rng(first_key + number)
        seconds, top1 = (
            means + _moved_by_seeds(curve, variances, freedom, draw)
            for means, variances, freedom in zip(
                _means(curve), (noise.log_seconds, noise.top1), noise.freedom[::-1], strict=True
            )
        )
        drawn.append((seconds, top1 + by_images[number]))
    return drawn


def _moved_by_seeds(
    curve: Curve, variances: Mapping[tuple[str, int], float], freedom: float, draw: np.random.Generator
) -> Floats:
    """Draws the changes of the means with other seeds, (DRAWS, budgets)."""
    errors = [
        math.sqrt(variances.get((curve.label, budget.epochs), 0.0) / len(budget.top1))
        for budget in curve.budgets
    ]
    tails = np.sqrt(freedom / draw.chisquare(freedom, (DRAWS, 1)))
    return np.asarray(np.array(errors) * draw.standard_normal((DRAWS, len(errors))) * tails)


def _moved_by_images(found: Sequence[Curve]) -> list[Floats]:
    """Draws the changes of each curve's accuracies with other images, (DRAWS, budgets), the same images for all curves.

    The interaction of seeds and images is part of the spread between seeds. The changes are 0 if the images are not
    known.
    """
    measured = _shared_images(found)
    if measured is None:
        return [np.zeros((1, 1)) for _ in found]
    budgets = [budget for curve in found for budget in curve.budgets]
    bits = [budget.images.correct[:, measured] for budget in budgets if budget.images is not None]
    noise = noise_of(Moments.of(np.concatenate(bits)), [len(one) for one in bits])
    values, vectors = np.linalg.eigh(noise.images)
    roots = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    moved = np.random.default_rng(DRAWS).standard_normal((DRAWS, len(budgets))) @ roots
    return np.split(moved, np.cumsum([len(curve.budgets) for curve in found])[:-1], axis=1)


def _shared_images(found: Sequence[Curve]) -> Bits | None:
    """Returns the images that all trials were measured on, (N,); None if unknown for a trial, or too few."""
    images = [budget.images for curve in found for budget in curve.budgets]
    known = [one for one in images if one is not None]
    if len(known) < len(images) or len({len(one.measured) for one in known}) != 1:
        return None
    measured = np.logical_and.reduce([one.measured for one in known])
    return measured if measured.sum() >= 2 else None


def _drawn_log_seconds(
    found: Sequence[Curve], target: float, noise: _Noise, first_key: int = 0
) -> list[Floats]:
    return [_log_seconds(seconds, top1, target) for seconds, top1 in _drawn(found, noise, first_key)]


def _log_seconds(seconds: Floats, top1: Floats, target: float) -> Floats:
    """Returns the logarithm of the time to a target, (R,), from log seconds and accuracies (R, budgets).

    The value is infinite if no budget reaches the target, and minus infinity if the shortest budget exceeds it.
    """
    best = np.maximum.accumulate(top1, axis=1)
    after = (best < target).sum(axis=1)
    last = best.shape[1] - 1
    rows = np.arange(len(best))
    right = np.minimum(after, last)
    left = np.maximum(right - 1, 0)
    low, high = best[rows, left], best[rows, right]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(high > low, (target - low) / (high - low), 1.0)
    within = seconds[rows, left] + share * (seconds[rows, right] - seconds[rows, left])
    at_first = np.where(best[:, 0] > target, -np.inf, seconds[:, 0])
    return np.where(after > last, np.inf, np.where(after == 0, at_first, within))


def _highest_target(one: Curve, other: Curve, noise: _Noise | None) -> float | None:
    """Returns the highest accuracy, a multiple of half a point, that both settings reach in all but a few draws."""
    highest = min(max(budget.mean_top1 for budget in curve.budgets) for curve in (one, other))
    lowest = max(curve.budgets[0].mean_top1 for curve in (one, other))
    drawn = [_means(one), _means(other)] if noise is None else _drawn((one, other), noise)
    first, last = math.floor(highest / _TARGET_STEP + 1e-9), math.ceil(lowest / _TARGET_STEP - 1e-9)
    for step in range(first, last - 1, -1):
        target = round(step * _TARGET_STEP, 6)
        outside = [
            share
            for seconds, top1 in drawn
            for share in (
                np.isposinf(_log_seconds(seconds, top1, target)).mean(),
                (top1[:, 0] > target).mean(),
            )
        ]
        if max(outside) <= _MOST_OUTSIDE:
            return target
    return None


def _quantiles(logs: Floats) -> tuple[float, float]:
    """Returns the bounds of the central 95%, which may be infinite."""
    ordered = np.sort(logs)
    return float(ordered[int(0.025 * len(ordered))]), float(ordered[math.ceil(0.975 * len(ordered)) - 1])
