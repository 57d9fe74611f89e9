"""What the driver of a large study does for each epoch: ``python -m benchmarks.sweep_scale``.

A study of 1,000 trials of 100 epochs, with and without early stopping, of which nothing is trained: each epoch is
reported at once, with made-up numbers. Everything else is the real thing: decisions, journal on the disk, live table,
time left. Ray is not there. If the driver keeps pace, an epoch takes as long at the end as at the beginning, and memory
grows with the journal. Then the journal is read, and the study resumed from it. Appends rows to
``results/sweep_scale.csv``.
"""

from __future__ import annotations

import argparse
import platform
import random
import resource
import statistics
import time
from collections import deque
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from benchmarks.record import Row, append_rows, hardware
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.metric import METRIC
from nfnet_ray.recipe import Recipe
from nfnet_ray.study import Halving, Study
from nfnet_ray.study.display import StudyDisplay
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.tracking.events import JOURNAL_FILE, Journal, read_events, study_started
from nfnet_ray.tracking.state import StudyState

RESULTS = Path(__file__).with_name("results") / "sweep_scale.csv"
CPU = torch.device("cpu")
EPOCHS, PLACES, METRICS = 100, 16, 20
VALIDATION_IMAGES = 50_000
# The part of all events that counts as the beginning, and as the end.
PART = 0.1


def study_of(trials: int, halving: Halving | None) -> Study:
    """A study of one field with this number of values."""
    space = {"optimizer.agc.clip_factor": tuple(number / 1000 for number in range(1, trials + 1))}
    recipe = Recipe().with_values({"schedule.epochs": EPOCHS})
    return Study("benchmark", "how long does an event take?", recipe, space, halving=halving)


def run(study: Study, journal: Journal, state: StudyState, folder: Path) -> list[float]:
    """Runs the study with nothing trained; returns the CPU seconds that each report of an epoch took."""
    console = Console(file=StringIO(), width=120, height=40, force_terminal=True)
    display = StudyDisplay(study, state, folder, lambda: "MLflow: up to date", console)
    recorder = Recorder(journal, state, display.update, display.note)
    # Only what the driver itself reads of a study's description.
    recorder.record(study_started({"name": study.name}, [study.plan(trial) for trial in study.trials()]))  # type: ignore[typeddict-item]
    legs, chance = Legs(study, VALIDATION_IMAGES, recorder), random.Random(0)
    places: deque[str] = deque()
    seconds: list[float] = []
    with display:
        while True:
            while len(places) < PLACES and (leg := legs.next()) is not None:
                legs.start(leg.trial)
                places.append(leg.trial)
            if not places:
                return seconds
            name = places.popleft()
            epoch, until = state.trials[name].epoch + 1, legs.running[name].until
            metrics: dict[str, float | None] = {f"metric_{index}": epoch / 7 for index in range(METRICS - 2)}
            metrics |= {METRIC: chance.random(), "train_seconds": 31.0 * epoch}
            began = time.thread_time()
            recorder.record_epoch(name, epoch, metrics)
            if epoch == study.epochs:
                legs.end(name, "finished", None)
            elif epoch == until:
                legs.pause(name)
            else:
                places.append(name)
            seconds.append(time.thread_time() - began)


def measure(trials: int, halving: Halving | None) -> Row:
    """The times of one study, and the ratio of its end to its beginning."""
    study = study_of(trials, halving)
    state = study.waiting_state()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TemporaryDirectory() as name:
        folder = Path(name)
        with Journal(folder / JOURNAL_FILE) as journal:
            seconds = run(study, journal, state, folder)
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        began = time.perf_counter()
        for _ in read_events(folder / JOURNAL_FILE):
            pass
        read_seconds = time.perf_counter() - began
        began = time.perf_counter()
        resumed, _ = StudyState.read(folder)
        with Journal(folder / JOURNAL_FILE) as journal:
            legs = Legs(
                study_of(trials, halving),
                VALIDATION_IMAGES,
                Recorder(journal, resumed, on_event=lambda: None, say=print),
            )
            assert legs.next() is None
        resume_seconds = time.perf_counter() - began
        journal_mb = (folder / JOURNAL_FILE).stat().st_size / 1e6
    part = max(1, int(PART * len(seconds)))
    first, last = statistics.fmean(seconds[:part]), statistics.fmean(seconds[-part:])
    return {
        "trials": trials,
        "rule": halving.rule if halving else "none",
        "epochs_reported": len(seconds),
        "first_cpu_ms_per_epoch": round(1e3 * first, 3),
        "last_cpu_ms_per_epoch": round(1e3 * last, 3),
        "last_to_first": round(last / first, 2),
        "memory_grown_mib": round(grown_mib),
        "journal_mb": round(journal_mb, 1),
        "read_seconds": round(read_seconds, 2),
        "resume_seconds": round(resume_seconds, 2),
        "n": 1,
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=positive, default=1000, help="default: %(default)s")
    trials = parser.parse_args().trials
    about: Row = {"hardware": hardware(CPU, threads=1), "python": platform.python_version()}
    append_rows(RESULTS, [measure(trials, rule) | about for rule in (Halving(), None)])


if __name__ == "__main__":
    main()
