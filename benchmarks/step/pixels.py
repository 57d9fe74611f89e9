"""Shifts, flips and normalisation in few passes: ``python -m benchmarks.step.pixels [--threads N] [CASE ...]``.

A case is BATCH:PIXELS. Random images are shifted and flipped, and normalised in both layouts, in turns by the functions
of the training and by plain ones, which gather pixel by pixel, mirror all images to choose among them, and change the
layout last. The ratios are medians over rounds of the time of the former / the latter, with the median of the former in
milliseconds. On a CPU the time is the process's own. Both give the same bits (``tests/training/same_bits``). Appends a
row for each case to ``results/step_pixels.csv``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clipping_counts import random_batch
from benchmarks.record import Row, append_rows, circumstances, parser_with_threads, processor_seconds
from nfnet_ray.data.augmentation.augment import shifted_and_flipped
from nfnet_ray.data.batch import Batch, on_device
from nfnet_ray.data.draws import Purpose, uniforms
from nfnet_ray.data.normalise import CHANNEL_MEAN, CHANNEL_STD, normalise
from nfnet_ray.recipe import DataRecipe

RESULTS = Path(__file__).parents[1] / "results" / "step_pixels.csv"
ROUNDS = 25
PADDING = 4
RECIPE = DataRecipe(crop="padded", crop_padding=PADDING)


def plainly_shifted_and_flipped(batch: Batch, epoch: int) -> Tensor:
    """Pixel by pixel, and by a choice between each image and its mirror image."""
    count, height, width, _ = batch.images.shape
    device = batch.images.device
    draws = uniforms(0, epoch, Purpose.SHIFT, batch.indices, 2) * (2 * PADDING + 1)
    offset = on_device(draws.astype(np.int64), device)
    padded = F.pad(batch.images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    rows = offset[:, :1] + torch.arange(height, device=device)
    columns = offset[:, 1:] + torch.arange(width, device=device)
    image = torch.arange(count, device=device)[:, None, None]
    shifted = padded[image, rows[:, :, None], columns[:, None, :]]
    flipped = on_device(uniforms(0, epoch, Purpose.FLIP, batch.indices)[:, 0] < 0.5, device)
    return torch.where(flipped[:, None, None, None], shifted.flip(2), shifted)


def plainly_normalised(images_NHWC: Tensor, memory_format: torch.memory_format) -> Tensor:
    """In the layout of the images, which is changed at last."""
    mean, std = (torch.tensor(values, device=images_NHWC.device) for values in (CHANNEL_MEAN, CHANNEL_STD))
    normalised = images_NHWC.to(torch.float32).sub(mean).div_(std)
    return normalised.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


def measure(batch_size: int, pixels: int, device: torch.device) -> Row:
    """One case's row."""
    batch = random_batch(batch_size, pixels, device)
    row: Row = {"batch_size": batch_size, "pixels": pixels}
    works: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "shift_and_flip": (
            partial(shifted_and_flipped, batch, RECIPE, seed=0, epoch=0),
            partial(plainly_shifted_and_flipped, batch, 0),
        ),
        "normalise_NCHW": (
            partial(normalise, batch.images, torch.contiguous_format),
            partial(plainly_normalised, batch.images, torch.contiguous_format),
        ),
        "normalise_NHWC": (
            partial(normalise, batch.images, torch.channels_last),
            partial(plainly_normalised, batch.images, torch.channels_last),
        ),
    }
    for name, (ours, plain) in works.items():
        assert torch.equal(ours(), plain())
        pairs = [(processor_seconds(ours, device), processor_seconds(plain, device)) for _ in range(ROUNDS)]
        row[f"{name}_ms"] = round(1e3 * statistics.median(own for own, _ in pairs), 3)
        row[f"{name}_ratio"] = round(statistics.median(own / other for own, other in pairs), 3)
    return row | {"n": ROUNDS}


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = parser_with_threads(__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=["64:8", "64:32", "256:32", "256:192"],
        help="BATCH:PIXELS (default: %(default)s)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for case in options.cases:
        batch_size, pixels = map(int, case.split(":"))
        append_rows(RESULTS, [measure(batch_size, pixels, device) | circumstances(device, options.threads)])


if __name__ == "__main__":
    main()
