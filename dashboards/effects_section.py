"""Builds the report's section on the effects of fields, which shows only what the study can support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashboards.figures.effect_charts import (
    below_the_chart,
    best_so_far_figure,
    importance_figure,
    isolation_figure,
    pair_figure,
    response_figure,
)
from dashboards.figures.parallel_coordinates import parallel_coordinates
from dashboards.figures.setting_charts import setting_outcomes
from dashboards.figures.time_charts import differ_in_seeds, has_points
from dashboards.page import Chart
from nfnet_ray.analysis import StudyRecord, setting_results
from nfnet_ray.analysis.effects.best_so_far import ORDERS
from nfnet_ray.analysis.effects.importance import importance_sentence
from nfnet_ray.analysis.effects.response import LEAST_VALUES, Response
from nfnet_ray.analysis.effects.sentences import interaction_sentence, the_first
from nfnet_ray.study.cost.spending import accelerator_word
from nfnet_ray.tracking.labels import stratum_label
from nfnet_ray.tracking.swept import swept_range
from nfnet_ray.tracking.trial_progress import LOST
from nfnet_ray.wording import agree, count

if TYPE_CHECKING:
    import pandas as pd

RESPONSES_AT_MOST = 6
FEWEST_SETTINGS = 4
"""The fewest settings for a curve of the best accuracy so far."""


@dataclass(frozen=True)
class EffectChart:
    """A chart with the caption that explains it."""

    chart: Chart
    caption: str


@dataclass(frozen=True)
class EffectsSection:
    """The section. ``sentences`` describe what the charts show, and why an expected chart is missing."""

    charts: tuple[EffectChart, ...]
    sentences: tuple[str, ...]


def effects_section(record: StudyRecord) -> EffectsSection | None:
    """Returns the section of a study; None if no field was swept, for a list of points, or if nothing can be shown."""
    if not record.fields or has_points(record):
        return None
    responses = record.response()
    shares = record.importance()
    pairs = record.pairwise_effects()
    charts = [
        *_isolation(record),
        *_responses(responses),
        *_importance(record, shares),
        *_pair(record, pairs),
        *_parallel_coordinates(record),
        *_best_so_far(record),
    ]
    sentences = [
        *response_sentences(responses),
        importance_sentence(shares, record.names),
        interaction_sentence(pairs, record.names),
    ]
    told = tuple(f"{sentence}." for sentence in sentences if sentence)
    return EffectsSection(tuple(charts), told) if charts or told else None


def response_sentences(responses: Sequence[Response]) -> list[str]:
    """Returns a sentence for each response at the end, and one for those with too few values trained to the end."""
    told = the_first([one.sentence() for one in responses if one.is_end], RESPONSES_AT_MOST)
    rest = [one for one in responses if not one.is_end]
    if rest:
        first = rest[0]
        name = first.names[first.field]
        told.append(
            f"Response to {name}: a curve at the end needs {LEAST_VALUES} values, and early stopping left fewer"
            + (f" under {len(rest)} of {count(len(responses), 'condition')}" if len(responses) > 1 else "")
            + "; --early-stopping none trains all of them"
        )
    return told


def _isolation(record: StudyRecord) -> list[EffectChart]:
    if len(record.fields) < 2:
        return []
    field = record.fields[0]
    table = record.isolation()
    # With one setting for each value, this would be the same as the chart of all settings.
    if (table["compared"] > 0).sum() < 2 or table["settings"].max() < 2:
        return []
    name = record.names[field]
    others = {one: short for one, short in record.names.items() if one != field}
    figure = isolation_figure(table, name, others)
    hollow = any(trace["meta"]["tone"] == "quiet" for trace in figure["data"])
    caption = (
        f"For each {name} the best setting, whatever {_and(list(others.values()))} {agree(len(others), 'is', 'are')}; "
        "“of n”: of how many settings. The lower bound of the 95% interval allows for that choice."
    )
    if hollow:
        caption += " Hollow: none of them was trained to the end; after how many epochs is under the pointer."
    label = f"Best validation top-1 for each {name}"
    return [EffectChart(Chart("isolation", figure, label, f"The best for each {name}"), caption)]


def _responses(responses: Sequence[Response]) -> list[EffectChart]:
    found = []
    drawn = [one for one in responses if one.is_end and one.kind in ("inside", "edge")]
    for number, response in enumerate(drawn[:RESPONSES_AT_MOST]):
        figure = response_figure(response)
        name = response.names[response.field]
        stratum = stratum_label(response.stratum, response.names)
        title = f"Response to {name}{f', {stratum}' if stratum else ''}"
        caption = (
            f"A parabola{' in the logarithm' if response.is_logarithmic else ''} with its 95% band, over "
            f"{response.covers}; the diamond is the optimum with its 95% interval."
        )
        for shift in response.shifts:
            other = response.names[shift.field]
            caption += f" It is that at {other} {shift.middle:.2g}: the optimum depends on {other}."
        for shift in response.shifts[:1]:
            low, high = (f"{value:.2g}" for value in shift.values)
            caption += f" Dashed and dotted: the curve at {response.names[shift.field]} {low} and {high}."
        beyond = sum(not response.range_low <= point[0] <= response.range_high for point in response.points)
        if beyond:
            caption += (
                f" It is fitted from {response.range_low:.3g} to {response.range_high:.3g}: no parabola describes the "
                f"{count(beyond, 'setting')} beyond as well."
            )
        below = below_the_chart(response, figure)
        if below:
            caption += (
                f" {count(below, 'setting').capitalize()} {agree(below, 'lies', 'lie')} below the chart."
            )
        chart = Chart(f"response-{number}", figure, f"Fitted validation top-1 against {name}", title)
        found.append(EffectChart(chart, caption))
    return found


def _importance(record: StudyRecord, shares: pd.DataFrame) -> list[EffectChart]:
    if len(record.fields) < 2 or not shares["importance"].notna().any():
        return []
    rows = shares.dropna(subset=["importance"])
    parts = []
    for where, its in rows.groupby("where", sort=False):
        n, of = int(its["settings"].iloc[0]), int(its["of"].iloc[0])
        parts.append(f"{where} over {f'all {of:,}' if n == of else f'{n:,} of {of:,}'} settings")
    colours = ["Grey", "colour"] if len(parts) > 1 else ["Bars"]
    caption = "; ".join(f"{colour}: {part}" for colour, part in zip(colours, parts, strict=True))
    caption += ". Lines: 95% intervals. What is left to 100% are interactions, seeds and images."
    if len(parts) > 1:
        caption += (
            " Settings that reached the end were chosen by their accuracy: a field whose poor values are gone explains "
            "little there, however much it matters."
        )
    figure = importance_figure(rows, record.names)
    label = "Share of the differences in accuracy that each field explains"
    return [EffectChart(Chart("importance", figure, label, "Importance of each field"), caption)]


def _pair(record: StudyRecord, table: pd.DataFrame) -> list[EffectChart]:
    """Returns the pair of fields with the clearest interaction, unless the page already has its table of settings."""
    ranges = [one for one in record.fields if swept_range(record.study, one) is not None]
    if len(record.fields) < 2 or (len(record.fields) == 2 and not ranges):
        return []
    if table.empty:
        return []
    pairs = table.drop_duplicates(["field_a", "field_b"]).sort_values("p_value", kind="stable")
    a, b = (str(pairs[name].iloc[0]) for name in ("field_a", "field_b"))
    rows = table[(table["field_a"] == a) & (table["field_b"] == b)]
    one, other = record.names[a], record.names[b]
    p_value = float(rows["p_value"].iloc[0])
    caption = f"Fitted top-1 {rows['where'].iloc[0]}, where the other fields count alike."
    if not math.isnan(p_value):
        caption += (
            f" Of {count(len(pairs), 'pair')} of fields the one with the clearest interaction"
            if len(pairs) > 1
            else " Interaction"
        )
        caption += f" (p = {p_value:.2g}{', before allowing for the choice' if len(pairs) > 1 else ''})."
    figure = pair_figure(rows, record.names)
    label = f"Fitted validation top-1 by {one} and {other}"
    return [EffectChart(Chart("pair", figure, label, f"{one} (across) × {other} (up)"), caption)]


def _parallel_coordinates(record: StudyRecord) -> list[EffectChart]:
    outcomes = setting_outcomes(record, setting_results(record))
    figure = parallel_coordinates(record, outcomes)
    if figure is None:
        return []
    caption = "Each line is a setting."
    if any(trace["meta"]["tone"] == "accent" and trace["mode"] == "lines" for trace in figure["data"]):
        caption += " In colour: the best of those that reached the end."
    if any(outcome.kind != "finished" for outcome in outcomes):
        caption += (
            " Dotted: stopped early or not finished yet, at the accuracy so far. Lost: diverged or failed."
        )
    label = "Each setting as a line across its values and its validation top-1"
    return [EffectChart(Chart("parallel-coordinates", figure, label, "All fields at once"), caption)]


def _best_so_far(record: StudyRecord) -> list[EffectChart]:
    table = record.best_so_far()
    is_lost = record.trials["state"].isin(LOST).all()  # the best accuracy is then always that of chance
    if len(table) < FEWEST_SETTINGS or is_lost:
        return []
    gpus = record.study.get("worker", {}).get("gpus", 0)
    figure = best_so_far_figure(table, accelerator_word(gpus))
    if table["band"].iloc[0] == ORDERS:
        caption = (
            "The expected best of as many random settings, over all orders; the band holds 95% of the orders of the "
            "settings that were drawn. Other draws are not in it, and settings that were not drawn come first."
        )
    else:
        seeds = "seeds and images" if differ_in_seeds(record) else "images"
        caption = (
            f"In the order of the plan; the band is the 95% interval of the best so far over {seeds}. The settings "
            "were not drawn at random, so no other order is drawn."
        )
    label = "Best validation top-1 so far against the epochs of all trials"
    return [EffectChart(Chart("best-so-far", figure, label, "Best so far"), caption)]


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
