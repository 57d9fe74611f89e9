"""What joint standardisation saves: ``python -m benchmarks.step.standardisation [--threads N] [CASE ...]``.

A case is MODEL:BATCH:PIXELS:MICRO_BATCHES. Whole training steps on random images take turns in three ways: weights
standardised by the ``formula``, layer by layer, with autograd's derivative; jointly, in ``each_pass``; and jointly,
``kept`` over the step's micro-batches, as training does. The ratios are medians over rounds of one way's step / that by
the formula, with the 95% interval of the median. On a CPU the time is the process's own, so that neighbours on a shared
machine count less. Appends a row for each case to ``results/step_standardisation.csv``.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from benchmarks.clipping_counts import CLASSES, random_batch
from benchmarks.record import (
    Row,
    append_rows,
    circumstances,
    interval_of_median,
    parser_with_threads,
    processor_seconds,
)
from nfnet_ray.models import create_model, standardisation
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext, gradient
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.gradient import MEMORY_FORMATS
from nfnet_ray.training.step import TrainStep

RESULTS = Path(__file__).parents[1] / "results" / "step_standardisation.csv"
FEWEST_ROUNDS, SECONDS_OF_ROUNDS = 9, 30.0


def formula() -> contextlib.AbstractContextManager[object]:
    """In it layers standardise by the formula."""
    return mock.patch.object(standardisation, "_is_possible", return_value=False)


def each_pass() -> contextlib.AbstractContextManager[object]:
    """In it nothing is kept between passes."""
    return mock.patch.object(gradient, "keeping_standardised_weights", return_value=contextlib.nullcontext())


WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "formula": formula,
    "each_pass": each_pass,
    "kept": contextlib.nullcontext,
}


def measure(
    name: str, batch_size: int, pixels: int, micro_batches: int, memory_format: str, threads: int
) -> Row:
    """One case's row."""
    reset_process(0, threads)
    context = PlainContext(threads=threads)
    recipe = Recipe().with_values(
        {
            "model.name": name,
            "batch_size": batch_size,
            "micro_batches": micro_batches,
            "memory_format": memory_format,
        }
    )
    model = create_model(name, CLASSES).to(context.device).to(memory_format=MEMORY_FORMATS[memory_format])
    step = TrainStep(model.train(), recipe, context, steps_per_epoch=1000)
    batch = random_batch(batch_size, pixels, context.device)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    rounds = -1  # the first warms up
    while rounds < FEWEST_ROUNDS or sum(map(sum, taken.values())) < SECONDS_OF_ROUNDS:
        ways = list(WAYS.items())
        for way, entered in ways if rounds % 2 else reversed(ways):
            with entered():
                spent = processor_seconds(lambda: step(batch), context.device)
            if rounds >= 0:
                taken[way].append(spent)
        rounds += 1
    row: Row = {
        "model": name,
        "batch_size": batch_size,
        "pixels": pixels,
        "micro_batches": micro_batches,
        "memory_format": memory_format,
        "formula_ms": round(1e3 * statistics.median(taken["formula"]), 2),
    }
    for way in ("each_pass", "kept"):
        ratios = sorted(own / other for own, other in zip(taken[way], taken["formula"], strict=True))
        low, high = interval_of_median(ratios)
        row |= {
            way: round(statistics.median(ratios), 4),
            f"{way}_low": round(low, 4),
            f"{way}_high": round(high, 4),
        }
    return row | {"n": rounds}


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "--memory-format",
        choices=MEMORY_FORMATS,
        default="contiguous",
        help="memory layout of activations (default: %(default)s)",
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=["nfnet_pico:64:8:1", "nfnet_pico:64:32:1", "nfnet_f0:8:96:1", "nfnet_f0:8:96:4"],
        help="MODEL:BATCH:PIXELS:MICRO_BATCHES (default: %(default)s)",
    )
    options = parser.parse_args()
    context = PlainContext(threads=options.threads)
    for case in options.cases:
        name, batch_size, pixels, micro_batches = case.split(":")
        row = measure(
            name,
            int(batch_size),
            int(pixels),
            int(micro_batches),
            options.memory_format,
            options.threads,
        )
        append_rows(RESULTS, [row | circumstances(context.device, options.threads)])


if __name__ == "__main__":
    main()
