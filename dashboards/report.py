"""A study's report: one HTML file that says what was asked, what came out, and how sure that is.

    python -m dashboards.report STUDY [--output FILE]

STUDY is a study's directory, or its name under ./runs; the report is put into the directory as
``report.html``. The file needs nothing but itself: it can be mailed, archived, and read without a network.
Studies that are still running, were interrupted, or in which no trial finished have a report, too.
"""

from __future__ import annotations

from nfnet_ray.program import begin

if __name__ == "__main__":
    begin()  # first: what follows takes seconds to import

import contextlib
import html
import json
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dashboards.charts import (
    END_MARKS,
    STRATUM_MARKS,
    Figure,
    accuracy_against_time,
    duration,
    last_accuracy,
    levels,
    palettes,
    state_words,
    strata,
)
from dashboards.page import SCRIPT, STYLE
from dashboards.signal_charts import SignalCharts, epoch_label, epoch_shades, signal_charts
from dashboards.study_directory import find_study
from nfnet_ray.analysis import (
    StudyRecord,
    best_per_stratum,
    best_setting,
    load_study,
    setting_results,
)
from nfnet_ray.errors import UserError
from nfnet_ray.interruption import EXIT_INTERRUPTED, interruptible
from nfnet_ray.one_line_parser import EXIT_USER_ERROR, OneLineParser
from nfnet_ray.tracking.labels import point_label, value_label
from nfnet_ray.wording import count, speed

REPORT_FILE = "report.html"
SILENCE_SECONDS = 15 * 60.0
"""A study whose driver has recorded nothing for this long may have lost it."""
NAMED_AT_MOST = 4
"""Of more settings than these a caption gives the number; the table names them."""

LAST, HIGHEST, SPEED = "top-1, last epoch", "top-1, highest epoch (optimistic)", "images/s"
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
    destination = destination or study_directory / REPORT_FILE
    page = _page(load_study(study_directory), time.time())
    # Of this thread alone: the driver of a running study and a person may both be writing.
    scratch = destination.with_name(f".{destination.name}.{os.getpid()}-{threading.get_ident()}.writing")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(page, encoding="utf-8")
        scratch.replace(destination)
    except OSError as error:
        with contextlib.suppress(OSError):  # a part of it would take the room that is missing
            scratch.unlink()
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
    panels = accuracy_against_time(record)
    figures: dict[str, Figure] = {f"time-{number}": figure for number, (_, figure) in enumerate(panels)}
    last = last_accuracy(record)
    if last is not None:
        figures["last"] = last
    signal = signal_charts(record)
    if signal is not None:
        figures |= {f"signal-{number}": figure for number, (_, figure) in enumerate(signal.panels)}
    shades = epoch_shades(len(signal.epochs) if signal else 0)
    data = json.dumps(
        {
            # What makes the page reload itself.
            "written": now if record.state == "unfinished" else None,
            "palettes": palettes(record),
            "shades": shades,
            "figures": figures,
        },
        allow_nan=False,
    )
    started = time.strftime("%d %B %Y", time.gmtime(record.started))
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_FROM_OUTSIDE}">\n',
            f"<title>{_text(study['name'])}: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n",
            f'<p class="overline">{_text(study["name"])} · {started}</p>\n<h1>{_text(study["question"])}</h1>\n',
            _warning(record, now),
            _answer(record),
            _curves(record, panels),
            _last_accuracy(record) if last is not None else "",
            _signal(signal) if signal is not None else "",
            _trials(record),
            _measurement(record),
            "</main>\n",
            # "<" could end the element early.
            f'<script type="application/json" id="report">{data.replace("<", chr(92) + "u003c")}</script>\n',
            f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        ]
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


def _answer(record: StudyRecord) -> str:
    best = best_setting(record)
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
    rows = "".join(
        "<tr>"
        + "".join(_cell(value_label(answer.best.point[field]), None, "number") for field in conditions)
        + _cell(value_label(answer.best.point[question]), None, "number")
        + _cell(_percent(answer.best.top1), None, "number")
        + _cell(f"{100 * answer.best.low:.1f} to {_percent(answer.best.high)}", None, "number")
        + _cell(
            ", ".join(value_label(other.point[question]) for other in answer.within_noise) or "–", None, ""
        )
        + "</tr>\n"
        for answer in answers
    )
    headings = [
        *(record.names[field] for field in conditions),
        f"best {record.names[question]}",
        "top-1",
        "95% interval",
    ]
    head = "".join(f'<th scope="col" class="number">{_text(heading)}</th>' for heading in headings)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}<th scope="col">not distinguishable from it</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>\n"
    )


def _curves(record: StudyRecord, panels: list[tuple[str, Figure]]) -> str:
    figures = "".join(
        f"<figure{' class=single' if len(panels) == 1 else ''}>"
        + (f"<h3>{_text(title)}</h3>" if title else "")
        + f'<div class="chart" id="time-{number}" role="img" aria-label="'
        f'{_text(f"Validation top-1 against training time, {title}".rstrip(", "))}"></div></figure>\n'
        for number, (title, _) in enumerate(panels)
    )
    present = dict.fromkeys(
        (END_MARKS[state][1], state_words(record, state))
        for state in END_MARKS
        if (record.trials["state"] == state).any()
    )
    marks = ", ".join(f"{letter} {meaning}" for letter, meaning in present)
    return (
        "<section>\n<h2>Accuracy against training time</h2>\n"
        '<p class="note">Training time is that of the training steps alone; start-up, waiting for data, '
        "evaluation and checkpoints are not in it.</p>\n"
        f'{_legend(record, panels)}<div class="panels">\n{figures}</div>\n'
        + (f'<p class="note">The end of a curve: {_text(marks)}.</p>\n' if marks else "")
        + "</section>\n"
    )


def _legend(record: StudyRecord, panels: list[tuple[str, Figure]]) -> str:
    values = levels(record)
    if not values:
        return ""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-level="{number}"'
        f"{' data-none' if value is None else ''}><i></i>{_text(value_label(value))}</button>\n"
        for number, value in enumerate(values)
    )
    name = record.names[record.fields[0]]
    zoom = any(figure["layout"]["meta"]["top"] for _, figure in panels)
    return (
        f'<div class="legend" role="group" aria-label="Show or hide values of {_text(name)}">'
        f"<span>{_text(name)}</span>\n{buttons}"
        + (
            '<button type="button" class="zoom" aria-pressed="false">Zoom in on the top</button>'
            if zoom
            else ""
        )
        + "</div>\n"
    )


def _last_accuracy(record: StudyRecord) -> str:
    compared = [result.point for result in setting_results(record)]
    left_out = {
        point_label(point, record.names): state_words(record, trial["state"])
        for trial in record.trials.to_dict("records")
        if (point := {field: trial[field] for field in record.fields}) not in compared
    }
    missing = "; ".join(f"{label} ({state})" for label, state in left_out.items())
    if len(left_out) > NAMED_AT_MOST:
        counts = Counter(left_out.values())
        missing = f"{count(len(left_out), 'setting')}: " + ", ".join(
            f"{n:,} {state}" for state, n in counts.items()
        )
    question = record.names[record.fields[0]]
    marks = ", ".join(
        f"{STRATUM_MARKS[number % len(STRATUM_MARKS)][1]} {point_label(stratum, record.names)}"
        for number, stratum in enumerate(strata(record))
        if stratum
    )
    return (
        "<section>\n<h2>Accuracy after the last epoch</h2>\n"
        f'<p class="note">{_text(marks)}</p>\n<figure class="single">'
        f'<div class="chart" id="last" role="img" aria-label="Validation top-1 after the last epoch against '
        f'{_text(question)}, with 95% intervals"></div>\n<figcaption>Bars are 95% intervals.'
        + (f" Not compared: {_text(missing)}." if missing else "")
        + "</figcaption></figure>\n</section>\n"
    )


def _signal(charts: SignalCharts) -> str:
    figures = "".join(
        f"<figure{' class=single' if len(charts.panels) == 1 else ''}><h3>{_text(title)}</h3>"
        f'<div class="chart" id="signal-{number}" role="img" aria-label="'
        f'{_text(f"Variance of activations over depth, {title}")}"></div></figure>\n'
        for number, (title, _) in enumerate(charts.panels)
    )
    keys = "".join(
        f'<span class="key" data-shade="{number}"><i></i>{epoch_label(epoch)}</span>\n'
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


def _trials(record: StudyRecord) -> str:
    best = best_setting(record)
    with_seeds = len(record.study["seeds"]) > 1 and not record.trials["seed"].isna().any()
    fields = [(field, record.names[field]) for field in record.fields]
    columns = [
        *((name, "number") for _, name in fields),
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
    rows = []
    for trial in record.trials.to_dict("records"):
        is_best = best is not None and all(trial[field] == best.best.point[field] for field in record.fields)
        cells = [
            *(_cell(value_label(trial[field]), trial[field], "number") for field, _ in fields),
            *([] if fields else [_cell(trial["trial"], trial["trial"], "")]),
            *([_cell(str(int(trial["seed"])), int(trial["seed"]), "number")] if with_seeds else []),
            _cell(_percent(trial["last_top1"]), trial["last_top1"], "number"),
            _cell(_percent(trial["best_top1"]), trial["best_top1"], "number"),
            _cell(str(trial["epochs"]), trial["epochs"], "number"),
            _cell(duration(trial["train_seconds"]), trial["train_seconds"], "number"),
            _cell(_speed(trial["images_per_second"]), trial["images_per_second"], "number"),
            _cell(duration(trial["startup_seconds"]), trial["startup_seconds"], "number"),
            _cell(state_words(record, trial["state"]), trial["state"], "", trial["reason"]),
        ]
        marked = ' class="best"' if is_best else ""
        name = _text(trial["trial"])
        rows.append(f'<tr data-trial="{name}"{marked}>{"".join(cells)}</tr>\n')
    header = "".join(
        f'<th scope="col"{f" class={kind}" if kind else ""}'
        f"{' data-first=descending' if name in BEST_FIRST else ''}>"
        f'<button type="button">{_text(name)}</button></th>'
        for name, kind in columns
    )
    return (
        f"<section>\n<h2>{_all_trials(record)}</h2>\n"
        + ('<p class="note">The best setting is in bold. Click a heading to sort.</p>\n' if best else "")
        + '<div class="scroll" tabindex="0" role="region" aria-label="Table of all trials">\n'
        f'<table id="trials">\n<thead><tr>{header}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody>\n'
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
            ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "dirty")
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


def _some(labels: Sequence[str]) -> str:
    """The labels, or, of many, the first ones and how many more there are."""
    if len(labels) <= NAMED_AT_MOST:
        return "; ".join(labels)
    return f"{'; '.join(labels[:NAMED_AT_MOST])} and {len(labels) - NAMED_AT_MOST} more"


def _fact(name: str, value: str) -> str:
    return f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>\n"


def _cell(shown: str, value: Any, kind: str, remark: str = "") -> str:
    """A cell of the table; ``data-sort`` holds what the page's script sorts by, empty where nothing is known."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    note = f'<span class="reason">{_text(remark)}</span>' if remark else ""
    attribute = f' class="{kind}"' if kind else ""
    return f'<td{attribute} data-sort="{"" if missing else _text(value)}">{_text(shown)}{note}</td>'


def _percent(fraction: float) -> str:
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}%"


def _speed(images_per_second: float) -> str:
    return "–" if math.isnan(images_per_second) else speed(images_per_second)


def _text(value: object) -> str:
    return html.escape(str(value))


if __name__ == "__main__":
    sys.exit(main())
