"""Draws the report's charts of signal propagation: variance over depth, with a curve for each measured epoch.

As in :mod:`~dashboards.figures.time_charts`, a trace describes its role in ``meta``, and the page's script colours it:
``shade`` is the index of its epoch in :attr:`SignalCharts.epochs`, for which :func:`epoch_shades` has the colours;
``reference`` is an expectation, which is drawn in the colour of text.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashboards.figures.time_charts import Figure, strata, trial_label
from nfnet_ray.analysis import StudyRecord, best_per_stratum, signal_by_depth

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[Hashable, Any]

DIVERGED = "diverged"
BEST_AT_MOST, PANELS_AT_MOST = 4, 6
EPOCHS_AT_MOST = 8
"""The most epochs that are drawn. If there are more, evenly spaced ones including the first and the last are drawn."""
NAMED_BLOCKS = 16
"""With more blocks, only some are named at the axis; the pointer shows every name."""

# The part of Plotly's Blues, from light to dark, that is visible: the light end vanishes on white, the dark end on
# black.
_LIGHT_THEME_RANGE, _DARK_THEME_RANGE = (0.42, 1.0), (0.78, 0.12)


@dataclass(frozen=True)
class SignalCharts:
    """The panels of the section on signal propagation.

    Attributes:
        panels: ``(title, figure)`` of the shown trials, with one Y axis for all diverged trials and one for the others.
        epochs: the epochs that have a curve, in ascending order; 0 is before the first step.
        epochs_left_out: whether further epochs were measured.
        trials_left_out: the number of measured trials of the shown kinds that have no panel.
        unmeasured: labels of the diverged trials that ended before they measured anything.
        undrawable: the number of variances of the shown trials that are 0 or not finite, so that a log axis cannot show
            them.
        has_expectation: whether there is an expected variance for comparison.
    """

    panels: tuple[tuple[str, Figure], ...]
    epochs: tuple[int, ...]
    epochs_left_out: bool
    trials_left_out: int
    unmeasured: tuple[str, ...]
    undrawable: int
    has_expectation: bool


def signal_charts(record: StudyRecord) -> SignalCharts | None:
    """Returns panels for the best setting of each stratum and for diverged trials; None if nothing was measured."""
    signal = signal_by_depth(record)
    if signal.empty:
        return None
    measured = set(signal["trial"])
    best = _best_trials(record, measured)
    diverged = record.trials[record.trials["state"] == DIVERGED].to_dict("records")
    diverged_measured = [trial for trial in diverged if trial["trial"] in measured]
    shown = [*best[:BEST_AT_MOST], *((trial, DIVERGED) for trial in diverged_measured)][:PANELS_AT_MOST]
    names = [trial["trial"] for trial, _ in shown]
    visible = signal[signal["trial"].isin(names)]
    epochs = _chosen_epochs(visible)
    visible = visible[visible["epoch"].isin(epochs)]
    drawable = [value for value in visible["variance"] if _has_logarithm(value)]
    expected = [value for value in visible["expected_variance"] if _has_logarithm(value)]
    # A diverged trial spans so many decades that all other trials would look flat on its axis.
    groups = [[t["trial"] for t, why in shown if (why == DIVERGED) == apart] for apart in (False, True)]
    ranges = [_variance_range(visible[visible["trial"].isin(group)]) for group in groups]
    return SignalCharts(
        panels=tuple(
            (
                f"{trial_label(record, trial)}: {why}",
                _figure(visible[visible["trial"] == trial["trial"]], epochs, ranges[why == DIVERGED]),
            )
            for trial, why in shown
        ),
        epochs=tuple(epochs),
        epochs_left_out=len(epochs) < signal[signal["trial"].isin(names)]["epoch"].nunique(),
        trials_left_out=len(best) + len(diverged_measured) - len(shown),
        unmeasured=tuple(trial_label(record, trial) for trial in diverged if trial["trial"] not in measured),
        undrawable=len(visible) - len(drawable),
        has_expectation=bool(expected),
    )


def epoch_shades(count: int) -> dict[str, list[str]]:
    """Returns ``{"light": [colour of each epoch], "dark": […]}``; later epochs have a higher contrast to the page."""
    from plotly.colors import sample_colorscale

    return {
        theme: list(
            sample_colorscale("Blues", [low + (high - low) * i / max(1, count - 1) for i in range(count)])
        )
        for theme, (low, high) in {"light": _LIGHT_THEME_RANGE, "dark": _DARK_THEME_RANGE}.items()
    }


def epoch_label(epoch: int) -> str:
    """Formats an epoch: ``initialisation`` or ``epoch 3``."""
    return f"epoch {epoch}" if epoch else "initialisation"


def _best_trials(record: StudyRecord, measured: set[str]) -> list[tuple[Row, str]]:
    """Returns one measured trial for each stratum, and the reason.

    This is the best setting's first seed if it was measured, else the trial that has trained furthest.
    """
    best = {
        tuple(answer.best.point[field] for field in record.conditions): answer.best.point
        for answer in best_per_stratum(record)
    }
    found: list[tuple[Row, str]] = []
    trials = [row for row in record.trials.to_dict("records") if row["trial"] in measured]
    for stratum in strata(record):
        rivals = [row for row in trials if _is_at(row, stratum)]
        point = best.get(tuple(stratum.values()))
        winners = [] if point is None else [row for row in rivals if _is_at(row, point)]
        ahead = [row for row in rivals if row["state"] != DIVERGED and not math.isnan(row["last_top1"])]
        if winners:
            found.append((winners[0], "best setting"))
        elif ahead:
            found.append((max(ahead, key=lambda row: float(row["last_top1"])), "highest top-1"))
    return found


def _chosen_epochs(signal: pd.DataFrame) -> list[int]:
    """Returns at most :data:`EPOCHS_AT_MOST` evenly spaced epochs, and the last measurement of each trial."""
    every = sorted({int(epoch) for epoch in signal["epoch"]})
    count = min(EPOCHS_AT_MOST, len(every))
    chosen = {every[round(i * (len(every) - 1) / max(1, count - 1))] for i in range(count)}
    return sorted(chosen | {int(epoch) for epoch in signal.groupby("trial")["epoch"].max()})


def _figure(signal: pd.DataFrame, epochs: Sequence[int], variance_range: tuple[float, float]) -> Figure:
    by_epoch = {epoch: rows.to_dict("records") for epoch, rows in signal.groupby("epoch")}
    measured = [epoch for epoch in epochs if epoch in by_epoch]
    traces = [_curve(by_epoch[epoch], epoch, epochs.index(epoch)) for epoch in measured]
    # The expectation changes with the skip gains. More than its beginning and its end would hide the curves.
    first, last = ([row["expected_variance"] for row in by_epoch[measured[i]]] for i in (0, -1))
    for epoch, dash in [(measured[0], "dot"), (measured[-1], "dash")][: 1 if first == last else 2]:
        if any(_has_logarithm(row["expected_variance"]) for row in by_epoch[epoch]):
            traces.append(_expectation(by_epoch[epoch], epoch, dash))
    blocks = signal.drop_duplicates("depth").sort_values("depth").to_dict("records")
    decades = variance_range[1] - variance_range[0]
    step = math.ceil(len(blocks) / NAMED_BLOCKS)
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": "depth"},
                "tickmode": "array",
                "tickvals": [row["depth"] for row in blocks][::step],
                "ticktext": [row["block"] for row in blocks][::step],
                "tickangle": -45,
            },
            "yaxis": {
                "title": {"text": "variance of activations"},
                "type": "log",
                "range": list(variance_range),
                # Ticks at 1, 2 and 5 times powers of ten, only at powers of ten, or at fewer places.
                "dtick": "D2" if decades < 3 else 1 if decades < 9 else None,
                "exponentformat": "power",
            },
        },
    }


def _curve(rows: Sequence[Row], epoch: int, shade: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": epoch_label(epoch),
        "x": [row["depth"] for row in rows],
        "y": [_drawn(row["variance"]) for row in rows],
        "line": {"width": 1.8},
        "marker": {"size": 4.5, "symbol": "circle" if epoch else "circle-open"},
        "hovertext": [
            f"{row['block']}, {epoch_label(epoch)}\nvariance {row['variance']:.3g}"
            + ("" if math.isnan(row["expected_variance"]) else f", expected {row['expected_variance']:.3g}")
            + f"\nmean square {row['mean_square']:.3g}"
            for row in rows
        ],
        "hoverinfo": "text",
        "meta": {"shade": shade},
    }


def _expectation(rows: Sequence[Row], epoch: int, dash: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{epoch_label(epoch)}, expected",
        "x": [row["depth"] for row in rows],
        "y": [_drawn(row["expected_variance"]) for row in rows],
        "line": {"width": 1.6, "dash": dash},
        "hoverinfo": "skip",
        "meta": {"reference": True},
    }


def _variance_range(signal: pd.DataFrame) -> tuple[float, float]:
    """Returns a range for a log axis (exponents of 10) that contains all variances and spans at least a decade."""
    values = [value for value in [*signal["variance"], *signal["expected_variance"]] if _has_logarithm(value)]
    low, high = (math.log10(min(values)), math.log10(max(values))) if values else (0.0, 0.0)
    margin = max(0.06 * (high - low), (1 - (high - low)) / 2)
    return low - margin, high + margin


def _is_at(trial: Row, point: Mapping[str, Any]) -> bool:
    return all(trial[field] == value for field, value in point.items())


def _has_logarithm(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _drawn(value: float) -> float | None:
    return value if _has_logarithm(value) else None
