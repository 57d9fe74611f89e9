"""Evaluates early stopping in hindsight: how well each rung predicted the end, and the accuracy of each budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import TYPE_CHECKING, Any

from nfnet_ray.analysis.inference.rank_correlation import LEAST_TRIALS, RankCorrelation, rank_correlation
from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.analysis.setting import trials_by_setting
from nfnet_ray.analysis.tables import once_of_a_record
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import ScheduleRecipe
from nfnet_ray.study.halving import Halving
from nfnet_ray.tracking.labels import ABSENT, point_label
from nfnet_ray.wording import count, decimal, in_points, percent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RungSummary:
    """One rung of a study, over all strata.

    Attributes:
        rung: the rung, an epoch or seconds of training.
        where: the rung in words, such as ``after epoch 2``.
        compared: the number of trials that reached the rung.
        given_up: the number of these trials that ended there; 0 in a study without early stopping.
        correlation: the rank correlation between the accuracies at the rung and after the last epoch, over the finished
            trials of one seed and stratum, as the mean over strata and seeds. It does not cover trials that were given
            up, which could have overtaken others. The interval counts the seeds of a stratum as one, because they rank
            the same settings.
        among_all: the estimated correlation over all trials that reached the rung, as the finished ones are a
            selection.
        regret: the final accuracy of the best setting minus that of the setting that is best at the rung, a fraction,
            over the settings whose seeds all finished; the mean over strata; NaN without two such settings. Further
            seeds of contenders are ignored, because they pass no rung.
    """

    rung: float
    where: str
    compared: int
    given_up: int
    correlation: RankCorrelation
    among_all: RankCorrelation
    regret: float

    def sentence(self) -> str:
        """Says how well the rung predicted the end: ``rank correlation 0.48 (95% interval 0.22 to 0.69, 48 trials) …``.

        Empty if too few trials finished.
        """
        found, parts = self.correlation, []
        if not math.isnan(found.value):
            parts.append(
                f"rank correlation with the end {decimal(found.value, 2)} (95% interval {decimal(found.low, 2)} to "
                f"{decimal(found.high, 2)}, "
                f"{count(found.trials, 'trial')} that finished)"
            )
        if not math.isnan(self.regret):
            parts.append(f"choosing there costs {in_points(self.regret)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class BudgetPoint:
    """The best accuracy of complete schedules of one length, under one combination of the conditions.

    Attributes:
        epochs: the length of the schedules.
        train_seconds: the training time of the best setting with this schedule alone, the mean over its seeds.
        top1: the accuracy of the best setting at the end of the schedule, a fraction, the mean over its seeds.
        point: {dotted name: value} of the best setting.
        settings: the number of settings among which the best one was chosen.
    """

    epochs: int
    train_seconds: float
    top1: float
    point: dict[str, Any]
    settings: int


@once_of_a_record
def rung_summaries(record: StudyRecord) -> Sequence[RungSummary]:
    """Returns a summary of each rung at which trials were given up, earliest first.

    In a study without early stopping, these are the rungs at which the default rule would have compared trials. Empty
    if trials train for different numbers of epochs.
    """
    stopped = record.trials[record.trials["state"] == "stopped"]
    given_up = [
        _last_rung(record, trial, int(epochs))
        for trial, epochs in zip(stopped["trial"], stopped["epochs"], strict=True)
    ]
    summaries = []
    for rung in sorted(set(given_up)) or _would_be_rungs(record):
        reached = _accuracies_at(record, rung)
        correlation = _correlation(record, reached)
        summaries.append(
            RungSummary(
                rung=rung,
                where=_where(record, rung),
                compared=len(reached),
                given_up=given_up.count(rung),
                correlation=correlation,
                among_all=correlation.among_all(_spread_of_all(record, reached)),
                regret=_regret(record, reached),
            )
        )
    return summaries


def rung_sentences(record: StudyRecord) -> list[str]:
    """Returns a sentence for each rung that has enough finished trials.

    ``After epoch 2: rank correlation with the end 0.48 (95% interval 0.22 to 0.69, 48 trials that finished); …``
    """
    told = [(rung.where, rung.sentence()) for rung in rung_summaries(record)]
    return [f"{where[0].upper()}{where[1:]}: {said}." for where, said in told if said]


def budget_points(record: StudyRecord) -> dict[tuple[Any, ...], list[BudgetPoint]]:
    """Returns {values of the conditions: the results of schedules of each length, the shortest first}.

    Empty unless the study trained complete schedules of several lengths (``--schedule stretched``).
    """
    if "schedule_epochs" not in record.epochs:
        return {}
    epochs = record.epochs
    ends = epochs[epochs["schedule_epoch"] == epochs["schedule_epochs"]].copy()
    spent = epochs.set_index(["trial", "epoch"])["train_seconds"].to_dict()
    before = zip(ends["trial"], ends["epoch"] - ends["schedule_epochs"], strict=True)
    ends["own_seconds"] = ends["train_seconds"] - [spent.get((trial, epoch), 0.0) for trial, epoch in before]
    found: dict[tuple[Any, ...], list[BudgetPoint]] = {}
    for length in sorted(set(ends["schedule_epochs"])):
        rows = ends[ends["schedule_epochs"] == length]
        settings: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
        for row in rows.to_dict("records"):
            settings.setdefault(tuple(row[field] for field in record.fields), []).append(row)
        strata: dict[tuple[Any, ...], list[BudgetPoint]] = {}
        for values, seeds in settings.items():
            if len(seeds) < len(record.study["seeds"]):
                continue
            point = dict(zip(record.fields, values, strict=True))
            top1, seconds = (
                math.fsum(row[name] for row in seeds) / len(seeds) for name in (METRIC, "own_seconds")
            )
            stratum = tuple(point[field] for field in record.conditions)
            strata.setdefault(stratum, []).append(BudgetPoint(int(length), seconds, top1, point, 0))
        for stratum, points in strata.items():
            best = max(points, key=lambda point: point.top1)
            found.setdefault(stratum, []).append(
                BudgetPoint(best.epochs, best.train_seconds, best.top1, best.point, len(points))
            )
    return found


def budget_sentences(record: StudyRecord) -> list[str]:
    """Describes the accuracy of each budget, in a sentence for each combination of the conditions.

    ``Accuracy against budget at batch_size 64: 46.9% with 2 epochs (1.2 s of training, clip_factor 0.02), 98.1% …``
    """
    sentences = []
    for stratum, points in budget_points(record).items():
        shared = {
            field: value
            for field, value in zip(record.conditions, stratum, strict=True)
            if value is not ABSENT
        }
        parts = [
            f"{percent(point.top1)} with {count(point.epochs, 'epoch')} ({point.train_seconds:,.3g} s of training, "
            f"{point_label(_without(point.point, record.conditions), record.names)})"
            for point in points
        ]
        where = f" at {point_label(shared, record.names)}" if shared else ""
        sentences.append(f"Accuracy against budget{where}: {', '.join(parts)}.")
    return sentences


def _without(point: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: value for field, value in point.items() if field not in fields}


def _last_rung(record: StudyRecord, trial: str, epochs: int) -> float:
    """Returns the rung at which a trial was given up after ``epochs`` epochs."""
    return max(record.pauses[trial]) if record.rungs_in_seconds else epochs


def _where(record: StudyRecord, rung: float) -> str:
    if record.rungs_in_seconds:
        return f"after {rung:.4g} s of training"
    if "schedule_epochs" in record.epochs:
        lengths = _ends_of_schedules(record, rung)["schedule_epochs"]
        return f"after schedules of {count(int(lengths.iloc[0]), 'epoch')}"
    return f"after epoch {int(rung)}"


def _accuracies_at(record: StudyRecord, rung: float) -> dict[str, float]:
    """Returns {name: accuracy at a rung} of the trials that reached it."""
    if not record.rungs_in_seconds:
        rows = _ends_of_schedules(record, rung)
        rows = rows[~rows["trial"].isin(record.further)]
        return dict(zip(rows["trial"], rows[METRIC].astype(float), strict=True))
    top1 = record.epochs.set_index(["trial", "epoch"])[METRIC].astype(float).to_dict()
    # Trials that an extension has left out have pauses, too, but no rows in the tables.
    paused = {name: record.pauses.get(name, {}) for name in record.trials["trial"]}
    return {name: top1[name, rungs[rung]] for name, rungs in paused.items() if rung in rungs}


def _ends_of_schedules(record: StudyRecord, epoch: float) -> pd.DataFrame:
    """Returns the rows of an epoch; with stretched schedules only those of trials that ended a schedule there.

    Groups of different sizes have different rungs, so for other trials the epoch may lie within a schedule.
    """
    rows = record.epochs[record.epochs["epoch"] == epoch]
    if "schedule_epochs" in rows:
        rows = rows[rows["schedule_epoch"] == rows["schedule_epochs"]]
    return rows


def _would_be_rungs(record: StudyRecord) -> list[float]:
    """Returns the rungs of the default rule, for a study without early stopping whose trials share one schedule."""
    if record.study["halving"] is not None or "schedule.epochs" in record.fields or record.epochs.empty:
        return []
    recipe = record.study["recipe"]
    schedule = ScheduleRecipe(epochs=record.study["epochs"], warmup_epochs=recipe["schedule.warmup_epochs"])
    reached = set(record.epochs["epoch"])
    return [float(rung) for rung in Halving().rungs(schedule) if rung in reached]


def _by_stratum(record: StudyRecord, trial: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(trial[field] for field in record.conditions)


def _pair(trial: Mapping[Any, Any], at_rung: Mapping[str, float]) -> tuple[float, float] | None:
    """Returns (accuracy at the rung, at the end) of a trial that has finished; None for other trials."""
    pair = at_rung.get(trial["trial"], math.nan), float(trial["last_top1"])
    return None if trial["state"] != "finished" or any(map(math.isnan, pair)) else pair


def _correlation(record: StudyRecord, at_rung: Mapping[str, float]) -> RankCorrelation:
    """Returns the rank correlation over the trials that finished and reached the rung."""
    strata: dict[tuple[Any, ...], dict[Any, list[tuple[float, float]]]] = {}
    for trial in record.trials.to_dict("records"):
        if (pair := _pair(trial, at_rung)) is not None:
            strata.setdefault(_by_stratum(record, trial), {}).setdefault(trial["seed"], []).append(pair)
    return rank_correlation([list(seeds.values()) for seeds in strata.values()])


def _spread_of_all(record: StudyRecord, at_rung: Mapping[str, float]) -> float:
    """Returns the standard deviation at a rung, by normal scores, of all trials relative to that of finished trials.

    As in the correlation, only ranks matter: a trial at chance accuracy is no further away than the last one.
    """
    from scipy.special import ndtri  # importing it takes a while

    strata: dict[tuple[Any, ...], list[tuple[float, bool]]] = {}
    for trial in record.trials.to_dict("records"):
        if trial["trial"] in at_rung and not math.isnan(at_rung[trial["trial"]]):
            key = (*_by_stratum(record, trial), trial["seed"])
            strata.setdefault(key, []).append((at_rung[trial["trial"]], trial["state"] == "finished"))
    every, chosen = [], []
    for trials in strata.values():
        order = sorted(trials)
        scores = [float(ndtri((place + 0.5) / len(order))) for place in range(len(order))]
        finished = [score for score, (_, is_finished) in zip(scores, order, strict=True) if is_finished]
        if len(finished) >= LEAST_TRIALS:
            every.append(pvariance(scores))
            chosen.append(pvariance(finished))
    return max(1.0, math.sqrt(fmean(every) / fmean(chosen))) if chosen else 1.0


def _regret(record: StudyRecord, at_rung: Mapping[str, float]) -> float:
    """Returns the mean regret over strata with at least two settings whose trials all finished and reached the rung."""
    strata: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for point, every in trials_by_setting(record):
        trials = [trial for trial in every if trial["trial"] not in record.further]
        pairs = [pair for trial in trials if (pair := _pair(trial, at_rung)) is not None]
        if len(pairs) == len(trials):
            means = fmean(rung for rung, _ in pairs), fmean(end for _, end in pairs)
            strata.setdefault(_by_stratum(record, point), []).append(means)
    lost = [
        max(end for _, end in settings) - max(settings, key=lambda means: means[0])[1]
        for settings in strata.values()
        if len(settings) > 1
    ]
    return fmean(lost) if lost else math.nan
