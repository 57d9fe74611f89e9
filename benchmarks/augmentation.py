"""What augmentation costs: ``python -m benchmarks.augmentation [--threads N] [SIZE ...]``.

A batch of 256 random images is mixed (MixUp on one half, CutMix on the other) and goes through four layers of
RandAugment, at the published magnitude of F0, of F1 and F2, and of F3 to F7; medians over epochs, whose draws differ.
Appends a row for each size and magnitude to ``results/augmentation.csv``.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import Row, append_rows, circumstances, parser_with_threads, seconds
from nfnet_ray.command_line.arguments import positive
from nfnet_ray.data.augmentation.augment import augment
from nfnet_ray.data.batch import Batch
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe

RESULTS = Path(__file__).with_name("results") / "augmentation.csv"
REPEATS = 9
BATCH, LAYERS = 256, 4
MAGNITUDES = (5.0, 10.0, 15.0)


def measure(size: int, magnitude: float, device: torch.device) -> Row:
    """Medians in milliseconds for one batch: mixing alone, and all of it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, BATCH, size, size, 3), generator=generator, dtype=torch.uint8)
    labels, indices = torch.zeros(BATCH, dtype=torch.int64, device=device), np.arange(BATCH)
    own, partners = (Batch(images.to(device), labels, indices) for images in pixels)
    mixing = MixingRecipe(mixup_alpha=0.2, cutmix_alpha=1.0, partners="separate")
    recipes = {
        "mixing": DataRecipe(flip=False, mixing=mixing, randaugment=RandAugmentRecipe(0)),
        "both": DataRecipe(flip=False, mixing=mixing, randaugment=RandAugmentRecipe(LAYERS, magnitude)),
    }
    times: dict[str, list[float]] = {name: [] for name in recipes}
    for epoch in range(1 + REPEATS):  # the first warms up
        for name, recipe in recipes.items():
            work = partial(augment, own, indices, partners, recipe, seed=0, epoch=epoch)
            times[name].append(seconds(work, device))
    medians = {name: 1e3 * statistics.median(samples[1:]) for name, samples in times.items()}
    return {
        "size": size,
        "batch": BATCH,
        "layers": LAYERS,
        "magnitude": magnitude,
        "mixing_ms": round(medians["mixing"], 1),
        "mixing_and_randaugment_ms": round(medians["both"], 1),
        "images_per_second": round(1e3 * BATCH / medians["both"]),
        "n": REPEATS,
    }


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "sizes",
        nargs="*",
        type=positive,
        default=[64, 192],
        metavar="SIZE",
        help="side of an image in pixels (default: %(default)s)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = circumstances(device, options.threads)
    rows = [measure(size, magnitude, device) | about for size in options.sizes for magnitude in MAGNITUDES]
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
