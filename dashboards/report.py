"""A study's report: one HTML file that says what was asked, what came out, and how sure that is.

    python -m dashboards.report STUDY [--output FILE]

STUDY is a study's directory, or its name under ./runs; the report is put into the directory as
``report.html``. The file needs nothing but itself: it can be mailed, archived, and read without a network.
Studies that are still running, were interrupted, or in which no trial finished have a report, too.
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import html
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dashboards.charts import (
    BEST_CURVES,
    CURVES_AT_MOST,
    END_MARKS,
    Figure,
    Panel,
    accuracy_against_time,
    duration,
    levels,
    state_words,
)
from dashboards.level_styles import Look, levels_of, looks_of
from dashboards.page import SCRIPT, STYLE
from dashboards.setting_charts import (
    HeatMap,
    Outcome,
    SettingsChart,
    epochs_of,
    heat_map,
    setting_outcomes,
    settings_chart,
)
from dashboards.signal_charts import SignalCharts, epoch_label, epoch_shades, signal_charts
from nfnet_ray.analysis import (
    BestSetting,
    StudyRecord,
    best_per_stratum,
    best_setting,
    load_study,
    setting_results,
)
from nfnet_ray.analysis.study_directory import find_study
from nfnet_ray.command_line.interruption import EXIT_INTERRUPTED, interruptible
from nfnet_ray.command_line.one_line_parser import EXIT_USER_ERROR, OneLineParser
from nfnet_ray.errors import UserError
from nfnet_ray.tracking.labels import value_label
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import count, speed

REPORT_FILE = "report.html"
SILENCE_SECONDS = 15 * 60.0
"""A study whose driver has recorded nothing for this long may have lost it."""
STRATA_AT_MOST = 12
"""Of more conditions than these the answer's table has the ones with the highest accuracy."""
NAMED_AT_MOST = 4
"""Of more settings than these a caption gives the number; the table names them."""

LAST, HIGHEST, SPEED = "top-1, last epoch", "top-1, highest epoch (optimistic)", "images/s"
PAGED_ABOVE = 50
"""A table of more trials than these is shown a page at a time (the page's script has the same number)."""
BEST_FIRST = (LAST, HIGHEST, SPEED)
"""Columns of which the first click shows the largest first."""

EVAL_CROPS = {
    "squash": "single crop “squash”: both sides resized to eval_size + 32 pixels, and the centre of that; "
    "images of eval_size whole",
    "central": "single crop “central”: the central square of eval_size / (eval_size + 32) of the shorter side; "
    "images of eval_size whole",
}
"""{value of ``data.eval_crop``: how a validation image was cut}."""

# The browser itself then refuses whatever would need a network.
_NOTHING_FROM_OUTSIDE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
)


def write_report(study_directory: Path, destination: Path | None = None) -> Path:
    """Write the report of the study in ``study_directory`` and return its path.

    The journal may grow meanwhile, and several processes or threads may write the same report: the destination is
    replaced in one step, so a reader never finds half a page. The page of a study that has not ended reloads itself.

    Args:
        destination: by default ``report.html`` in the study's directory.

    Raises:
        UserError: the directory holds no study that can be read, or ``destination`` cannot be written.
    """
    study_directory = find_study(study_directory)
    destination = destination or study_directory / REPORT_FILE
    page = _page(load_study(study_directory), time.time())
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # The driver of a running study and a person may both be writing.
        with whole_file(destination, "w", sync=False, several_writers=True) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"{destination} cannot be written: {error.strerror}; choose another place") from error
    return destination


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m dashboards.report", description="Write a study's report.")
    parser.add_argument("study", metavar="STUDY", help="a study's directory, or its name under ./runs")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"where to (default: {REPORT_FILE} in the study's directory)",
    )
    options = parser.parse_args(arguments)
    try:
        with interruptible():
            print(write_report(find_study(options.study), options.output))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("report: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _page(record: StudyRecord, now: float) -> str:
    from plotly.offline import get_plotlyjs

    study = record.study
    best = best_setting(record)
    panels = accuracy_against_time(record)
    figures: dict[str, Figure] = {f"time-{number}": panel.figure for number, panel in enumerate(panels)}
    outcomes = setting_outcomes(record, setting_results(record))
    settings = settings_chart(record, outcomes)
    if settings is not None:
        figures["settings"] = settings.figure
    signal = signal_charts(record)
    if signal is not None:
        figures |= {f"signal-{number}": figure for number, (_, figure) in enumerate(signal.panels)}
    shades = epoch_shades(len(signal.epochs) if signal else 0)
    data = json.dumps(
        # The time makes the page of a running study reload itself.
        {"written": now if record.state == "unfinished" else None, "figures": figures},
        allow_nan=False,
        separators=(",", ":"),
    )
    started = time.strftime("%d %B %Y", time.gmtime(record.started))
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_FROM_OUTSIDE}">\n',
            f"<title>{_text(study['name'])}: report</title>\n",
            f"<style>{STYLE}{_colors(looks_of(levels(record)), shades)}</style>\n</head>\n<body>\n<main>\n",
            f'<p class="overline">{_text(study["name"])} · {started}</p>\n<h1>{_text(study["question"])}</h1>\n',
            _warning(record, now),
            _answer(record, best),
            _settings(record, best, outcomes, settings) if settings is not None else "",
            _curves(record, panels),
            _signal(signal) if signal is not None else "",
            _trials(record, best),
            _measurement(record),
            "</main>\n",
            # "<" could end the element early.
            f'<script type="application/json" id="report">{data.replace("<", chr(92) + "u003c")}</script>\n',
            f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _colors(looks: Sequence[Look], shades: Mapping[str, Sequence[str]]) -> str:
    """The colours of levels and of epochs for the style sheet, from which the page's script has them as well."""

    def of(theme: str) -> str:
        colors = {f"--level-{number}": getattr(look, theme) for number, look in enumerate(looks)}
        colors |= {f"--shade-{number}": color for number, color in enumerate(shades[theme])}
        return " ".join(f"{name}: {color};" for name, color in colors.items())

    return (
        f":root {{ {of('light')} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root:not(.printing) {{ {of('dark')} }} }}\n"
    )


def _warning(record: StudyRecord, now: float) -> str:
    """What a reader has to know first of a study that is not complete."""
    if record.state == "finished":
        return ""
    ended = int(record.trials["state"].isin(["finished", "stopped", "diverged", "failed"]).sum())
    have_ended = f"{ended:,} of {count(len(record.trials), 'trial')} {'has' if ended == 1 else 'have'} ended"
    if record.state == "interrupted":
        title, what = "Not complete.", f"The study was interrupted: {have_ended}."
    elif now - record.last_event < SILENCE_SECONDS:
        title, what = "Running.", f"{have_ended}."
    else:
        title = "Running, or cut off."
        what = f"{have_ended}; the last news was {duration(now - record.last_event)} old."
    reloads = (
        f" As of <time>{time.strftime('%d %B %Y, %H:%M UTC', time.gmtime(now))}</time>."
        '<span class="reloads"> This page reloads itself.</span>'
        if record.state == "unfinished"
        else ""
    )
    return (
        f'<p class="warning" role="status"><strong>{title}</strong> {_text(what)} What follows is what is known so '
        f"far.{reloads}</p>\n"
    )


def _answer(record: StudyRecord, best: BestSetting | None) -> str:
    if best is None:
        counts = record.trials["state"].value_counts()
        states = ", ".join(
            f"{number:,} {state_words(record, str(state))}" for state, number in counts.items()
        )
        why = f"No trial can be compared yet: of {len(record.trials)}, {states}."
        if (record.trials["state"] == "diverged").all():
            number = len(record.trials)
            why = f"Every one of the {number:,} trials diverged." if number > 1 else "The trial diverged."
        return f'<section class="answer" aria-label="Answer">\n<p>{_text(why)}</p>\n</section>\n'
    return (
        f'<section class="answer" aria-label="Answer">\n<p>{_text(best.sentence())}.</p>\n'
        f'{_best_per_stratum(record)}<p class="note">{_text(best.caution())}</p>\n</section>\n'
    )


def _best_per_stratum(record: StudyRecord) -> str:
    """A table of the best value of the first swept field under each condition; nothing if there is but one."""
    answers = best_per_stratum(record)
    if len(answers) < 2:
        return ""
    question, *conditions = record.fields
    headings = [
        *(record.names[field] for field in conditions),
        f"best {record.names[question]}",
        "top-1",
        "95% interval",
        "not distinguishable from it",
    ]
    rows = []
    for answer in answers:
        values = [
            *(value_label(answer.best.point[field]) for field in conditions),
            value_label(answer.best.point[question]),
            _percent(answer.best.top1),
            f"{100 * answer.best.low:.1f} to {_percent(answer.best.high)}",
            _some([value_label(other.point[question]) for other in answer.within_noise], ", ") or "–",
        ]
        cells = (
            _cell(value, None, "" if heading == headings[-1] else "number")
            for heading, value in zip(headings, values, strict=True)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    head = "".join(
        f'<th scope="col"{"" if heading == headings[-1] else " class=number"}>{_text(heading)}</th>'
        for heading in headings
    )
    more = (
        f'<p class="note">The best {STRATA_AT_MOST} of {len(answers):,} conditions.</p>\n'
        if len(answers) > STRATA_AT_MOST
        else ""
    )
    best_first = sorted(range(len(answers)), key=lambda number: -answers[number].best.top1)[:STRATA_AT_MOST]
    shown = "".join(rows[number] for number in sorted(best_first))
    return (
        f'{_card_labels("best", headings)}<div class="scroll"><table id="best" class="cards">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{shown}</tbody>\n</table></div>\n{more}"
    )


def _curves(record: StudyRecord, panels: list[Panel]) -> str:
    figures = "".join(
        f"<figure{' class=single' if len(panels) == 1 else ''}>"
        + _figure_head(panel.title, f"time-{number}", panel.figure)
        + f'<div class="chart" id="time-{number}" role="img" aria-label="'
        f'{_text(f"Validation top-1 against training time, {panel.title}".rstrip(", "))}"></div></figure>\n'
        for number, panel in enumerate(panels)
    )
    present = dict.fromkeys(
        (END_MARKS[state][1], state_words(record, state))
        for state in END_MARKS
        if (record.trials["state"] == state).any()
    )
    notes = []
    if present:
        notes.append(
            f"The end of a curve: {', '.join(f'{letter} {meaning}' for letter, meaning in present)}."
        )
    if any(panel.summarised for panel in panels):
        notes.append(
            f"Where there are more than {CURVES_AT_MOST} trials, the {BEST_CURVES} with the highest last accuracy have "
            "a curve. Behind them is how the accuracies of all the trials that were still training at that time are "
            "spread: median, middle 50%, middle 90%."
        )
    return (
        "<section>\n<h2>Accuracy against training time</h2>\n"
        '<p class="note">Training time is that of the training steps alone; start-up, waiting for data, '
        "evaluation and checkpoints are not in it.</p>\n"
        f'{_legend(record, panels)}<div class="panels">\n{figures}</div>\n'
        + (f'<p class="note">{_text(" ".join(notes))}</p>\n' if notes else "")
        + "</section>\n"
    )


def _figure_head(title: str, chart: str, figure: Figure) -> str:
    """The title of a chart and, where there is something to look at closely, the button that does it."""
    zoom = (
        f'<button type="button" class="zoom" data-chart="{chart}"></button>'
        if figure["layout"]["meta"]["top"]
        else ""
    )
    return f'<div class="head"><h3>{_text(title)}</h3>{zoom}</div>' if title or zoom else ""


def _legend(record: StudyRecord, panels: list[Panel]) -> str:
    all_levels = levels(record)
    name = _text(record.names[record.fields[0]]) if record.fields else ""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-level="{number}">{_key(look, number)}'
        f"{_text(label)}</button>\n"
        for number, (label, look) in enumerate(zip(all_levels.labels, looks_of(all_levels), strict=False))
    )
    if any(panel.summarised for panel in panels):
        more = (
            f"Show all {max(panel.curves for panel in panels):,} curves"
            if len(panels) == 1
            else "Show all curves"
        )
        buttons += (
            f'<button type="button" class="all" aria-pressed="false" data-more="{more}" '
            f'data-fewer="Show the best {BEST_CURVES} and the spread"></button>\n'
        )
    if not buttons:
        return ""
    return (
        f'<div class="legend" role="group" aria-label="Show or hide values of {name}"><span>{name}</span>\n'
        f"{buttons}</div>\n"
    )


_MARK_PATHS = {
    "circle": "M15 2.5a3.5 3.5 0 1 0 .01 0z",
    "square": "M12 3h6v6h-6z",
    "diamond": "M15 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
    "triangle-up": "M15 2l4 7.5h-8z",
    "triangle-down": "M15 10l4-7.5h-8z",
}
_DASH_ARRAYS = {"solid": "", "dash": "6 3", "dashdot": "6 2 1.5 2", "longdash": "10 3", "dot": "1.5 2.5"}


def _key(look: Look, level: int) -> str:
    """A piece of a level's curve, for the legend."""
    return (
        f'<svg viewBox="0 0 30 12" aria-hidden="true" style="color: var(--level-{level})">'
        f'<path d="M0 6h30" stroke="currentColor" stroke-width="2" stroke-dasharray="{_DASH_ARRAYS[look.dash]}"/>'
        f'<path d="{_MARK_PATHS[look.symbol]}" fill="currentColor"/></svg>'
    )


def _settings(
    record: StudyRecord, best: BestSetting | None, outcomes: Sequence[Outcome], chart: SettingsChart
) -> str:
    """Every setting: a mark in a chart, and a cell in the table of the first two swept fields."""
    question = record.names[record.fields[0]]
    marks = []
    if chart.has_finished:
        marks.append("solid: after the last epoch, with its 95% interval")
    if chart.partial_epochs:
        epochs = ", ".join(f"after {epochs_of(record, epochs)}" for epochs in chart.partial_epochs)
        marks.append(f"hollow: {epochs}, as it was stopped early or has yet to finish")
    if chart.has_lost:
        marks.append("✕ below: diverged or failed")
    strata_words = ", ".join(f"{letter} {label}" for letter, label in chart.strata)
    missing = len({tuple(t[f] for f in record.fields) for t in record.trials.to_dict("records")}) - len(
        outcomes
    )
    caption = f"{'; '.join(marks)}.".capitalize() + (
        f" {count(missing, 'setting').capitalize()} without a measured epoch." if missing else ""
    )
    table = heat_map(record, outcomes)
    figure = (
        f"<figure{'' if table else ' class=single'}>"
        + _figure_head(strata_words, "settings", chart.figure)
        + f'<div class="chart" id="settings" role="img" aria-label="Validation top-1 of each setting against '
        f'{_text(question)}"></div>\n<figcaption>{_text(caption)}</figcaption></figure>\n'
    )
    body = f'<div class="beside">\n{figure}{_heat_map(record, best, table)}</div>\n' if table else figure
    return f"<section>\n<h2>Accuracy of every setting</h2>\n{body}</section>\n"


def _heat_map(record: StudyRecord, best: BestSetting | None, table: HeatMap) -> str:
    across, down = _text(record.names[table.across]), _text(record.names[table.down])
    known = [cell.top1 for row in table.cells for cell in row if cell is not None and cell.kind == "finished"]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def cell(outcome: Outcome | None) -> str:
        if outcome is None:
            return '<td class="unknown">–</td>'
        title = f' title="{_text(outcome.state)}"'
        if outcome.kind == "lost":
            return f'<td class="lost"{title}>✕</td>'
        if outcome.kind == "partial":
            epochs = f"{outcome.epochs} of {record.study['epochs']}"
            return f'<td class="partial"{title}>{_percent(outcome.top1)}<small>after {epochs}</small></td>'
        share = 0.12 + 0.88 * (outcome.top1 - low) / (high - low) if high > low else 1.0
        marked = ' class="best"' if best is not None and outcome.point == best.best.point else ""
        return f'<td{marked} style="--share: {share:.2f}">{_percent(outcome.top1)}</td>'

    rows = "".join(
        f'<tr><th scope="row">{_text(label)}</th>{"".join(map(cell, row))}</tr>\n'
        for label, row in zip(table.rows.labels, table.cells, strict=True)
    )
    head = "".join(f'<th scope="col">{_text(label)}</th>' for label in table.columns.labels)
    notes = ["Coloured: after the last epoch; only these can be compared with each other."]
    if table.others or table.grouped:
        grouped = ["the values in a group"] if table.grouped else []
        notes.append(f"A cell is the best over {' and '.join([*table.others, *grouped])}.")
    return (
        f'<figure><div class="head"><h3>{down} (down) × {across} (across)</h3></div>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Accuracy by {across} and {down}">\n'
        f'<table class="heat">\n<thead><tr><td class="unknown"></td>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>\n"
        f"<figcaption>{_text(' '.join(notes))}</figcaption></figure>\n"
    )


def _signal(charts: SignalCharts) -> str:
    figures = "".join(
        f"<figure{' class=single' if len(charts.panels) == 1 else ''}><h3>{_text(title)}</h3>"
        f'<div class="chart" id="signal-{number}" role="img" aria-label="'
        f'{_text(f"Variance of activations over depth, {title}")}"></div></figure>\n'
        for number, (title, _) in enumerate(charts.panels)
    )
    keys = "".join(
        f'<span class="key" data-shade="{number}"><i style="color: var(--shade-{number})"></i>'
        f"{epoch_label(epoch)}</span>\n"
        for number, epoch in enumerate(charts.epochs)
    )
    if charts.has_expectation:
        keys += (
            '<span class="key" data-line="dot"><i></i>expected by design at the first measurement</span>\n'
            '<span class="key" data-line="dash"><i></i>expected at the last, with the skip gains of then</span>\n'
        )
    remarks = [
        "Some measured epochs are left out." if charts.epochs_left_out else "",
        f"{count(charts.trials_left_out, 'more measured trial')} of these kinds "
        f"{'is' if charts.trials_left_out == 1 else 'are'} left out."
        if charts.trials_left_out
        else "",
        f"Diverged before the first measurement: {_some(charts.unmeasured)}." if charts.unmeasured else "",
        f"Not drawn, as a log axis has no place for them: {count(charts.undrawable, 'variance')} of 0, "
        "infinity or not a number."
        if charts.undrawable
        else "",
    ]
    return (
        "<section>\n<h2>Signal propagation</h2>\n"
        '<p class="note">How large the activations are between the image and the classifier, as training goes on: '
        "the variance of a channel over images and pixels, mean over channels, on some validation images, of the "
        "weights as they are trained. Shown are the best setting under each condition, and trials that diverged, "
        "which have a scale of their own.</p>\n"
        f'<div class="legend">{keys}</div>\n<div class="panels">\n{figures}</div>\n'
        + (f'<p class="note">{_text(said)}</p>\n' if (said := " ".join(filter(None, remarks))) else "")
        + "</section>\n"
    )


def _trials(record: StudyRecord, best: BestSetting | None) -> str:
    with_seeds = len(record.study["seeds"]) > 1 and not record.trials["seed"].isna().any()
    fields = [(field, record.names[field]) for field in record.fields]
    columns = [
        *((name, "number" if levels_of(record.trials[field]).ordered else "") for field, name in fields),
        *([] if fields else [("trial", "")]),
        *([("seed", "number")] if with_seeds else []),
        (LAST, "number"),
        (HIGHEST, "number"),
        ("epochs", "number"),
        ("training time", "number"),
        (SPEED, "number"),
        ("start-up", "number"),
        ("state", ""),
    ]
    trials = record.trials.to_dict("records")
    paged = len(trials) > PAGED_ABOVE
    if paged:
        trials.sort(
            key=lambda trial: -math.inf if math.isnan(trial["last_top1"]) else trial["last_top1"],
            reverse=True,
        )
    rows = []
    for number, trial in enumerate(trials):
        is_best = best is not None and all(trial[field] == best.best.point[field] for field in record.fields)
        values = [
            *((value_label(trial[field]), trial[field]) for field, _ in fields),
            *([] if fields else [(trial["trial"], trial["trial"])]),
            *([(str(int(trial["seed"])), int(trial["seed"]))] if with_seeds else []),
            (_percent(trial["last_top1"]), trial["last_top1"]),
            (_percent(trial["best_top1"]), trial["best_top1"]),
            (str(trial["epochs"]), trial["epochs"]),
            (duration(trial["train_seconds"]), trial["train_seconds"]),
            (_speed(trial["images_per_second"]), trial["images_per_second"]),
            (duration(trial["startup_seconds"]), trial["startup_seconds"]),
            (state_words(record, trial["state"]), trial["state"]),
        ]
        cells = [
            _cell(shown, value, kind, trial["reason"] if name == "state" else "")
            for (name, kind), (shown, value) in zip(columns, values, strict=True)
        ]
        marked = (' class="best"' if is_best else "") + (" hidden" if number >= PAGED_ABOVE else "")
        name = _text(trial["trial"])
        rows.append(f'<tr data-trial="{name}"{marked}>{"".join(cells)}</tr>\n')
    header = "".join(
        f'<th scope="col"{f" class={kind}" if kind else ""}'
        f"{' data-first=descending' if name in BEST_FIRST else ''}>"
        f'<button type="button">{_text(name)}</button></th>'
        for name, kind in columns
    )
    notes = ["The best setting is in bold."] if best else []
    notes += ["Best first."] if paged else []
    pager = (
        '<div class="pager"><input type="search" placeholder="Filter, for example: finished 0.02" '
        'aria-label="Show only trials with these words"><button type="button">← Previous</button>'
        '<button type="button">Next →</button></div>\n'
        '<p class="note rows" role="status"></p>\n'
        if paged
        else ""
    )
    return (
        f"<section>\n<h2>{_all_trials(record)}</h2>\n"
        f'<p class="note">{" ".join(notes)} <span class="screen">Click a heading to sort.</span></p>\n{pager}'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of all trials">\n'
        f'{_card_labels("trials", [name for name, _ in columns])}<table id="trials" class="cards">\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n"
        "</table>\n</div>\n</section>\n"
    )


def _all_trials(record: StudyRecord) -> str:
    number = len(record.trials)
    return f"All {count(number, 'trial')}" if number > 1 else "The trial"


def _measurement(record: StudyRecord) -> str:
    study, data, hardware = record.study, record.study["data"], record.study["hardware"]
    versions = study["versions"]
    seeds = ", ".join(map(str, study["seeds"]))
    facts = [
        (
            "Data",
            f"{data['name']}: {count(data['classes'], 'class')}, {data['train_images']:,} training and "
            f"{count(data['validation_images'], 'validation image')}; fingerprint {data['fingerprint']}",
        ),
        (
            "Trials",
            f"{count(len(study['seeds']), 'seed')} ({seeds}); {count(study['epochs'], 'epoch')} each{_halving(record)}",
        ),
        ("Damaged images", _damaged(record)),
        ("Accuracy", _accuracy(record)),
        ("Precision", str(study["recipe"].get("precision", ""))),
        (
            "Hardware",
            f"{hardware['description']} ({_amount(hardware['cpus'], 'CPU')}, {_amount(hardware['gpus'], 'GPU')}, "
            f"{hardware['memory_gib']:.0f} GiB memory)",
        ),
        (
            "Time",
            f"over all trials: {_phases(record)}"
            + (f"; {duration(record.wall_seconds)} from start to end" if record.wall_seconds else ""),
        ),
        (
            "Versions",
            ", ".join(
                f"{name} {version}" for name, version in versions.items() if version and name != "dirty"
            )
            + (" with uncommitted changes" if versions.get("dirty") else ""),
        ),
    ]
    recipe = "".join(_fact(name, value_label(value)) for name, value in study["recipe"].items())
    return (
        f"<section>\n<h2>How it was measured</h2>\n<dl>\n{''.join(_fact(*fact) for fact in facts if fact[1])}"
        f"</dl>\n<h3>To repeat it</h3>\n<pre><code>{_text(study['command'])}</code></pre>\n"
        f"<details><summary>The recipe that all trials share</summary>\n<dl>\n{recipe}</dl>\n</details>\n</section>\n"
    )


def _accuracy(record: StudyRecord) -> str:
    """Of which weights and of which part of an image the accuracies are."""
    decays, crops = (_values(record, name) for name in ("optimizer.ema.decay", "data.eval_crop"))
    words = []
    averaged = [decay for decay in decays if decay is not None]
    if averaged:
        words.append(
            f"of the averaged weights (EMA, decay {', '.join(map(value_label, averaged))})"
            + (", without EMA of the weights themselves" if None in decays else "")
        )
    elif decays:
        words.append("of the weights after the last step of an epoch")
    words += [EVAL_CROPS.get(crop, str(crop)) for crop in crops]
    return "; ".join(words)


def _damaged(record: StudyRecord) -> str:
    """How many images the trials left out for being damaged; nothing where they found none."""
    words = {"damaged_train_images": "training", "damaged_validation_images": "validation"}
    most = {words[name]: record.epochs[name].max() for name in words if name in record.epochs}
    parts = [count(int(number), f"{split} image") for split, number in most.items() if number > 0]
    return f"left out, at most in a trial: {' and '.join(parts)}" if parts else ""


def _values(record: StudyRecord, name: str) -> list[Any]:
    """The values that a Recipe field had in the study; none where the journal is older than the field."""
    recipe = record.study["recipe"]
    return list(record.study["space"].get(name, [recipe[name]] if name in recipe else []))


def _halving(record: StudyRecord) -> str:
    halving = record.study["halving"]
    if halving is None:
        return ""
    return (
        f", unless stopped early: at epoch {halving['grace_epochs']} and at each "
        f"{halving['reduction_factor']:g}-fold of it, only the best 1/{halving['reduction_factor']:g} "
        "under the same conditions went on (successive halving)"
    )


def _phases(record: StudyRecord) -> str:
    """Where the seconds of all trials went, the largest part first."""
    words = {
        "train_seconds": "training",
        "data_wait_seconds": "waiting for data",
        "eval_seconds": "evaluation",
        "checkpoint_seconds": "checkpoints",
        "startup_seconds": "start-up",
    }
    last = record.epochs.drop_duplicates("trial", keep="last")
    totals = {words[name]: float(last[name].sum()) for name in words if name in last}
    return ", ".join(
        f"{phase} {duration(seconds)}" for phase, seconds in sorted(totals.items(), key=lambda item: -item[1])
    )


def _amount(number: float, noun: str) -> str:
    """A number that may be a fraction, with its noun; a whole one is written as :func:`count` does."""
    return count(int(number), noun) if number == int(number) else f"{number:g} {noun}s"


def _some(labels: Sequence[str], separator: str = "; ") -> str:
    """The labels, or, of many, the first ones and how many more there are."""
    if len(labels) <= NAMED_AT_MOST:
        return separator.join(labels)
    return f"{separator.join(labels[:NAMED_AT_MOST])} and {len(labels) - NAMED_AT_MOST} more"


def _fact(name: str, value: str) -> str:
    return f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>\n"


def _cell(shown: str, value: Any, kind: str, remark: str = "") -> str:
    """A cell of a table; ``data-sort`` holds what the page's script sorts by, empty where nothing is known."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    note = f'<span class="reason">{_text(remark)}</span>' if remark else ""
    attribute = f' class="{kind}"' if kind else ""
    return f'<td{attribute} data-sort="{"" if missing else _text(value)}">{_text(shown)}{note}</td>'


def _card_labels(table: str, headings: Sequence[str]) -> str:
    """What the cells of a table are called where the page is narrow and a row becomes a card."""
    rules = "".join(
        f"#{table} td:nth-child({number})::before {{ content: {_css_string(f'{heading} ')}; }}\n"
        for number, heading in enumerate(headings, start=1)
    )
    return f"<style>@media screen and (max-width: 40rem) {{\n{rules}}}</style>\n"


def _css_string(text: str) -> str:
    """A string in a style sheet, in which nothing can end the string or the element that it is in."""
    return '"' + "".join(c if c.isalnum() or c in " ,._-()/" else f"\\{ord(c):x} " for c in text) + '"'


def _percent(fraction: float) -> str:
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}%"


def _speed(images_per_second: float) -> str:
    return "–" if math.isnan(images_per_second) else speed(images_per_second)


def _text(value: object) -> str:
    return html.escape(str(value))


if __name__ == "__main__":
    sys.exit(main())
