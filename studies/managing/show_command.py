"""``python -m studies show NAME``: one study, how far its trials are, and what came out."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dashboards.report import REPORT_FILE
from nfnet_ray.analysis import (
    BestSetting,
    StudyRecord,
    best_per_stratum,
    budget_points,
    budget_sentences,
    rung_sentences,
    time_sentences,
)
from nfnet_ray.analysis.comparability import comparability
from nfnet_ray.analysis.effects.sentences import effect_sentences
from nfnet_ray.analysis.health import health_cards, health_lines
from nfnet_ray.analysis.record import study_record
from nfnet_ray.command_line.terminal import say, say_whole
from nfnet_ray.errors import UserError
from nfnet_ray.printable import display_path, printable
from nfnet_ray.study.cost.spending import accelerator_word
from nfnet_ray.study.live.display import reported_epochs, trial_table
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.descriptions import NetworkDescription, StudyDescription
from nfnet_ray.tracking.events import StudyStarted
from nfnet_ray.tracking.labels import value_label, without_absent
from nfnet_ray.tracking.state import StudyState
from nfnet_ray.wording import clock_time, count, storage_size
from studies.managing.documents import print_document
from studies.managing.facts import (
    mlflow_command,
    publish_command,
    report_command,
    resume_text,
    space_texts,
    tracked_at,
)
from studies.managing.folders import StudyFolder, read_folder_or_export
from studies.managing.summary import age_text, confirmed_document, setting_document, summary_document


def show_study(directory: Path, console: Console, *, as_json: bool) -> None:
    """Prints everything about one study, or an exported one. Raises UserError if it cannot be read."""
    folder = read_folder_or_export(directory)
    state, started = folder.known()
    record = study_record(state, started)
    answers = best_per_stratum(record)
    if as_json:
        print_document(_document(folder, record, answers))
        return
    told = started["study"]
    say(console, told["question"], title=folder.name)
    console.print()
    console.print(_facts(folder))
    console.print()
    console.print(_trials(state, started, console, is_cut_off=folder.condition != "running"))
    console.print()
    for sentence in [*time_sentences(record), *(answer.sentence() for answer in answers)]:
        say(console, f"{sentence}.")
    if not answers and folder.condition == "finished":
        say(console, "No trial finished with an accuracy, so there is no best setting.")
    elif not answers:
        say(console, "No trial has finished with an accuracy yet.")
    effects = [f"{sentence}." for sentence in effect_sentences(record)]
    guard = comparability(record)
    alike = [*guard.sentences(), *guard.remark_sentences()]
    for sentence in [*effects, *budget_sentences(record), *rung_sentences(record), *alike]:
        say(console, sentence)
    for sentence, command in health_lines(health_cards(record)):
        say(console, sentence)
        if command:
            say_whole(console, f"  {command}")
    console.print()
    for title, line in _places(folder):
        say_whole(console, f"{f'{title}:':8} {line}")


def _trials(state: StudyState, started: StudyStarted, console: Console, *, is_cut_off: bool) -> Table:
    """The table of trials. Raises UserError if this version does not understand the study."""
    try:
        study = Study.from_event(started, any_version=True).grown(state)
        return trial_table(study, state, reported_epochs, console, is_cut_off=is_cut_off)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{started['study']['name']}: this version does not understand its trials ({error!r}); look at its report"
        ) from error


def _facts(folder: StudyFolder) -> Table:
    state, started = folder.known()
    told, data = started["study"], started["study"]["data"]
    trials = folder.planned_trials
    rows = [
        (
            "State",
            f"{folder.condition}{_why_ended(folder)}; {folder.ended_trials} of {count(trials, 'trial')} "
            f"{'has' if 1 in (folder.ended_trials, trials) else 'have'} ended{_failed(state)}",
        ),
        (
            "Time",
            f"begun {time.strftime('%d %B %Y, %H:%M', time.localtime(folder.began))} "
            f"({age_text(time.time() - folder.began)} ago), ran for {clock_time(state.wall_seconds)}",
        ),
        (
            "Data",
            f"{data['name']}: {count(data['train_images'], 'training image')} "
            f"({count(data['classes'], 'class')}), {data['validation_images']:,} to validate",
        ),
        (
            "Trials",
            f"{value_label(told['recipe']['model.name'])}, at most {count(told['epochs'], 'epoch')}, "
            f"{count(len(told['seeds']), 'seed')}{_more_seeds(told)}",
        ),
    ]
    if not folder.is_export and (idle := state.idle_time()) is not None:  # an export has no times of events
        rows.insert(2, ("Idle", idle.sentence(accelerator_word(told.get("worker", {}).get("gpus", 0)))))
    rows += [("Network", _network(name, code)) for name, code in told.get("networks", {}).items()]
    rows += [("Space", f"{name}: {values}") for name, values in space_texts(told["space"]).items()]
    if "points" in told:
        rows.append(("Space", f"a list of {count(len(told['points']), 'point')}"))
    if "confirm" in told:
        rows.append(("Confirm", f"the winner is rerun with {count(told['confirm'], 'fresh seed')}"))
    if "search" in told:
        rows.append(("Search", f"{told['search']['name']}, {count(told['search']['settings'], 'setting')}"))
    rows += [
        ("Hardware", told["hardware"]["description"]),
        ("Command", told["command"]),
        *(("Extended", command) for command in state.extensions),
        *(("Note", note) for note in state.notes),
        *([("Tags", ", ".join(f"{key}={value}" for key, value in state.tags.items()))] if state.tags else []),
    ]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    previous = ""
    for title, text in rows:
        table.add_row("" if title == previous else title, Text(printable(text)))
        previous = title
    return table


def _more_seeds(told: StudyDescription) -> str:
    more = len(told.get("more_seeds", ()))
    return f", {more} more for those that may be the best" if more else ""


def _failed(state: StudyState) -> str:
    """Behind the number of trials that have ended: how many have not, because they failed."""
    failed = sum(trial.state == "failed" for trial in state.members)
    return f", and {count(failed, 'trial')} failed" if failed else ""


def _network(name: str, code: NetworkDescription) -> str:
    """``my_net:build from my_net.py (sha256 0123456789ab)``, of a network of one's own."""
    files = code["files"]
    whence = code.get("package") or (files[0] if len(files) == 1 else count(len(files), "file"))
    return f"{value_label(name)} from {whence} (sha256 {code['sha256']})"


def _why_ended(folder: StudyFolder) -> str:
    """Behind the state of a study that ended early by itself: why."""
    ended = folder.state.ended if folder.state else None
    return f", as {ended['reason']}" if ended and ended.get("reason") else ""


def _places(folder: StudyFolder) -> list[tuple[str, str]]:
    state, started = folder.known()
    report = folder.directory / REPORT_FILE
    if folder.is_export:
        return [
            ("Report", report_command(folder.directory)),
            ("Export", f"{display_path(folder.directory)} ({_size(folder)}), which cannot be resumed"),
        ]
    is_in_mlflow = bool(tracked_at(folder.directory).study_run_id)
    nothing = "not recorded" if started["study"].get("unrecorded") else "nothing of it is there yet"
    places = [
        ("Report", display_path(report) if report.exists() else report_command(folder.directory)),
        ("MLflow", mlflow_command(folder.directory) if is_in_mlflow else nothing),
        ("Folder", f"{display_path(folder.directory)} ({_size(folder)})"),
    ]
    if is_in_mlflow and any(trial.outcome == "finished" for trial in state.members):
        places.append(("Publish", publish_command(folder.directory)))
    if _can_resume(folder):
        places.append(("Resume", resume_text(folder, started)))
    return places


def _can_resume(folder: StudyFolder) -> bool:
    """Whether there is anything to resume. A search that learns from results has trials that nobody knows yet."""
    is_complete = folder.condition == "finished" and folder.ended_trials == folder.planned_trials
    return folder.condition != "running" and not is_complete


def _size(folder: StudyFolder) -> str:
    return storage_size(summary_document(folder)["bytes"])


def _document(folder: StudyFolder, record: StudyRecord, answers: Sequence[BestSetting]) -> dict[str, Any]:
    state, started = folder.known()
    told, tracked = started["study"], tracked_at(folder.directory)
    report = folder.directory / REPORT_FILE
    return {
        **summary_document(folder),
        "command": told["command"],
        "extensions": list(record.extensions),
        "space": told["space"],
        "points": told.get("points"),
        "search": told.get("search"),
        "halving": told["halving"],
        "seeds": told["seeds"],
        "more_seeds": told.get("more_seeds", []),
        "confirm": told.get("confirm", 0),
        "epochs": told["epochs"],
        "recipe": told["recipe"],
        "data": told["data"],
        "hardware": told["hardware"],
        "versions": told["versions"],
        "trial_list": _trial_documents(state, record),
        "equal_accuracy": time_sentences(record),
        "answers": [_answer_document(answer) for answer in answers],
        "health": [
            {
                "name": card.name,
                "status": card.status,
                "sentence": card.sentence,
                "command": card.command or None,
            }
            for card in health_cards(record)
        ],
        "budget": [
            {
                "setting": without_absent(point.point),
                "epochs": point.epochs,
                "train_seconds": point.train_seconds,
                "top1": point.top1,
                "settings": point.settings,
            }
            for points in budget_points(record).values()
            for point in points
        ],
        "report": str(report) if report.exists() else None,
        "mlflow": {
            "tracking_uri": tracked.tracking_uri or None,
            "experiment_id": tracked.experiment_id or None,
            "run_id": tracked.study_run_id or None,
        },
        "resume": resume_text(folder, started) if _can_resume(folder) else None,
    }


def _trial_documents(state: StudyState, record: StudyRecord) -> list[dict[str, Any]]:
    """The trials of settings, the reruns of the winner, and those that an extension has left out."""
    tables = (record.trials, record.reruns, record.left_out)
    rows = [table.to_dict("records") for table in tables if table is not None]
    outside, reruns = state.outside, state.reruns
    return [
        {
            "name": trial["trial"],
            "setting": without_absent({name: trial[name] for name in record.fields}),
            "seed": trial["seed"],
            "state": trial["state"],
            "reason": trial["reason"] or None,
            "epochs": trial["epochs"],
            "top1": _known(trial["last_top1"]),
            "best_top1": _known(trial["best_top1"]),
            "train_seconds": _known(trial["train_seconds"]),
            "images_per_second": _known(trial["images_per_second"]),
            "left_out": trial["trial"] in outside,
            "rerun": trial["trial"] in reruns,
        }
        for trial in itertools.chain.from_iterable(rows)
    ]


def _answer_document(answer: BestSetting) -> dict[str, Any]:
    return {
        **setting_document(answer.best),
        "confirmed": confirmed_document(answer),
        "sentence": answer.sentence(),
        "within_noise": [dict(other.point) for other in answer.within_noise],
        "verdict": answer.verdict,
        "dropped": [setting_document(other) for other in answer.dropped],
        "probability": answer.contrasts[0].probability if answer.contrasts else None,
        "rests_on": answer.contrasts[0].rests_on if answer.contrasts else None,
        "corrected_top1": answer.corrected_top1 if answer.optimism else None,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
