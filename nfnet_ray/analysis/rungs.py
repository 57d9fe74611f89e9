"""Early stopping in hindsight: what each rung compared, how well it foretold the end, and what each budget buys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.labels import ABSENT, point_label
from nfnet_ray.wording import count, percent

if TYPE_CHECKING:
    import pandas as pd

LEAST_TRIALS_FOR_A_CORRELATION = 3


@dataclass(frozen=True)
class RungSummary:
    """One rung of a study, over all strata.

    Attributes:
        rung: its epoch, or its seconds of training.
        where: the same in words: ``after epoch 2``.
        compared: the number of trials that reached it.
        given_up: the number of them that ended there.
        rank_correlation: Kendall's tau-b between the accuracies at the rung and those after the last epoch, over the
            trials of a stratum that finished, as the mean over strata with at least three of them; NaN without any.
            It says nothing of the trials that were given up, which would have had the chance to overtake.
    """

    rung: float
    where: str
    compared: int
    given_up: int
    rank_correlation: float


@dataclass(frozen=True)
class BudgetPoint:
    """The best accuracy that complete schedules of one length have reached, under one combination of the conditions.

    Attributes:
        epochs: the length of the schedules.
        train_seconds: of the best setting with this schedule alone, the mean over its seeds.
        top1: its accuracy at the end of the schedule, a fraction, the mean over its seeds.
        point: {dotted name: value} of the best setting.
        settings: the number of settings that it was chosen from.
    """

    epochs: int
    train_seconds: float
    top1: float
    point: dict[str, Any]
    settings: int


def rung_summaries(record: StudyRecord) -> list[RungSummary]:
    """The rungs at which trials were given up, earliest first; none without early stopping."""
    stopped = record.trials[record.trials["state"] == "stopped"]
    given_up = [
        _last_rung(record, trial, int(epochs))
        for trial, epochs in zip(stopped["trial"], stopped["epochs"], strict=True)
    ]
    summaries = []
    for rung in sorted(set(given_up)):
        reached = _accuracies_at(record, rung)
        summaries.append(
            RungSummary(
                rung=rung,
                where=_where(record, rung),
                compared=len(reached),
                given_up=given_up.count(rung),
                rank_correlation=_rank_correlation(record, reached),
            )
        )
    return summaries


def budget_points(record: StudyRecord) -> dict[tuple[Any, ...], list[BudgetPoint]]:
    """{values of the conditions: what schedules of each length reached, the shortest first}.

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
    """The accuracy that each budget buys, a sentence for each combination of the conditions.

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
    """The rung at which a trial was given up after so many epochs."""
    return max(record.pauses[trial]) if record.rungs_in_seconds else epochs


def _where(record: StudyRecord, rung: float) -> str:
    if record.rungs_in_seconds:
        return f"after {rung:.4g} s of training"
    if "schedule_epochs" in record.epochs:
        lengths = record.epochs[record.epochs["epoch"] == rung]["schedule_epochs"]
        return f"after schedules of {count(int(lengths.iloc[0]), 'epoch')}"
    return f"after epoch {int(rung)}"


def _accuracies_at(record: StudyRecord, rung: float) -> pd.Series:
    """The accuracy of each trial that reached a rung, by its name."""
    import pandas as pd

    if not record.rungs_in_seconds:
        rows = record.epochs[(record.epochs["epoch"] == rung) & ~record.epochs["trial"].isin(record.further)]
        return rows.set_index("trial")[METRIC].astype(float)
    top1 = record.epochs.set_index(["trial", "epoch"])[METRIC].to_dict()
    reached = {name: top1[name, rungs[rung]] for name, rungs in record.pauses.items() if rung in rungs}
    return pd.Series(reached, dtype=float)


def _rank_correlation(record: StudyRecord, at_rung: pd.Series) -> float:
    from scipy.stats import kendalltau  # takes a second to import

    finished = record.trials[record.trials["state"] == "finished"].set_index("trial")
    taus = []
    for _, trials in finished.groupby([*record.conditions, "seed"], dropna=False):
        both = trials.join(at_rung.rename("at_rung"), how="inner")
        if len(both) >= LEAST_TRIALS_FOR_A_CORRELATION:
            taus.append(float(kendalltau(both["at_rung"], both["last_top1"]).statistic))
    known = [tau for tau in taus if not math.isnan(tau)]
    return sum(known) / len(known) if known else math.nan
