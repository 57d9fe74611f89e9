"""Which part of a stored image becomes a sample: boxes of (top, left, height, width) in pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.data.draws import Purpose, uniforms

AREA_RANGE = (0.08, 1.0)  # Inception crop, official dataset.py: share of the image's area
ASPECT_RANGE = (3 / 4, 4 / 3)  # and width / height of the box
ATTEMPTS = 10
EVAL_MARGIN_PIXELS = 32  # official evaluation scales to size + 32, then cuts the centre (dataset.py)

Boxes = NDArray[np.int64]
Sizes = NDArray[np.int64]


def random_resized_boxes(
    seed: int, epoch: int, indices: NDArray[np.int64], heights: Sizes, widths: Sizes
) -> Boxes:
    """Inception crops, (N, 4): of 10 attempts at a random area and aspect the first that fits, else the centre.

    Area is uniform in [0.08, 1] of the image's, aspect is log-uniform in [3/4, 4/3].
    Source: official ``dataset.py``; the paper's appendix A.1 names it Inception-style.
    """
    draws = uniforms(seed, epoch, Purpose.RESIZED_CROP, indices, 4 * ATTEMPTS).reshape(-1, ATTEMPTS, 4)
    height, width = heights[:, None].astype(np.float64), widths[:, None].astype(np.float64)
    area = height * width * (AREA_RANGE[0] + draws[..., 0] * (AREA_RANGE[1] - AREA_RANGE[0]))
    log_low, log_high = np.log(ASPECT_RANGE)
    aspect = np.exp(log_low + draws[..., 1] * (log_high - log_low))
    box_width, box_height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (box_width >= 1) & (box_height >= 1) & (box_width <= width) & (box_height <= height)
    top = np.floor(draws[..., 2] * (height - box_height + 1))
    left = np.floor(draws[..., 3] * (width - box_width + 1))
    attempts = np.stack([top, left, box_height, box_width], axis=-1).astype(np.int64)
    first = attempts[np.arange(len(indices)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1)[:, None], first, _central_boxes_within_aspect(heights, widths))


def _central_boxes_within_aspect(heights: Sizes, widths: Sizes) -> Boxes:
    """The largest central boxes whose aspect is inside the Inception range, (N, 4)."""
    box_width = np.minimum(widths, np.rint(heights * ASPECT_RANGE[1]).astype(np.int64))
    box_height = np.minimum(heights, np.rint(widths / ASPECT_RANGE[0]).astype(np.int64))
    return _central(heights, widths, box_height, box_width)


def whole_boxes(heights: Sizes, widths: Sizes) -> Boxes:
    """The whole of each image, (N, 4)."""
    zero = np.zeros_like(heights)
    return np.stack([zero, zero, heights, widths], axis=-1)


def central_square_boxes(heights: Sizes, widths: Sizes, size: int) -> Boxes:
    """The usual keep-aspect evaluation crop, (N, 4): a central square of ``size / (size + 32)`` of the shorter side.

    An image that already has the evaluation's size is taken whole.
    """
    shorter = np.minimum(heights, widths)
    side = np.maximum(np.rint(shorter * size / (size + EVAL_MARGIN_PIXELS)).astype(np.int64), 1)
    side = np.where((heights == size) & (widths == size), size, side)
    return _central(heights, widths, side, side)


def _central(heights: Sizes, widths: Sizes, box_heights: Sizes, box_widths: Sizes) -> Boxes:
    tops, lefts = (heights - box_heights) // 2, (widths - box_widths) // 2
    return np.stack([tops, lefts, box_heights, box_widths], axis=-1)
