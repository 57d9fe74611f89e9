"""A study of 1,000 trials of which nothing is trained: does its driver keep pace? ``python -m benchmarks.sweep_scale``.

Two measurements, each with and without early stopping, of 1,000 trials of 100 epochs (``--trials``, ``--epochs``).

*Driver*: the next report of an epoch is there as soon as the last one has been dealt with. Decisions, journal on the
disk, live table and time left are the real ones; Ray is not there. If the driver keeps pace, an epoch takes as long at
the end as at the beginning. Then the journal is read, and the study resumed from it. Rows in
``results/sweep_scale.csv``.

*Study* (``--through-ray``): a whole study, as ``nfnet_ray.run`` runs it on this machine, with Ray Tune, the live table,
the report and MLflow. Each epoch of its trials only sleeps, for ``--epoch-seconds``, so more trials than cores can run
at once (``--places``). Rows in ``results/sweep_through_ray.csv``: by how much the study takes longer than the sleep of
its trials on as many places (``overhead``, from the start of the first trial to the end of the last one), what an epoch
took at the beginning and at the end, and how much memory the driver had by then.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from rich.console import Console

from benchmarks.record import Row, append_rows, hardware
from nfnet_ray.cluster.messages.configs import WorkerConfig
from nfnet_ray.cluster.messages.notes import FinalReport
from nfnet_ray.command_line.arguments import above_zero, positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.metric import METRIC
from nfnet_ray.processor import available_cpus
from nfnet_ray.recipe import Recipe
from nfnet_ray.study import Halving, Study
from nfnet_ray.study.halving import parse_halving
from nfnet_ray.study.legs import Legs
from nfnet_ray.study.live.display import StudyDisplay
from nfnet_ray.study.recorder import Recorder
from nfnet_ray.tracking.events import study_started
from nfnet_ray.tracking.journal import JOURNAL_FILE, Journal, read_events
from nfnet_ray.tracking.state import StudyState
from studies.running.from_python import run as run_study

RESULTS = Path(__file__).with_name("results") / "sweep_scale.csv"
RESULTS_THROUGH_RAY = RESULTS.with_name("sweep_through_ray.csv")
CPU = torch.device("cpu")
PLACES, METRICS = 16, 24
VALIDATION_IMAGES = 50_000
# The part of all events that counts as the beginning, and as the end.
PART = 0.1


def study_of(trials: int, epochs: int, halving: Halving | None) -> Study:
    """A study of one field with this number of values."""
    space = {"optimizer.agc.clip_factor": tuple(number / 1000 for number in range(1, trials + 1))}
    recipe = Recipe().with_values({"schedule.epochs": epochs, "batch_size": 64})
    return Study("benchmark", "how long does an event take?", recipe, space, halving=halving)


def run(study: Study, journal: Journal, state: StudyState, folder: Path) -> list[float]:
    """Runs the study with nothing trained; returns the CPU seconds that each report of an epoch took."""
    console = Console(file=StringIO(), width=120, height=40, force_terminal=True)
    display = StudyDisplay(study, state, folder, lambda: "MLflow: up to date", console)
    recorder = Recorder(journal, state, display.update, display.note)
    # Only what the driver itself reads of a study's description.
    recorder.record(study_started({"name": study.name}, [study.plan(trial) for trial in study.trials()]))  # pyrefly: ignore[bad-typed-dict-key]
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


def measure(trials: int, epochs: int, halving: Halving | None) -> Row:
    """The times of one study, and the ratio of its end to its beginning."""
    study = study_of(trials, epochs, halving)
    state = study.waiting_state()
    state.forget_details()  # as a driver's does
    before = resident_mib()
    with TemporaryDirectory() as name:
        folder = Path(name)
        with Journal(folder / JOURNAL_FILE) as journal:
            seconds = run(study, journal, state, folder)
        grown_mib = resident_mib() - before
        began, cpu = time.perf_counter(), time.process_time()
        for _ in read_events(folder / JOURNAL_FILE):
            pass
        read_seconds, read_cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        began, cpu = time.perf_counter(), time.process_time()
        resumed, _ = StudyState.read(folder)
        with Journal(folder / JOURNAL_FILE) as journal:
            legs = Legs(
                study_of(trials, epochs, halving),
                VALIDATION_IMAGES,
                Recorder(journal, resumed, on_event=lambda: None, say=print),
            )
            assert legs.next() is None
        resume_seconds, resume_cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
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
        "read_cpu_seconds": round(read_cpu_seconds, 2),
        "resume_seconds": round(resume_seconds, 2),
        "resume_cpu_seconds": round(resume_cpu_seconds, 2),
        "n": 1,
    }


def sleeping(epoch_seconds: float, epochs: int) -> Callable[[dict[str, Any]], None]:
    """The function of a trial whose epochs only sleep; all else in its actor is as in a training."""

    def sleep(config: WorkerConfig, _started_at: float) -> FinalReport:
        from nfnet_ray.cluster.contexts import TuneContext

        context, last = TuneContext(config), config["until_epoch"] or epochs
        # In place of a checkpoint.
        kept = Path(config["directory"]) / "slept.json"
        done, slept = json.loads(kept.read_text()) if kept.exists() else (0, 0.0)
        with context.listening():
            for epoch in range(done + 1, last + 1):
                began = time.perf_counter()
                time.sleep(epoch_seconds)
                slept += time.perf_counter() - began
                metrics: dict[str, float] = {f"metric_{index}": epoch / 7 for index in range(METRICS - 3)}
                metrics |= {"epoch": epoch, METRIC: random.Random(f"{config['name']} {epoch}").random()}
                context.report(metrics | {"train_seconds": slept}, {})
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps((last, slept)))
        return FinalReport("finished" if last == epochs else "paused", None, last)

    def sleep_in_actor(space: dict[str, Any]) -> None:
        from nfnet_ray.cluster import trial

        with mock.patch.object(trial, "train_alone", sleep):
            trial.run_in_actor(space)

    return sleep_in_actor


def resident_mib() -> float:
    """The resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Watch:
    """A thread that notes the time, the driver's CPU seconds and its resident memory once a second."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []
        """(Unix seconds, CPU seconds, MiB)."""
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            self.seen.append((time.time(), time.process_time(), resident_mib()))

    def close(self) -> None:
        self._over.set()

    def at(self, moment: float) -> tuple[float, float]:
        """(CPU seconds, MiB) at a time."""
        return next((seen[1:] for seen in self.seen if seen[0] >= moment), self.seen[-1][1:])


def measure_study(
    trials: int, epochs: int, halving: Halving | None, epoch_seconds: float, places: int, folder: Path
) -> Row:
    """The times of a whole study on this machine."""
    watch = Watch()
    with (
        open(os.devnull, "w") as nowhere,
        mock.patch("nfnet_ray.cluster.driver.run_in_actor", sleeping(epoch_seconds, epochs)),
        mock.patch(
            "studies.running.from_python.new_console",
            return_value=Console(file=nowhere, width=120, height=40, force_terminal=True),
        ),
        # A place is a core for Ray, and a trial that sleeps needs none.
        mock.patch("nfnet_ray.cluster.connection.session.available_cpus", return_value=places),
    ):
        began = time.time()
        run_study(
            study_of(trials, epochs, halving),
            storage=folder,
            name="study",
            cpus_per_worker=1,
            gpus_per_worker=0,
        )
        whole_seconds = time.time() - began
    watch.close()
    events = [event for event, _ in read_events(folder / "study" / JOURNAL_FILE)]
    started = {
        event["trial"]: event["time"] for event in reversed(events) if event["event"] == "trial_started"
    }
    ends = [(event["time"], event["trial"]) for event in events if event["event"] == "trial_ended"]
    reports = [event for event in events if event["event"] == "epoch"]
    slept = sum({event["trial"]: event["metrics"]["train_seconds"] or 0.0 for event in reports}.values())
    first_start, last_end = min(started.values()), max(end for end, _ in ends)
    first = events[0]
    assert first["event"] == "study_started"
    assert first["study"]["places"] == places
    part = max(1, int(PART * len(reports)))
    moments = [first_start, reports[part - 1]["time"], reports[-part]["time"], reports[-1]["time"]]
    cpu = [watch.at(moment)[0] for moment in moments]
    part_seconds = [(moments[1] - moments[0]) / part, (moments[3] - moments[2]) / part]
    return {
        "trials": trials,
        "rule": halving.rule if halving else "none",
        "epochs_reported": len(reports),
        "epoch_seconds": epoch_seconds,
        "places": places,
        "study_seconds": round(last_end - first_start, 1),
        "overhead": round((last_end - first_start) * places / slept - 1, 3),
        "first_ms_per_epoch": round(1e3 * part_seconds[0], 2),
        "last_ms_per_epoch": round(1e3 * part_seconds[1], 2),
        "last_to_first": round(part_seconds[1] / part_seconds[0], 3),
        "first_cpu_ms_per_epoch": round(1e3 * (cpu[1] - cpu[0]) / part, 2),
        "last_cpu_ms_per_epoch": round(1e3 * (cpu[3] - cpu[2]) / part, 2),
        "first_memory_mib": round(watch.at(moments[1])[1]),
        "last_memory_mib": round(watch.at(moments[3])[1]),
        "after_the_last_trial_seconds": round(began + whole_seconds - last_end, 1),
        "journal_mb": round((folder / "study" / JOURNAL_FILE).stat().st_size / 1e6, 1),
        "n": 1,
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "--trials", type=positive, default=1000, help="number of trials (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs", type=positive, default=100, help="epochs of each trial (default: %(default)s)"
    )
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=("synchronous", "asynchronous", "median", "hyperband", "none"),
        default=["synchronous", "none"],
        help="rules of early stopping (default: %(default)s)",
    )
    parser.add_argument("--through-ray", action="store_true", help="measure whole studies")
    parser.add_argument(
        "--epoch-seconds",
        type=above_zero,
        default=0.05,
        help="seconds for which an epoch sleeps, with --through-ray (default: %(default)s)",
    )
    parser.add_argument(
        "--places",
        type=positive,
        default=available_cpus(),
        help="trials at once (default: one for each core)",
    )
    parser.add_argument("--keep", type=Path, help="keep the study's results in this folder")
    asked = parser.parse_args()
    about: Row = {"hardware": hardware(CPU, threads=available_cpus()), "python": platform.python_version()}
    for rule in asked.rules:
        halving = None if rule == "none" else parse_halving(rule)
        if asked.through_ray:
            with TemporaryDirectory() as name:
                row = measure_study(
                    asked.trials,
                    asked.epochs,
                    halving,
                    asked.epoch_seconds,
                    asked.places,
                    (asked.keep or Path(name)) / rule,
                )
            append_rows(RESULTS_THROUGH_RAY, [row | about])
        else:
            append_rows(RESULTS, [measure(asked.trials, asked.epochs, halving) | about])


if __name__ == "__main__":
    main()
