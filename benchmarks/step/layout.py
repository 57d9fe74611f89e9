"""A training step in channels_last against one in contiguous: ``python -m benchmarks.step.layout [CASE …]``.

A case is MODEL:BATCH:PIXELS, with the model's published Recipe (gradient, AGC, update, moving average) on random images
in memory. Steps in both layouts take turns in one process, each is timed alone, and two neighbours make a pair. On a
CPU the time is the process's own, so that neighbours on a shared machine count less. ``ratio`` is the median over the
pairs of the step in channels_last / the step in contiguous, with the 95% interval of that median (of order statistics).
Appends a row for each case to ``results/layout.csv``.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch

from benchmarks.clipping_counts import random_batch
from benchmarks.record import (
    Row,
    append_rows,
    circumstances,
    parser_with_threads,
    processor_seconds,
    ratio_columns,
)
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.models import model_of
from nfnet_ray.models.published import published_recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.gradient import DTYPES, MEMORY_FORMATS
from nfnet_ray.training.step import TrainStep

RESULTS = Path(__file__).parents[1] / "results" / "layout.csv"
CLASSES = 10
WARM_UPS = 2
CASES = [
    f"{model}:{batch}:{pixels}"
    for model in ("nfnet_pico", "nfnet_nano", "test_efficientnet", "test_resnet")
    for pixels in (8, 32)
    for batch in (64, 256)
]


def measure(
    name: str, batch_size: int, pixels: int, context: PlainContext, options: argparse.Namespace
) -> Row:
    """One case's row."""
    recipe = published_recipe(name).with_values({"batch_size": batch_size, "data.image_size": pixels})
    if options.precision:
        recipe = recipe.with_values({"precision": options.precision})
    reset_process(recipe.seed, context.threads)
    batch = random_batch(batch_size, pixels, context.device)
    steps = {}
    for layout, memory_format in MEMORY_FORMATS.items():
        own = recipe.with_values({"memory_format": layout})
        model = model_of(own.model, CLASSES)
        model.to(context.device, DTYPES[own.precision]).to(memory_format=memory_format)
        model.train()
        steps[layout] = TrainStep(model, own, context, steps_per_epoch=1000)
    for step in steps.values():
        for _ in range(WARM_UPS):
            step(batch)
    pairs: list[dict[str, float]] = []
    while len(pairs) < options.fewest_pairs or sum(sum(pair.values()) for pair in pairs) < options.seconds:
        order = list(steps) if len(pairs) % 2 else list(reversed(steps))
        pairs.append(
            {layout: processor_seconds(partial(steps[layout], batch), context.device) for layout in order}
        )
    ratios = [pair["channels_last"] / pair["contiguous"] for pair in pairs]
    return {
        "model": name,
        "batch_size": batch_size,
        "pixels": pixels,
        "precision": recipe.precision,
        "contiguous_ms": round(1e3 * statistics.median(pair["contiguous"] for pair in pairs), 2),
        "channels_last_ms": round(1e3 * statistics.median(pair["channels_last"] for pair in pairs), 2),
        **ratio_columns(ratios),
        "pairs": len(pairs),
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "--fewest-pairs", type=positive, default=15, help="pairs of steps of a case (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=6, help="seconds of a case, at least (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", choices=sorted(DTYPES), help="dtype of the arithmetic (default: the published one)"
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=CASES,
        help="MODEL:BATCH:PIXELS (default: the studies' shapes)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = PlainContext(threads=options.threads)
    about = circumstances(context.device, options.threads)
    for case in options.cases:
        name, batch_size, pixels = case.split(":")
        append_rows(RESULTS, [measure(name, int(batch_size), int(pixels), context, options) | about])


if __name__ == "__main__":
    main()
