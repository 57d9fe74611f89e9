"""What a study's driver does beside training, at 200 and at 1,000 trials: ``python -m benchmarks.driver.journal``.

Two things, each compared in one run with doing it the plain way. *Tracking*: a study's own metrics in MLflow are worked
out at the end of each trial. ``nfnet_ray.tracking.state.JournalReader`` reads on from the last end; the plain way reads
the whole journal each time. Nothing is sent. *Table*: the live table draws the trials that fit the terminal, here 120
columns and 40 lines; the plain way draws all trials. Appends a row for each number of trials to
``results/journal.csv``.
"""

from __future__ import annotations

import json
import statistics
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.driver.by_number_of_trials import CPU, main
from benchmarks.record import Row, seconds
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.live.display import StudyDisplay, reported_epochs, trial_table
from nfnet_ray.study.study import Study
from nfnet_ray.tracking.events import Event, epoch_ended, trial_ended, trial_started
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from nfnet_ray.tracking.journal_reader import JournalReader
from nfnet_ray.tracking.runs.study_metrics import study_metrics
from nfnet_ray.tracking.state import StudyState

RESULTS = Path(__file__).parents[1] / "results" / "journal.csv"
REPEATS = 3
# Ends of trials, evenly spaced, at which the whole journal is read: at all of 1,000 it would take minutes.
SAMPLED_ENDS = 8
EPOCHS = 8
COLUMNS, LINES = 120, 40
RUNNING = 8  # trials


def events_of(study: Study) -> list[Event]:
    """The events of a study whose last trials are running. An epoch has 20 metrics."""
    names = [trial.name for trial in study.trials()]
    plans = [{"name": name, "point": {}, "recipe": {}} for name in names]
    # Only what these two need of a study's description.
    started: Any = {
        "event": "study_started",
        "time": 0.0,
        "study": {"name": study.name, "metric": METRIC},
        "trials": plans,
    }
    events: list[Event] = [started]
    for number, name in enumerate(names):
        events.append(trial_started(name, 1))
        for epoch in range(1, EPOCHS + 1):
            measured: dict[str, float | None] = {f"metric_{index}": epoch / 7 for index in range(17)}
            measured |= {
                METRIC: (number % 89) / 100,
                "train_seconds": 31.0 * epoch,
                "images_per_second": 45.5,
            }
            events.append(epoch_ended(name, epoch, measured))
        if number < len(names) - RUNNING:
            events.append(trial_ended(name, "finished", None, EPOCHS))
    return events


def tracking(journal: Path) -> tuple[float, float]:
    """Seconds for the metrics at the end of a trial, on average: (reading on, reading everything each time)."""
    ends = [end for event, end in read_events(journal) if event["event"] == "trial_ended"]

    def read_on() -> list[dict[str, float]]:
        reader = JournalReader(journal)
        return [study_metrics(reader.state_at(end), METRIC) for end in ends]

    def read_everything() -> list[dict[str, float]]:
        return [study_metrics(JournalReader(journal).state_at(end), METRIC) for end in sampled]

    step = len(ends) // SAMPLED_ENDS
    sampled = ends[step // 2 :: step]
    assert read_everything() == read_on()[step // 2 :: step]
    on, everything = [], []
    for _ in range(REPEATS):
        on.append(seconds(read_on, CPU) / len(ends))
        everything.append(seconds(read_everything, CPU) / len(sampled))
    return statistics.median(on), statistics.median(everything)


def table(study: Study, state: StudyState, folder: Path) -> tuple[float, float]:
    """Seconds of drawing once: (what fits the terminal, all trials)."""
    console = Console(file=StringIO(), width=COLUMNS, height=LINES, force_terminal=True)
    display = StudyDisplay(study, state, folder, lambda: "MLflow: up to date", console)

    def fitting() -> None:
        list(console.render(display.frame, console.options))

    def whole() -> None:
        list(console.render(trial_table(study, state, reported_epochs), console.options))

    fitting()
    fit, every = [], []
    for _ in range(REPEATS):
        fit.append(seconds(fitting, CPU))
        every.append(seconds(whole, CPU))
    return statistics.median(fit), statistics.median(every)


def measure(trials: int) -> Row:
    """The times at one number of trials, and their ratios."""
    if trials % 2:
        raise SystemExit(f"{trials} trials: take an even number, for two batch sizes")
    space = {
        "optimizer.agc.clip_factor": tuple(number / 1000 for number in range(1, trials // 2 + 1)),
        "batch_size": (64, 256),
    }
    study = Study("benchmark", "?", Recipe().with_values({"schedule.epochs": EPOCHS}), space)
    state = study.waiting_state()
    with TemporaryDirectory() as folder:
        journal = Path(folder) / JOURNAL_FILE
        write(journal, study, state)
        read_on, read_everything = tracking(journal)
        fitting, whole = table(study, state, Path(folder))
    return {
        "trials": trials,
        "events": sum(2 + len(trial.epochs) for trial in state.trials.values()) + 1 - RUNNING,
        "tracking_read_on_ms_per_trial": round(1e3 * read_on, 2),
        "tracking_read_everything_ms_per_trial": round(1e3 * read_everything, 2),
        "tracking_speed_up": round(read_everything / read_on, 1),
        "table_fitting_ms": round(1e3 * fitting, 1),
        "table_whole_ms": round(1e3 * whole, 1),
        "table_speed_up": round(whole / fitting, 1),
        "n": REPEATS,
    }


def write(journal: Path, study: Study, state: StudyState) -> None:
    """Writes the journal, without waiting for the disk after each line, and takes its events into ``state``."""
    with journal.open("w") as stream:
        for event in events_of(study):
            stream.write(json.dumps(event) + "\n")
            state.apply(event)


if __name__ == "__main__":
    main(__doc__, measure, RESULTS)
