"""The rows of results: every part appends its own as it measures, and the command makes one tidy csv of all."""

from __future__ import annotations

import contextlib
import csv
import json
import traceback
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import Machine, Timing
from nfnet_ray.whole_file import whole_file

COLUMNS = (
    "part",
    "case",
    "quantity",
    "value",
    "unit",
    "n",
    "spread",
    "device",
    "driver",
    "torch",
    "cudnn",
    "sm_clock_mhz",
    "power_watts",
    "commit",
)
"""``spread`` is the interquartile range of ``n`` repeats, as a share of their median."""

Row = dict[str, Any]

BEGUN = "begun"
"""The key of a line that is no row: it names the case that is measured next."""
IN_TABLE = "in_table"
"""The key that says whether a row is part of the table on the screen; it is no column."""
ERROR = "error"
OVER_ITS_LIMIT = "over its limit"
SKIPPED = "skipped"


class Recorder:
    """Appends rows to a file of JSON lines, each written at once, so that a killed process loses none."""

    def __init__(self, path: Path, part: str, machine: Machine) -> None:
        self._path, self._part, self._machine = path, part, machine
        self._circumstances = machine.description()

    def add(
        self,
        case: str,
        quantity: str,
        value: object,
        unit: str = "",
        timing: Timing | None = None,
        *,
        in_table: bool = True,
    ) -> None:
        """Appends one row. Clock and power are those of ``timing``, or without it those of this moment."""
        sensors = timing.sensors if timing else self._machine.sensors()
        self._append(
            {
                "part": self._part,
                "case": case,
                "quantity": quantity,
                "value": rounded(value),
                "unit": unit,
                "n": timing.n if timing else 1,
                "spread": rounded(timing.spread) if timing else "",
                **self._circumstances,
                "sm_clock_mhz": sensors.sm_clock_mhz,
                "power_watts": sensors.power_watts,
                IN_TABLE: in_table,
            }
        )

    @contextlib.contextmanager
    def case(self, name: str) -> Generator[None]:
        """What fails within it is a row with the error's last line, and the next case is measured."""
        self._append({BEGUN: name})
        try:
            yield
        except Exception as error:  # a benchmark of many cases, each of which may fail in its own way
            traceback.print_exc()
            last_line = str(error).strip().splitlines()[-1:] or [""]
            self.add(name, ERROR, f"{type(error).__name__}: {last_line[0]}")

    def _append(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def rounded(value: object) -> object:
    """Five digits of a float: more than any of these measurements repeats. Anything else as it is.

    >>> rounded(0.123456789), rounded(7), rounded("none")
    (0.12346, 7, 'none')
    """
    return float(f"{value:.5g}") if isinstance(value, float) else value


def read_rows(path: Path) -> tuple[list[Row], str]:
    """The rows of a file of JSON lines, and the case that was begun last, "" for none.

    A last line that was cut off, as the process was killed, is left out. There may be no file.
    """
    rows: list[Row] = []
    begun = ""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        if BEGUN in content:
            begun = content[BEGUN]
        else:
            rows.append(content)
    return rows, begun


def tidy(rows: Iterable[Row], commit: str) -> list[Row]:
    """The rows with all columns and no other keys; what tells of the machine is the same for all rows of a run."""
    rows = list(rows)
    known: Row = {}
    for name in ("device", "driver", "torch", "cudnn"):
        known[name] = next((row[name] for row in rows if row.get(name)), "")
    return [
        {name: row.get(name, known.get(name, "")) for name in COLUMNS} | {"commit": commit} for row in rows
    ]


def write_csv(path: Path, earlier: str, rows: Sequence[Row]) -> None:
    """Writes what the csv had before this run, and then the rows: all of it, or nothing new if it is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, "w", sync=False) as file:
        file.write(earlier)
        writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
        if not earlier:
            writer.writeheader()
        writer.writerows(rows)


def table(rows: Iterable[Row]) -> str:
    """The rows for the screen, one line each: the errors, and what is marked for it."""
    lines = []
    for row in rows:
        if row.get(IN_TABLE, True):
            spread = f"  ±{row['spread']:.1%}" if isinstance(row.get("spread"), float) else ""
            lines.append(
                f"{row['part']}: {row['case']}: {row['quantity']} {row['value']} {row['unit']}{spread}"
            )
    return "\n".join(line.rstrip() for line in lines)
