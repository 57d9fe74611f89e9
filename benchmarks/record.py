"""What benchmarks share: their command line, clocks, the hardware in words, and rows appended to a csv."""

from __future__ import annotations

import csv
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nfnet_ray.command_line.arguments import positive
from nfnet_ray.command_line.one_line_parser import OneLineParser

Row = dict[str, str | int | float]


def parser_with_threads(program: str | None) -> OneLineParser:
    """A parser with the flag ``--threads``; its description is the docstring of the program."""
    parser = OneLineParser(description=program)
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default: %(default)s)")
    return parser


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes, the device's queue included."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def processor_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of this process, so that neighbours on a shared machine count less; on a GPU :func:`seconds`."""
    if device.type != "cpu":
        return seconds(work, device)
    start = time.process_time()
    work()
    return time.process_time() - start


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


def interval_of_median(ordered: list[float]) -> tuple[float, float]:
    """95%, from the order statistics (normal approximation of the binomial)."""
    half = 0.98 * math.sqrt(len(ordered))
    middle = len(ordered) / 2
    return ordered[max(0, math.floor(middle - half))], ordered[
        min(len(ordered) - 1, math.ceil(middle + half))
    ]


def ratio_columns(ratios: Sequence[float], digits: int = 4) -> Row:
    """The median of the ratios of pairs, with the interval of :func:`interval_of_median`."""
    low, high = interval_of_median(sorted(ratios))
    return {
        "ratio": round(statistics.median(ratios), digits),
        "ratio_low": round(low, digits),
        "ratio_high": round(high, digits),
    }


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
