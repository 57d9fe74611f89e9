"""Collects the contents of a study's report, section by section, for ``templates/report.html.jinja``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

from dashboards.effects_section import EffectsSection, effects_section
from dashboards.figures.budget_chart import budget_chart
from dashboards.figures.clipping_charts import ClippingCharts, clipping_charts
from dashboards.figures.level_styles import Look, looks_of
from dashboards.figures.setting_charts import (
    SETTING,
    SettingsChart,
    epochs_of,
    heat_map,
    setting_outcomes,
    settings_charts,
)
from dashboards.figures.signal_charts import SignalCharts, epoch_label, epoch_shades, signal_charts
from dashboards.figures.time_charts import (
    BEST_CURVES,
    CURVES_AT_MOST,
    END_MARKS,
    accuracy_against_time,
    has_points,
    levels,
    state_words,
)
from dashboards.measurement import measurement, shared_recipe
from dashboards.page import Chart, Legend, legend_entry
from dashboards.report_tables import (
    HeatTable,
    Table,
    all_trials,
    answers_table,
    first_of,
    heat_table,
    left_out_table,
    reruns_table,
    trials_table,
)
from nfnet_ray.analysis import BestSetting, StudyRecord, best_setting, setting_results, time_sentences
from nfnet_ray.analysis.comparability import comparability
from nfnet_ray.analysis.frontier import BUDGET
from nfnet_ray.analysis.health import HealthCard, health_cards
from nfnet_ray.metric import METRIC
from nfnet_ray.tracking.trial_progress import ENDED, LOST
from nfnet_ray.wording import agree, count, duration

SILENCE_SECONDS = 15 * 60.0
"""The time without a recorded event after which the driver of a study may be dead."""


@dataclass(frozen=True)
class Notice:
    """A notice at the top of the report of a study that is not complete.

    Attributes:
        as_of: the time of writing of the page; empty if the study has ended.
    """

    title: str
    text: str
    as_of: str


@dataclass(frozen=True)
class Answer:
    """The answer in a sentence, with a table of the best value under each condition if there are several."""

    sentence: str
    table: Table | None = None
    caution: str = ""


@dataclass(frozen=True)
class SettingsSection:
    """The accuracy of every setting: charts, and a heat map if at least two fields were swept."""

    charts: tuple[Chart, ...]
    caption: str
    heat_table: HeatTable | None


@dataclass(frozen=True)
class CurvesSection:
    """Accuracy against training time. ``budgets``: the accuracy of complete schedules of different lengths."""

    legend: Legend | None
    budgets: Chart | None
    charts: tuple[Chart, ...]
    notes: str


@dataclass(frozen=True)
class SignalSection:
    """Variance over depth. ``epochs`` are the labels of the shades, in order."""

    charts: tuple[Chart, ...]
    epochs: tuple[str, ...]
    has_expectation: bool
    remarks: str


@dataclass(frozen=True)
class ClippingSection:
    """What AGC clips, and the clip factors to try next."""

    charts: tuple[Chart, ...]
    table: Table
    suggestions: tuple[tuple[str, str], ...]
    command: str
    remarks: str


@dataclass(frozen=True)
class Report:
    """Everything that a report shows; ``looks`` and ``shades`` are the colours of levels and of epochs."""

    name: str
    question: str
    command: str
    started: str
    notice: Notice | None
    warnings: Sequence[str]
    answer: Answer
    health: Sequence[HealthCard]
    settings: SettingsSection | None
    effects: EffectsSection | None
    curves: CurvesSection
    clipping: ClippingSection | None
    signal: SignalSection | None
    trials_title: str
    trials: Table
    reruns: Table | None
    left_out: Table | None
    measurement: Sequence[tuple[str, str]]
    recipe: Sequence[tuple[str, str]]
    notes: Sequence[str]
    tags: Sequence[tuple[str, str]]
    looks: Sequence[Look]
    shades: Mapping[str, Sequence[str]]

    @property
    def charts(self) -> list[Chart]:
        """The charts of all sections. A placeholder on the page without its figure would stop the page's script."""
        return list(_charts_in(self))


def _charts_in(part: object) -> Iterator[Chart]:
    if isinstance(part, Chart):
        yield part
    elif isinstance(part, tuple | list):
        for item in part:
            yield from _charts_in(item)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from _charts_in(getattr(part, field.name))


def report_facts(record: StudyRecord, now: float) -> Report:
    """Returns the report of a study in its state at ``now`` (Unix seconds)."""
    silence = now - record.last_event
    record = replace(record, is_silent=record.state == "unfinished" and silence >= SILENCE_SECONDS)
    best = best_setting(record)
    signal = signal_charts(record)
    clipping = clipping_charts(record)
    return Report(
        name=record.study["name"],
        question=record.study["question"],
        command="\n".join([record.study["command"], *record.extensions]),
        started=time.strftime("%d %B %Y", time.gmtime(record.started)),
        notice=_notice(record, now),
        warnings=comparability(record).sentences(),
        answer=_answer(record, best),
        health=health_cards(record),
        settings=settings_section(record, best),
        effects=effects_section(record),
        curves=curves_section(record),
        clipping=clipping_section(clipping) if clipping else None,
        signal=signal_section(signal) if signal else None,
        trials_title=all_trials(record),
        trials=trials_table(record, best),
        reruns=reruns_table(record),
        left_out=left_out_table(record),
        measurement=measurement(record),
        recipe=shared_recipe(record),
        notes=record.notes,
        tags=list(record.tags.items()),
        looks=looks_of(levels(record)),
        shades=epoch_shades(len(signal.epochs) if signal else 0),
    )


def _notice(record: StudyRecord, now: float) -> Notice | None:
    if record.state == "finished":
        return None
    ended = int(record.trials["state"].isin(ENDED).sum())
    have_ended = f"{ended:,} of {count(len(record.trials), 'trial')} {agree(ended, 'has', 'have')} ended"
    if record.state == "interrupted":
        why = f", as {record.reason}" if record.reason else ""
        return Notice("Not complete.", f"The study was interrupted{why}: {have_ended}.", "")
    as_of = time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(now))
    if not record.is_silent:
        return Notice("Running.", f"{have_ended}.", as_of)
    ago = duration(now - record.last_event)
    return Notice("Running, or cut off.", f"{have_ended}; the last event was recorded {ago} ago.", as_of)


def _answer(record: StudyRecord, best: BestSetting | None) -> Answer:
    if best is not None:
        sentences = [*time_sentences(record), best.sentence()]
        return Answer(" ".join(f"{said}." for said in sentences), answers_table(record), best.caution())
    number = len(record.trials)
    counts = record.trials["state"].value_counts()
    if len(counts) == 1 and counts.index[0] in LOST:
        who = f"Every one of the {number:,} trials" if number > 1 else "The trial"
        return Answer(f"{who} {counts.index[0]}.")
    states = ", ".join(f"{many:,} {state_words(record, str(state))}" for state, many in counts.items())
    yet = "" if record.state == "finished" else " yet"
    return Answer(f"No trial can be compared{yet}: of {number:,}, {states}.")


def settings_section(record: StudyRecord, best: BestSetting | None) -> SettingsSection | None:
    if BUDGET in record.fields:  # the chart of budgets shows each of them
        return None
    outcomes = setting_outcomes(record, setting_results(record))
    charts = settings_charts(record, outcomes)
    if not charts:
        return None
    settings_in_all = {
        tuple(trial[field] for field in record.fields) for trial in record.trials.to_dict("records")
    }
    cells = heat_map(record, outcomes)
    return SettingsSection(
        charts=tuple(
            Chart(
                id=f"settings-{number}" if number else "settings",
                figure=chart.figure,
                label=f"Validation top-1 of each setting against {record.names.get(chart.field, SETTING)}",
                title=", ".join(f"{letter} {label}" for letter, label in chart.strata),
            )
            for number, chart in enumerate(charts)
        ),
        caption=_settings_caption(record, charts[0], len(settings_in_all) - len(outcomes)),
        heat_table=heat_table(record, best, cells) if cells else None,
    )


def _settings_caption(record: StudyRecord, settings: SettingsChart, unmeasured: int) -> str:
    marks = []
    if settings.has_finished:
        interval = ", with its 95% interval" if settings.has_intervals else ""
        marks.append(f"solid: after the last epoch{interval}")
    if settings.partial_epochs:
        epochs = ", ".join(f"after {epochs_of(record, epochs)}" for epochs in settings.partial_epochs)
        marks.append(f"hollow: {epochs}, stopped early or not finished yet")
    if settings.has_lost:
        marks.append("✕ below: diverged or failed")
    caption = f"{'; '.join(marks)}.".capitalize()
    if unmeasured:
        caption += f" {count(unmeasured, 'setting').capitalize()} without a measured epoch."
    return caption


def curves_section(record: StudyRecord) -> CurvesSection:
    panels = accuracy_against_time(record)
    if not any(panel.curves for panel in panels):
        return CurvesSection(None, None, (), "No trial has finished an epoch.")
    summarised = any(panel.summarised for panel in panels)
    has_curve = record.trials["trial"].isin(record.epochs["trial"][record.epochs[METRIC].notna()])
    present = [state for state in END_MARKS if (record.trials["state"][has_curve] == state).any()]
    ends = dict.fromkeys(f"{END_MARKS[state][1]} {state_words(record, state)}" for state in present)
    notes = [f"Marks at the ends of curves: {', '.join(ends)}."] if ends else []
    if summarised:
        notes.append(
            f"Of more than {CURVES_AT_MOST} trials, only the {BEST_CURVES} with the highest final accuracy are drawn "
            "as curves. The bands behind them show the median, the middle 50% and the middle 90% of all trials "
            "that were still training at that time."
        )
    charts = tuple(
        Chart(
            id=f"time-{number}",
            figure=panel.figure,
            label=f"Validation top-1 against training time, {panel.title}".rstrip(", "),
            title=panel.title,
        )
        for number, panel in enumerate(panels)
    )
    more = ""
    if summarised:
        more = f"Show all {panels[0].curves:,} curves" if len(panels) == 1 else "Show all curves"
    budgets = budget_chart(record)
    chart = (
        Chart("budgets", budgets, "Validation top-1 of complete schedules against training time", "")
        if budgets
        else None
    )
    return CurvesSection(_legend(record, more), chart, charts, " ".join(notes))


def _legend(record: StudyRecord, more: str) -> Legend | None:
    """The values of the first swept field; None where there is nothing to choose."""
    all_levels = levels(record)
    if not all_levels and not more:
        return None
    looks = zip(all_levels.labels, looks_of(all_levels), strict=False)
    return Legend(
        name=SETTING if has_points(record) else record.names[record.fields[0]] if record.fields else "",
        entries=tuple(legend_entry(level, label, look) for level, (label, look) in enumerate(looks)),
        more=more,
        fewer=f"Show the best {BEST_CURVES} and the spread" if more else "",
    )


def clipping_section(charts: ClippingCharts) -> ClippingSection:
    return ClippingSection(
        charts=tuple(
            Chart(f"clipping-{number}", figure, f"Share of clipped units by layer and epoch, {title}", title)
            for number, (title, figure) in enumerate(charts.panels)
        ),
        table=charts.table,
        suggestions=charts.suggestions,
        command=charts.command,
        remarks=charts.remarks,
    )


def signal_section(charts: SignalCharts) -> SignalSection:
    remarks = []
    if charts.epochs_left_out:
        remarks.append("Some measured epochs are left out.")
    if charts.trials_left_out:
        verb = agree(charts.trials_left_out, "is", "are")
        remarks.append(
            f"{count(charts.trials_left_out, 'more measured trial')} of these kinds {verb} left out."
        )
    if charts.unmeasured:
        remarks.append(f"Diverged before the first measurement: {first_of(charts.unmeasured)}.")
    if charts.undrawable:
        remarks.append(
            f"Not drawn, because a log axis cannot show them: {count(charts.undrawable, 'variance')} of 0, "
            "infinity or NaN."
        )
    return SignalSection(
        charts=tuple(
            Chart(f"signal-{number}", figure, f"Variance of activations over depth, {title}", title)
            for number, (title, figure) in enumerate(charts.panels)
        ),
        epochs=tuple(map(epoch_label, charts.epochs)),
        has_expectation=charts.has_expectation,
        remarks=" ".join(remarks),
    )
