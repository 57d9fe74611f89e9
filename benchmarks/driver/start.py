"""How long a study takes to start, and where the time goes: ``python -m benchmarks.driver.start``.

Runs a study's file as a user does, on this machine, from the command to its end (by default ``studies/agc_sweep.py`` on
the handwritten digits, three times), and takes from its output and its journal when what had happened, in seconds after
the command:

* ``first_line``: something is on the screen,
* ``study_started``: the plan is made, and Ray is ready for the first trial,
* ``trial_started``: the first trial has a process,
* ``first_batch``: it has its network and its data, and begins to train,
* ``first_epoch``: its first epoch is trained, evaluated and reported,
* ``last_trial_ended``, ``study_ended`` (the answer is known) and ``returned``: the report and MLflow have everything.

Further columns: ``train``, ``evaluation`` and ``startup`` seconds of all trials, by their own clocks, divided by the
trials that run at once. Arguments after ``--`` are the study's. Appends a row for each run to ``results/start.csv``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.record import Row, append_rows, circumstances
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.processor import available_cpus
from nfnet_ray.tracking.journal import JOURNAL_FILE, read_events

RESULTS = Path(__file__).parents[1] / "results" / "start.csv"
STUDY = "studies/agc_sweep.py"
NAME = "start"
# The phases of a training's clock that lie between its first batch and the report of its first epoch.
SINCE_FIRST_BATCH = ("train", "data_wait", "eval", "checkpoint", "report")


def moments(events: Sequence[Mapping[str, Any]], began: float) -> Row:
    """When what had happened, in seconds after ``began``, a time of the journal's clock."""
    first: dict[str, Mapping[str, Any]] = {}
    last: dict[str, Mapping[str, Any]] = {}
    trials: dict[str, Mapping[str, Any]] = {}
    for event in events:
        first.setdefault(event["event"], event)
        last[event["event"]] = event
        if event["event"] == "epoch":
            trials[event["trial"]] = event
    if "epoch" not in first or "study_ended" not in last:
        raise SystemExit("the study has no epoch, or did not end: see what it wrote")
    metrics = first["epoch"]["metrics"]
    training = sum(metrics[f"{phase}_seconds"] for phase in SINCE_FIRST_BATCH)
    after = {
        "study_started": first["study_started"]["time"],
        "trial_started": first["trial_started"]["time"],
        "first_batch": first["epoch"]["time"] - training,
        "first_epoch": first["epoch"]["time"],
        "last_trial_ended": last["trial_ended"]["time"],
        "study_ended": last["study_ended"]["time"],
    }
    places = first["study_started"]["study"].get("places", 1)
    spent = {
        column: sum(event["metrics"][f"{phase}_seconds"] for event in trials.values()) / places
        for column, phase in (("train", "train"), ("evaluation", "eval"), ("startup", "startup"))
    }
    row: Row = {name: round(value - began, 2) for name, value in after.items()}
    return row | {name: round(value, 2) for name, value in spent.items()}


def measure(study: str, arguments: Sequence[str], run: int) -> Row:
    """One run of the study in a storage of its own."""
    with TemporaryDirectory() as storage:
        command = [sys.executable, study, "--name", NAME, "--storage", storage, *arguments]
        began = time.time()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        first_line = time.time() - began
        lines += process.stdout
        code = process.wait()
        returned = time.time() - began
        if code:
            raise SystemExit(f"{' '.join(command)} ended with exit code {code}:\n{''.join(lines)}")
        events = [event for event, _end in read_events(Path(storage) / NAME / JOURNAL_FILE)]
    return {
        "command": " ".join([study, *arguments]),
        "run": run,
        "first_line": round(first_line, 2),
        **moments(events, began),
        "returned": round(returned, 2),
        **circumstances(torch.device("cpu"), available_cpus()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every run."""
    parser = OneLineParser(prog="python -m benchmarks.driver.start", description=__doc__)
    parser.add_argument("--study", default=STUDY, metavar="FILE", help="the study (default: %(default)s)")
    parser.add_argument(
        "--runs", type=positive, default=3, metavar="N", help="number of runs (default: %(default)s)"
    )
    parser.add_argument("further", nargs="*", metavar="ARGUMENT", help="the study's own flags, after --")
    settings = parser.parse_args(arguments)
    for run in range(1, settings.runs + 1):
        append_rows(RESULTS, [measure(settings.study, settings.further, run)])


if __name__ == "__main__":
    main()
