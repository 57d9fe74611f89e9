"""From the start of a trial on several workers to its first step: ``python -m benchmarks.slots``.

A study of nfnet_pico on the digits, one epoch for each trial, by two workers of one core each: one slot, whose worker
group trains all trials, one after another. The seconds of a trial begin when the one before it has ended; those of the
first one begin when Ray is up. Appends a row for the first trial and one for the later ones to ``results/slots.csv``.

Rows with ``worker_group`` "for each trial" are of commit 5320ec5, the last one before slots, with this file copied
into it: each trial was a TorchTrainer of its own, started by a trial of Ray Tune.
"""

from __future__ import annotations

import os
import statistics
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from rich.console import Console

from benchmarks.record import Row, append_rows, circumstances
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events
from studies.running.from_python import run as run_study
from studies.sweep import PROGRAM

RESULTS = Path(__file__).with_name("results") / "slots.csv"
CPU = torch.device("cpu")
# What comes after the first step of a trial's first epoch has begun.
PHASES = ("train", "data_wait", "eval", "checkpoint", "report")


def seconds_to_first_step(trials: int) -> list[float]:
    """Seconds of each trial of a study, in the order in which they ran."""
    factors = ",".join(f"{0.01 * (1 + number):.2f}" for number in range(trials))
    console = Console(file=StringIO(), width=120)
    with (
        TemporaryDirectory() as folder,
        mock.patch("studies.running.from_python.new_console", return_value=console),
    ):
        run_study(
            PROGRAM,
            sweep={"optimizer.agc.clip_factor": factors},
            epochs=1,
            storage=folder,
            name="slots",
            workers_per_trial=2,
            cpus_per_worker=1,
            gpus_per_worker=0,
        )
        events: list[Any] = [event for event, _ in read_events(Path(folder) / "slots" / JOURNAL_FILE)]
    found, free_since = [], events[0]["time"]
    for event in events:
        if event["event"] == "epoch":
            after = sum(event["metrics"][f"{phase}_seconds"] for phase in PHASES)
            found.append(event["time"] - after - free_since)
        elif event["event"] == "trial_ended":
            free_since = event["time"]
    return found


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "--trials", type=positive, default=6, metavar="N", help="number of trials (default: %(default)s)"
    )
    parser.add_argument("--worker-group", default="for all trials", help="what to write into that column")
    options = parser.parse_args()
    first, *later = seconds_to_first_step(options.trials)
    about: Row = {"worker_group": options.worker_group}
    load: Row = {"load_per_core": round(os.getloadavg()[0] / torch.get_num_threads(), 1)}
    where = load | circumstances(CPU, threads=2)
    append_rows(
        RESULTS, [about | _summary("first", [first]) | where, about | _summary("later", later) | where]
    )


def _summary(which: str, seconds: list[float]) -> Row:
    return {
        "trial": which,
        "median_seconds": round(statistics.median(seconds), 1),
        "longest_seconds": round(max(seconds), 1),
        "n": len(seconds),
    }


if __name__ == "__main__":
    main()
