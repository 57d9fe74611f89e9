"""A study's way into an SQLite database of MLflow: ``python -m benchmarks.driver.tracking``.

A whole journal of trials × epochs, two trials side by side, is delivered by ``nfnet_ray.tracking.delivery``: with
metrics written in bulk (``nfnet_ray/tracking/destination/bulk_metrics.py``), and as MLflow writes them. The floor is
the same rows of metrics, inserted into a copy of the same tables by the standard library's ``sqlite3`` in one
transaction. Each is the processor time of the process, which other programs on the machine change little. Both
databases have to hold the same number of metrics. Appends a row to ``results/tracking.csv``.
"""

from __future__ import annotations

import json
import platform
import random
import shutil
import sqlite3
import statistics
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from benchmarks.record import Row, append_rows, hardware, processor_seconds
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.tracking.delivery.sink import MLflowSink
from nfnet_ray.tracking.delivery.spool import SPOOL_FILE, Spool
from nfnet_ray.tracking.destination import bulk_metrics
from nfnet_ray.tracking.events import Event, epoch_ended, trial_ended, trial_started
from nfnet_ray.tracking.journal import JOURNAL_FILE
from tests.tracking.example_study import CLIP_FACTOR, study_started

RESULTS = Path(__file__).parents[1] / "results" / "tracking.csv"
METRICS = 20  # of an epoch
MOST_SECONDS = 4 * 3600.0
CPU = torch.device("cpu")


def events_of(trials: int, epochs: int) -> list[Event]:
    """A study of two batch sizes, whose accuracy has therefore a second name: 21 points an epoch."""
    space: dict[str, list[Any]] = {
        CLIP_FACTOR: [number / 1000 for number in range(1, trials // 2 + 1)],
        "batch_size": [64, 256],
    }
    started, draw = study_started(space, epochs=epochs), random.Random(0)
    names = [plan["name"] for plan in started["trials"]]
    events: list[Event] = [started]
    for pair in zip(names[::2], names[1::2], strict=True):
        events += [trial_started(name, 1) for name in pair]
        for epoch in range(1, epochs + 1):
            for name in pair:
                measured: dict[str, float | None] = {
                    f"metric_{number}": draw.random() for number in range(METRICS - 2)
                }
                events.append(
                    epoch_ended(
                        name,
                        epoch,
                        {**measured, "validation_top1": draw.random(), "train_seconds": 31.0 * epoch},
                    )
                )
        events += [trial_ended(name, "finished", None, epochs) for name in pair]
    return events


def delivered(folder: Path, database: Path, in_bulk: bool) -> float:
    """Processor seconds of a whole delivery into an empty database, which MLflow has not opened in this process."""
    (folder / SPOOL_FILE).unlink(missing_ok=True)
    sink = MLflowSink(f"sqlite:///{database}", Spool(folder / JOURNAL_FILE, folder / SPOOL_FILE))

    def deliver() -> None:
        sink.start()
        left = sink.close(MOST_SECONDS)
        assert left == 0, sink.status

    if in_bulk:
        return processor_seconds(deliver, CPU)
    with mock.patch.object(bulk_metrics, "write_metrics_in_bulk", return_value=False):
        return processor_seconds(deliver, CPU)


def floor(folder: Path, full_database: Path, empty: Path) -> float:
    """Processor seconds for the rows of metrics alone."""
    with closing(sqlite3.connect(full_database)) as full:
        rows = full.execute("SELECT key, value, timestamp, step, is_nan, run_uuid FROM metrics").fetchall()
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: row[5])  # by run, as they come
    shutil.copy(empty, folder / "floor.db")

    def insert() -> None:
        with closing(sqlite3.connect(folder / "floor.db")) as connection:
            connection.executemany(
                "INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
            connection.commit()

    return processor_seconds(insert, CPU)


def measure(trials: int, epochs: int, repeats: int, bulk_alone: bool) -> Row:
    """The times of one study, and their ratios."""
    if trials % 2:
        raise SystemExit(f"{trials} trials: take an even number, for two batch sizes")
    from mlflow import MlflowClient

    times: dict[str, list[float]] = {"bulk": [], "plain": [], "floor": []}
    counts = set()
    with TemporaryDirectory() as name:
        folder = Path(name)
        empty = folder / "empty.db"
        MlflowClient(f"sqlite:///{empty}").search_experiments()
        with (folder / JOURNAL_FILE).open("w") as stream:
            for event in events_of(trials, epochs):
                stream.write(json.dumps(event, separators=(",", ":")) + "\n")
        for number in range(repeats):
            for way in ("bulk",) if bulk_alone else ("bulk", "plain"):
                # MLflow keeps the store of each database, with what was done to it.
                database = folder / f"{way}-{number}.db"
                shutil.copy(empty, database)
                times[way].append(delivered(folder, database, way == "bulk"))
                counts.add(_count(database))
            times["floor"].append(floor(folder, folder / f"bulk-{number}.db", empty))
    [points] = counts
    medians: dict[str, Any] = {way: statistics.median(found) for way, found in times.items() if found}
    return {
        "trials": trials,
        "epochs": epochs,
        "points_checked": points,
        "bulk_cpu_s": round(medians["bulk"], 1),
        "as_mlflow_writes_cpu_s": round(medians["plain"], 1) if "plain" in medians else "",
        "speed_up": round(medians["plain"] / medians["bulk"], 1) if "plain" in medians else "",
        "sqlite_alone_cpu_s": round(medians["floor"], 1),
        "bulk_over_sqlite": round(medians["bulk"] / medians["floor"], 1),
        "n": repeats,
    }


def _count(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        # Without the study's own, which are few.
        return int(connection.execute("SELECT count(*) FROM metrics WHERE key LIKE 'metric_%'").fetchone()[0])


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "trials", nargs="?", type=positive, default=100, help="number of trials (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs", type=positive, default=100, help="epochs of each trial (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, help="number of measurements (default: %(default)s)"
    )
    parser.add_argument("--bulk-alone", action="store_true", help="leave out the slow way")
    options = parser.parse_args()
    about: Row = {"hardware": hardware(CPU, threads=1), "python": platform.python_version()}
    append_rows(
        RESULTS, [measure(options.trials, options.epochs, options.repeats, options.bulk_alone) | about]
    )


if __name__ == "__main__":
    main()
