"""What counting clipped units costs a step: ``python -m benchmarks.clipping_counts [--threads N] [CASE …]``.

A case is MODEL:BATCH:PIXELS. Steps with and without the counts of
:class:`nfnet_ray.training.measurement.clipping.ClippingCounts` take turns on the same random images; each is timed
alone, and two neighbours make a pair. On a CPU the time is the process's own, so that neighbours on a shared machine
count less. ``ratio`` is the median over the pairs of the step with counts / the step
without, with the 95% interval of that median (of order statistics). ``count_ms`` is the median time of the counting
itself, and ``share`` is that time / the median step.

With ``clip_factor`` none, every 16th step computes norms, for the counts alone. ``ratio`` and ``count_ms`` are of such
a step, and ``share`` is of sixteen steps. Appends a row for each case and clip factor to
``results/clipping_counts.csv``.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import (
    Row,
    append_rows,
    circumstances,
    parser_with_threads,
    processor_seconds,
    ratio_columns,
)
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import create_model
from nfnet_ray.optim import UnitNorms, unit_norms
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.measurement.clipping import STEPS_BETWEEN_NORMS, ClippingCounts
from nfnet_ray.training.step import TrainStep

RESULTS = Path(__file__).with_name("results") / "clipping_counts.csv"
CLASSES = 10
FEWEST_PAIRS, SECONDS_OF_PAIRS = 30, 15.0


class NoCounts(ClippingCounts):
    """Counts nothing."""

    def add(self, norms: UnitNorms | None) -> None:
        del norms


def measure(name: str, batch_size: int, pixels: int, clip_factor: float | None, context: PlainContext) -> Row:
    """One network's row."""
    torch.manual_seed(0)
    recipe = Recipe().with_values(
        {"model.name": name, "batch_size": batch_size, "optimizer.agc.clip_factor": clip_factor}
    )
    model = create_model(name, CLASSES).to(context.device)
    step = TrainStep(model, recipe, context, steps_per_epoch=1000)
    clipped = {key: weight for key, weight in model.named_parameters() if key != "classifier.weight"}
    counts, nothing = step.clipping_counts, NoCounts(model, clipped, context.device)
    batch = random_batch(batch_size, pixels, context.device)

    def one_step() -> None:
        step(batch)

    def norms() -> UnitNorms | None:
        return unit_norms(clipped.values())

    for _ in range(3):
        one_step()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < FEWEST_PAIRS or sum(map(sum, pairs)) < SECONDS_OF_PAIRS:
        step.number -= step.number % STEPS_BETWEEN_NORMS  # without clipping: a step that computes norms
        taken: dict[ClippingCounts, float] = {}
        for used in (counts, nothing) if len(pairs) % 2 else (nothing, counts):
            step.clipping_counts = used
            step.number -= step.number % STEPS_BETWEEN_NORMS
            taken[used] = processor_seconds(one_step, context.device)
        pairs.append((taken[counts], taken[nothing]))
    ratios = sorted(with_counts / without for with_counts, without in pairs)
    known = norms()
    if clip_factor is None:
        counting = [
            processor_seconds(lambda: counts.add(norms()), context.device) for _ in range(FEWEST_PAIRS)
        ]
    else:
        assert known is not None
        known = known._replace(is_clipped=known.gradient > known.parameter * clip_factor)
        counting = [processor_seconds(lambda: counts.add(known), context.device) for _ in range(FEWEST_PAIRS)]
    count_ms = 1e3 * statistics.median(counting)
    step_ms = 1e3 * statistics.median(without for _, without in pairs)
    return {
        "model": name,
        "batch_size": batch_size,
        "pixels": pixels,
        "clip_factor": "none" if clip_factor is None else clip_factor,
        "step_ms": round(step_ms, 2),
        "count_ms": round(count_ms, 3),
        "share": round(count_ms / step_ms / (STEPS_BETWEEN_NORMS if clip_factor is None else 1), 5),
        **ratio_columns(ratios),
        "pairs": len(pairs),
    }


def random_batch(size: int, pixels: int, device: torch.device) -> TrainBatch:
    """Noise with labels."""
    return TrainBatch(
        images=torch.randint(0, 256, (size, pixels, pixels, 3), dtype=torch.uint8, device=device),
        labels=torch.randint(0, CLASSES, (size,), device=device),
        indices=np.arange(size),
        positions=np.arange(size),
        keys=torch.arange(size, device=device),
    )


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=["nfnet_pico:64:32", "nfnet_nano:32:64", "nfnet_f0:8:128"],
        help="MODEL:BATCH:PIXELS (default: %(default)s)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = PlainContext(threads=options.threads)
    about = circumstances(context.device, options.threads)
    for case in options.cases:
        name, batch_size, pixels = case.split(":")
        for clip_factor in (0.01, None):
            row = measure(name, int(batch_size), int(pixels), clip_factor, context)
            append_rows(RESULTS, [row | about])


if __name__ == "__main__":
    main()
