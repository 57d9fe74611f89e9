"""Collects the contents of the page of several studies for ``templates/several.html.jinja``."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dashboards.figures.budget_chart import budget_chart
from dashboards.figures.level_styles import Look, looks_of
from dashboards.figures.time_charts import END_MARKS, accuracy_against_time, levels, state_words
from dashboards.page import Chart, Legend, legend_entry
from dashboards.report_tables import Cell, Column, Row, Table, all_trials, trials_table
from dashboards.several.views import SERIES, budgets_view, curves_view, series_names
from nfnet_ray.analysis import StudyRecord, best_setting, time_sentences, time_to_target
from nfnet_ray.analysis.comparability import AxesGroup, Comparability, comparability, not_one_accuracy
from nfnet_ray.analysis.frontier import Curve, curves
from nfnet_ray.analysis.tables import STUDY
from nfnet_ray.wording import count, duration, in_a_row, percent

_TARGET_STEP = 200
"""Targets are multiples of half a point."""
_FRONTIER_AT_MOST = 20


@dataclass(frozen=True)
class StudyAnswer:
    """The question and the answer of one study."""

    name: str
    question: str
    sentences: tuple[str, ...]
    command: str
    started: str


@dataclass(frozen=True)
class Panels:
    """The results of trials that may share axes; ``title`` says what separates these from other trials."""

    title: str
    budgets: Chart | None
    targets: Table | None
    frontier: Table | None


@dataclass(frozen=True)
class Several:
    """All contents of the page."""

    title: str
    warnings: Sequence[str]
    remarks: Sequence[str]
    overall: Sequence[str]
    answers: Sequence[StudyAnswer]
    legend: Legend
    curves: Sequence[Chart]
    curve_notes: str
    groups: Sequence[Panels]
    conditions: Table | None
    trials_title: str
    trials: Table
    looks: Sequence[Look]

    @property
    def charts(self) -> list[Chart]:
        return [*self.curves, *(group.budgets for group in self.groups if group.budgets)]


def several_facts(record: StudyRecord) -> Several:
    """Returns the page of a record of several studies (:func:`nfnet_ray.analysis.load_study`)."""
    guard = comparability(record)
    names = series_names(record, guard)
    view = curves_view(record, guard, names)
    all_levels = levels(view)
    looks = looks_of(all_levels)
    panels = accuracy_against_time(view)
    summarised = any(panel.summarised for panel in panels)
    present = [state for state in END_MARKS if (record.trials["state"] == state).any()]
    marks = dict.fromkeys(f"{END_MARKS[state][1]} {state_words(record, state)}" for state in present)
    legend = Legend(
        name="series",
        entries=tuple(
            legend_entry(level, label, look)
            for level, (label, look) in enumerate(zip(all_levels.labels, looks, strict=False))
        ),
        more="Show all curves" if summarised else "",
        fewer="Show the best and the spread" if summarised else "",
    )
    charts = [
        Chart(
            id=f"time-{number}",
            figure=_with_own_time(_with_short_ends(panel.figure)),
            label=f"Validation top-1 against training time, {panel.title.strip()}".rstrip(", "),
            title=panel.title.strip(),
        )
        for number, panel in enumerate(panels)
    ]
    return Several(
        title=in_a_row(list(record.parts)),
        warnings=guard.sentences(),
        remarks=guard.remark_sentences(),
        overall=_overall(record),
        answers=[_answer(name, part) for name, part in record.parts.items()],
        legend=legend,
        curves=charts,
        curve_notes=f"Marks at the ends of curves: {', '.join(marks)}." if marks else "",
        groups=[
            _panels(record, guard, group, names, all_levels.index, number)
            for number, group in enumerate(guard.axes)
        ],
        conditions=_conditions(guard, record),
        trials_title=all_trials(record),
        trials=trials_table(
            replace(record, fields=(STUDY, *(field for field in record.fields if field != STUDY))), None
        ),
        looks=looks,
    )


def _with_short_ends(figure: dict[str, Any]) -> dict[str, Any]:
    """Shortens the labels at the ends of curves by the marks, for which there is only room in the legend."""
    for end in figure["layout"]["meta"]["ends"]:
        end["text"] = end["text"].partition(" · ")[0]
    return figure


def _with_own_time(figure: dict[str, Any]) -> dict[str, Any]:
    """Fits the axis of time to the panel's own curves, as these panels need no common axis."""
    times = [x for trace in figure["data"] if "level" in trace["meta"] for x in trace["x"] if x is not None]
    figure["layout"]["xaxis"]["range"] = [0, 1.04 * max(times, default=1.0)]
    return figure


def _overall(record: StudyRecord) -> list[str]:
    said = [f"{sentence}." for sentence in time_sentences(record) if _is_across(record, sentence)]
    if why := not_one_accuracy(record):
        return [*said, f"There is no best setting of all studies, as {why}."]
    best = best_setting(record)
    return [*said, *([f"Of all studies: {best.sentence()}."] if best else [])]


def _is_across(record: StudyRecord, sentence: str) -> bool:
    """Whether a sentence names two studies; sentences about one study are in that study's answer."""
    return sum(f"({name})" in sentence for name in record.parts) > 1


def _answer(name: str, part: StudyRecord) -> StudyAnswer:
    best = best_setting(part)
    sentences = [f"{said}." for said in (*time_sentences(part), *([best.sentence()] if best else []))]
    yet = "" if part.state == "finished" else " yet"
    return StudyAnswer(
        name,
        part.study["question"],
        tuple(sentences) or (f"No trial can be compared{yet}.",),
        "\n".join([part.study["command"], *part.extensions]),
        time.strftime("%d %B %Y", time.gmtime(part.started)),
    )


def _panels(
    record: StudyRecord,
    guard: Comparability,
    group: AxesGroup,
    series: Mapping[str, str],
    level_of: Mapping[Any, int],
    number: int,
) -> Panels:
    mine = replace(record, trials=record.trials[record.trials["trial"].isin(group.trials)])
    found = curves(mine)
    view = budgets_view(record, guard, group.trials)
    figure = budget_chart(view) if view is not None else None
    chart = None
    if figure is not None and view is not None:
        # The page has one look for each series, which the settings of a series share.
        own = levels(view)
        series_of = {trial[SERIES]: series[str(trial["trial"])] for trial in view.trials.to_dict("records")}
        for part in (*(trace["meta"] for trace in figure["data"]), *figure["layout"]["meta"]["ends"]):
            part["level"] = level_of[series_of[own.labels[part["level"]]]]
        _with_short_ends(figure)
        label = "Validation top-1 of complete schedules against training time"
        chart = Chart(f"budgets-{number}", figure, label, group.title)
    return Panels(group.title, chart, _targets(mine, found), _frontier(found))


def _targets(record: StudyRecord, found: Sequence[Curve]) -> Table | None:
    """Returns how long each series takes to reach several accuracies, with complete schedules."""
    by_series: dict[str, list[int]] = {}
    for number, curve in enumerate(found):
        network = curve.point.get("model.name")
        name = f"{network} ({curve.point[STUDY]})" if network is not None else str(curve.point[STUDY])
        by_series.setdefault(name, []).append(number)
    best = {
        name: max(b.mean_top1 for n in mine for b in found[n].budgets) for name, mine in by_series.items()
    }
    if len(best) < 2:
        return None
    reached = sorted(best.values(), reverse=True)
    targets = dict.fromkeys(
        math.floor(top1 * _TARGET_STEP + 1e-9) / _TARGET_STEP
        for top1 in (reached[0], reached[len(reached) // 2], reached[-1])
    )
    rows = []
    times: dict[float, list[Any]] = {
        target: time_to_target(record, target).to_dict("records") for target in targets
    }
    for name, mine in by_series.items():
        cells = [Cell(name)]
        for target in targets:
            seconds, text = min(_time_to(found[number], target, times[target][number]) for number in mine)
            cells.append(Cell(text, True, "" if math.isinf(seconds) else str(seconds)))
        rows.append(Row(tuple(cells)))
    note = (
        "The shortest training time of a complete schedule that reaches the accuracy: between budgets of a setting "
        "interpolated, with its 95% interval over seeds, and images where it is known which were right; elsewhere at "
        "most that of the fastest setting that reached it, as no shorter schedule was tried."
    )
    headings = (Column(f"to {percent(target)}", is_number=True) for target in targets)
    return Table((Column("series"), *headings), tuple(rows), note)


def _time_to(curve: Curve, target: float, row: Mapping[str, float]) -> tuple[float, str]:
    """Returns (seconds, the same in words) of a setting; ``row`` is from :func:`nfnet_ray.analysis.time_to_target`."""
    seconds, low, high = row["train_seconds"], row["low"], row["high"]
    if len(curve.budgets) > 1 and math.isfinite(seconds):
        interval = ""
        if math.isfinite(low) and low > 0:
            upper = (
                f"{duration(low)} to {duration(high)}" if math.isfinite(high) else f"{duration(low)} or more"
            )
            interval = f" ({upper})"
        return seconds, f"{duration(seconds)}{interval}"
    enough = [budget.mean_seconds for budget in curve.budgets if budget.mean_top1 >= target]
    if not enough:
        return math.inf, "–"
    shortest = min(enough)
    return shortest, f"at most {duration(shortest)}"  # a shorter schedule might have reached it, too


def _frontier(found: Sequence[Curve]) -> Table | None:
    """Returns the settings for which no faster setting is as accurate, fastest first."""
    points = sorted(
        (
            (budget.mean_seconds, budget.mean_top1, curve, budget)
            for curve in found
            for budget in curve.budgets
        ),
        key=lambda point: point[:2],
    )
    rows, highest = [], -1.0
    for seconds, top1, curve, budget in points:
        if top1 <= highest:
            continue
        highest = top1
        cells = (
            Cell(curve.label),
            Cell(f"{budget.epochs:,}", True),
            Cell(str(len(budget.top1)), True),
            Cell(duration(seconds), True),
            Cell(percent(top1), True),
        )
        rows.append(Row(cells))
    if not rows:
        return None
    dominated = len(points) - len(rows)
    note = f"{count(dominated, 'other setting')} took longer for no more accuracy." if dominated else ""
    columns = (
        Column("setting"),
        Column("epochs", is_number=True),
        Column("seeds", is_number=True),
        Column("training time", is_number=True),
        Column("top-1", is_number=True),
    )
    return Table(columns, tuple(rows[:_FRONTIER_AT_MOST]), note)


def _conditions(guard: Comparability, record: StudyRecord) -> Table | None:
    """Returns the conditions that differ, with their values in each study."""
    if not guard.differences:
        return None
    studies = dict(zip(record.trials["trial"], record.trials[STUDY], strict=True))
    rows = []
    for difference in guard.differences:
        values: dict[str, list[str]] = {}
        for group in difference.groups:
            for trial in group.trials:
                texts = values.setdefault(studies[trial], [])
                if group.fact.text not in texts:
                    texts.append(group.fact.text)
        weight = "unknown" if not difference.is_known else difference.weight
        cells = [
            Cell(difference.field.label),
            Cell(" and ".join(difference.field.touches)),
            Cell(
                {"apart": "own axes", "marked": "marked", "quiet": "remark", "unknown": "not recorded"}[
                    weight
                ]
            ),
            *(Cell("; ".join(values.get(name, ["is asked about"]))) for name in record.parts),
        ]
        rows.append(Row(tuple(cells)))
    columns = (Column("differs"), Column("affects"), Column("here"), *(Column(name) for name in record.parts))
    return Table(columns, tuple(rows))
