"""A training step with SAM and its relatives and a plain one: ``python -m benchmarks.sharpness [--threads N]``.

Whole optimiser steps (gradient, clipping, update, average) on images in memory, one with each method in turn;
a measurement is the mean over five of them, so that LookSAM's ascent is in it once. Appends a row for each
network and method to ``results/sharpness.csv``; ``ratio`` is the median of the ratios to the plain steps in between.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.networks import IMAGENET_CLASSES, random_batch
from benchmarks.record import Row, append_rows, circumstances, parser_with_threads, seconds
from nfnet_ray.command_line.arguments import positive, whole_number
from nfnet_ray.models import model_of
from nfnet_ray.models.published import published_recipe, resolve
from nfnet_ray.recipe import ResolvedRecipe
from nfnet_ray.training.context import PlainContext
from nfnet_ray.training.determinism import reset_process
from nfnet_ray.training.form.placing import place
from nfnet_ray.training.gradient import DTYPES
from nfnet_ray.training.step import TrainStep

RESULTS = Path(__file__).with_name("results") / "sharpness.csv"
STEPS = 5  # LookSAM's interval
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"rho": None},
    "sam, ascent on all": {"rho": 0.05},
    "sam, ascent on 20%": {"rho": 0.05, "ascent_share": 0.2},
    "asam": {"rho": 0.5, "method": "asam"},
    "looksam, every 5th step": {"rho": 0.05, "method": "looksam", "looksam_interval": STEPS},
    "esam, 60% of weights, 50% of data": {
        "rho": 0.05,
        "method": "esam",
        "esam_weight_share": 0.6,
        "esam_data_share": 0.5,
    },
}


def measure(recipe: ResolvedRecipe, context: PlainContext, repeats: int) -> list[Row]:
    """A row for each way: the median milliseconds of a step, and the median ratio to a plain one."""
    reset_process(recipe.seed, context.threads)
    batch = random_batch(recipe, context.device)
    steps: dict[str, TrainStep] = {}
    for way, settings in WAYS.items():
        own = recipe.with_values({f"optimizer.sam.{field}": value for field, value in settings.items()})
        model = model_of(own.model, IMAGENET_CLASSES)
        place(model, own, context.device)
        steps[way] = TrainStep(model, own, context, steps_per_epoch=1000)

    for step in steps.values():
        for _ in range(STEPS):  # allocates; on a GPU, chooses kernels
            step(batch)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        sums = dict.fromkeys(WAYS, 0.0)
        for _ in range(STEPS):  # in turns, so that what else the machine does meets all of them
            for way, step in steps.items():
                sums[way] += seconds(partial(step, batch), context.device)
        for way, total in sums.items():
            times[way].append(total / STEPS)
    return [
        {
            "model": recipe.model.name,
            "method": way,
            "step_ms": round(1e3 * statistics.median(own), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(own, times["plain"], strict=True)), 2),
            "n": repeats,
            "batch_size": recipe.batch_size,
            "image_size": str(recipe.data.image_size),
            "precision": recipe.precision,
        }
        for way, own in times.items()
    ]


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "--batch-size", type=positive, default=64, help="images of each step (default: %(default)s)"
    )
    parser.add_argument(
        "--image-size",
        type=whole_number(0),
        default=32,
        help="side of an image in pixels; 0: the model's own (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=sorted(DTYPES),
        help="dtype of the arithmetic (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=positive, default=9, help="measurements of each method (default: %(default)s)"
    )
    parser.add_argument(
        "models",
        nargs="*",
        default=["nfnet_pico", "nfnet_nano"],
        metavar="MODEL",
        help="networks (default: %(default)s)",
    )
    options = parser.parse_args()
    context = PlainContext(threads=options.threads)
    about = circumstances(context.device, options.threads)
    rows: list[Row] = []
    for name in options.models:
        values: dict[str, Any] = {"batch_size": options.batch_size, "precision": options.precision}
        if options.image_size:
            values["data.image_size"] = options.image_size
        rows += [
            row | about
            for row in measure(resolve(published_recipe(name).with_values(values)), context, options.repeats)
        ]
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
