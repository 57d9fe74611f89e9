"""A training step of a cohort against that of a single trial: ``python -m benchmarks.step.cohort [CASE …]``.

A case is MODEL:BATCH:PIXELS:LANES, with the model's published Recipe (gradient, AGC, update, moving average) on random
images in memory; the lanes have different clip factors. A step of the cohort and one of a trial take turns in one
process, each is timed alone, and two neighbours make a pair. On a CPU the time is the process's own, so that neighbours
on a shared machine count less. ``ratio`` is the median over the pairs of the cohort's step / lanes / the trial's step,
with the 95% interval of that median (of order statistics). Appends a row for each case to ``results/cohort.csv``.
"""

from __future__ import annotations

import argparse
import statistics
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
from nfnet_ray.models.published import published_recipe, resolve
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.cohort.step import CohortStep, Lane
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.form.placing import place
from nfnet_ray.training.gradient import MEMORY_FORMATS
from nfnet_ray.training.step import TrainStep

RESULTS = Path(__file__).parents[1] / "results" / "cohort.csv"
CLASSES = 10
STEPS_PER_EPOCH = 1000  # of the learning rate's schedule; no time depends on it
WARM_UPS = 2
CASES = [f"nfnet_pico:{batch}:32:{lanes}" for batch in (8, 64) for lanes in (1, 4, 16)]


def new_trial(recipe: ResolvedRecipe, context: PlainContext) -> Lane:
    """A trial with a new network, the same for the same seed."""
    reset_process(recipe.seed, context.threads)
    model = model_of(recipe.model, CLASSES)
    place(model, recipe, context.device)
    model.train()
    return Lane(recipe, model, TrainStep(model, recipe, context, STEPS_PER_EPOCH))


def lanes_of(recipe: ResolvedRecipe, lanes: int, context: PlainContext) -> list[Lane]:
    """Trials with different clip factors."""
    factors = [0.01 * (1 + lane) for lane in range(lanes)]
    return [
        new_trial(recipe.with_values({"optimizer.agc.clip_factor": factor}), context) for factor in factors
    ]


def measure(
    name: str, batch_size: int, pixels: int, lanes: int, context: PlainContext, options: argparse.Namespace
) -> Row:
    """One case's row."""
    recipe = resolve(
        published_recipe(name).with_values(
            {"batch_size": batch_size, "data.image_size": pixels, "memory_format": options.memory_format}
        )
    )
    batch = random_batch(batch_size, pixels, context.device)
    alone = new_trial(recipe, context).step
    cohort = CohortStep(lanes_of(recipe, lanes, context))
    for _ in range(WARM_UPS):
        alone(batch)
        cohort(batch)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < options.fewest_pairs or sum(sum(pair) for pair in pairs) < options.seconds:
        pairs.append(
            (
                processor_seconds(lambda: alone(batch), context.device),
                processor_seconds(lambda: cohort(batch), context.device) / lanes,
            )
        )
    ratios = [lane / single for single, lane in pairs]
    return {
        "model": name,
        "batch_size": batch_size,
        "pixels": pixels,
        "lanes": lanes,
        "memory_format": options.memory_format,
        "alone_ms": round(1e3 * statistics.median(single for single, _ in pairs), 2),
        "lane_ms": round(1e3 * statistics.median(lane for _, lane in pairs), 2),
        **ratio_columns(ratios),
        "pairs": len(pairs),
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "--fewest-pairs", type=positive, default=9, help="pairs of steps of a case (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=6, help="seconds of a case, at least (default: %(default)s)"
    )
    parser.add_argument(
        "--memory-format",
        choices=sorted(MEMORY_FORMATS),
        default="contiguous",
        help="memory layout of both steps (default: %(default)s)",
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=CASES,
        help="MODEL:BATCH:PIXELS:LANES (default: nfnet_pico at 32 pixels)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = PlainContext(device=torch.device("cpu"), threads=options.threads)
    about = circumstances(context.device, options.threads)
    for case in options.cases:
        name, *numbers = case.split(":")
        batch_size, pixels, lanes = map(int, numbers)
        append_rows(RESULTS, [measure(name, batch_size, pixels, lanes, context, options) | about])


if __name__ == "__main__":
    main()
