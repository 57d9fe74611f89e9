"""Early stopping in hindsight: how many trials each rung compared and gave up, and how well it foretold the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nfnet_ray.analysis.record import StudyRecord
from nfnet_ray.metric import METRIC

LEAST_TRIALS_FOR_A_CORRELATION = 3


@dataclass(frozen=True)
class RungSummary:
    """One rung of a study, over all strata.

    Attributes:
        epoch: after which its trials were compared.
        compared: the number of trials that reached it.
        given_up: the number of them that ended there.
        rank_correlation: Kendall's tau-b between the accuracies at the rung and those after the last epoch, over the
            trials of a stratum that finished, as the mean over strata with at least three of them; NaN without any.
            It says nothing of the trials that were given up, which would have had the chance to overtake.
    """

    epoch: int
    compared: int
    given_up: int
    rank_correlation: float


def rung_summaries(record: StudyRecord) -> list[RungSummary]:
    """The rungs at which trials were given up, earliest first; none without early stopping."""
    stopped = record.trials[record.trials["state"] == "stopped"]
    summaries = []
    for epoch in sorted({int(epoch) for epoch in stopped["epochs"]}):
        summaries.append(
            RungSummary(
                epoch=epoch,
                compared=int((record.epochs["epoch"] == epoch).sum()),
                given_up=int((stopped["epochs"] == epoch).sum()),
                rank_correlation=_rank_correlation(record, epoch),
            )
        )
    return summaries


def _rank_correlation(record: StudyRecord, epoch: int) -> float:
    from scipy.stats import kendalltau  # takes a second to import

    finished = record.trials[record.trials["state"] == "finished"].set_index("trial")
    at_rung = record.epochs[record.epochs["epoch"] == epoch].set_index("trial")[METRIC].astype(float)
    taus = []
    for _, trials in finished.groupby([*record.fields[1:], "seed"], dropna=False):
        both = trials.join(at_rung.rename("at_rung"), how="inner")
        if len(both) >= LEAST_TRIALS_FOR_A_CORRELATION:
            taus.append(float(kendalltau(both["at_rung"], both["last_top1"]).statistic))
    known = [tau for tau in taus if not math.isnan(tau)]
    return sum(known) / len(known) if known else math.nan
