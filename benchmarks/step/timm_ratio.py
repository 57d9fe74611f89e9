"""Our training step against timm's: ``python -m benchmarks.step.timm_ratio [--threads N] [CASE ...]``.

A case is MODEL:TIMM:BATCH:PIXELS, our name of a network and timm's. Four steps take turns on the same random images, in
float32: ours and timm's (``benchmarks/gpu/timm_step.py``), each in both layouts; all with AGC, SGD and the moving
average. ``ratio`` is the median over the rounds of our images per second in our better layout / timm's in its better
one, with the 95% interval of the median; a layout is the better one by the median over the rounds. On a CPU the time is
the process's own, so that neighbours on a shared machine count less. Appends a row for each case to
``results/step_timm_ratio.csv``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.networks import IMAGENET_CLASSES, new_step, random_batch
from benchmarks.gpu.step import LAYOUTS
from benchmarks.gpu.timm_step import timm_step
from benchmarks.record import (
    Row,
    append_rows,
    circumstances,
    parser_with_threads,
    processor_seconds,
    ratio_columns,
)
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models.published import published_recipe, resolve
from nfnet_ray.models.variants import get_variant
from nfnet_ray.recipe import ResolvedRecipe

RESULTS = Path(__file__).parents[1] / "results" / "step_timm_ratio.csv"
WHOSE = ("ours", "timm")


def measure(name: str, timms: str, batch_size: int, pixels: int, rounds: int, machine: Machine) -> Row:
    """One case's row."""

    def recipe(memory_format: str) -> ResolvedRecipe:
        values = {
            "batch_size": batch_size,
            "data.image_size": pixels,
            "precision": "float32",
            "memory_format": memory_format,
            "compile": False,
        }
        return resolve(published_recipe(name).with_values(values))

    steps: dict[tuple[str, str], Callable[[TrainBatch], object]] = {}
    for memory_format, layout in LAYOUTS.items():
        asked = recipe(memory_format)
        steps["ours", layout] = new_step(asked, machine)[1]
        steps["timm", layout] = timm_step(timms, get_variant(name), asked, machine, IMAGENET_CLASSES)
    batch = random_batch(recipe("contiguous"), machine.device)

    taken: dict[tuple[str, str], list[float]] = {way: [] for way in steps}
    for number in range(-1, rounds):  # the first warms up
        ways = list(steps.items())
        for way, step in ways if number % 2 else reversed(ways):
            spent = processor_seconds(lambda step=step: step(batch), machine.device)
            if number >= 0:
                taken[way].append(spent)
    medians = {way: statistics.median(spent) for way, spent in taken.items()}
    best = {
        whose: min((way for way in steps if way[0] == whose), key=lambda way: medians[way]) for whose in WHOSE
    }
    ratios = [b / a for a, b in zip(taken[best["ours"]], taken[best["timm"]], strict=True)]
    return {
        "model": name,
        "timm": timms,
        "batch_size": batch_size,
        "pixels": pixels,
        **{f"{whose}_{layout}_ms": round(1e3 * spent, 1) for (whose, layout), spent in medians.items()},
        **ratio_columns(ratios, digits=3),
        "n": rounds,
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument("--rounds", type=positive, default=9, help="number of rounds (default: %(default)s)")
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=["nfnet_f0:dm_nfnet_f0:8:96", "nfnet_f0:dm_nfnet_f0:2:192"],
        help="MODEL:TIMM:BATCH:PIXELS (default: %(default)s)",
    )
    options = parser.parse_args()
    machine = Machine()
    machine.threads = options.threads
    for case in options.cases:
        name, timms, batch_size, pixels = case.split(":")
        row = measure(name, timms, int(batch_size), int(pixels), options.rounds, machine)
        append_rows(RESULTS, [row | circumstances(machine.device, options.threads)])


if __name__ == "__main__":
    main()
