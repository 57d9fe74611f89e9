"""What every benchmark records: the hardware, and its rows, appended to a csv."""

from __future__ import annotations

import csv
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Row = dict[str, str | int | float]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes, the device's queue included."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def circumstances(device: torch.device, threads: int) -> Row:
    """The columns that tell where a row was measured."""
    return {"hardware": hardware(device, threads), "torch": torch.__version__}


def hardware(device: torch.device, threads: int) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return f"{models[0].partition(': ')[2] if models else platform.machine()}, {threads} threads"


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Prints the rows and appends them to a csv, which is created if there is none."""
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)
