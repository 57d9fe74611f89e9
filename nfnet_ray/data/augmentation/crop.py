"""Crops of stored images, as boxes of (top, left, height, width) in pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.data.draws import Purpose, uniforms

AREA_RANGE = (0.08, 1.0)  # Inception crop, official dataset.py: share of the image's area
SMALLEST_KEPT_AREA = 0.1  # its min_object_covered, where the object is the whole image
ASPECT_RANGE = (3 / 4, 4 / 3)  # and width / height of the box
ATTEMPTS = 10  # official dataset.py: max_attempts
EVAL_MARGIN_PIXELS = 32  # official evaluation scales to size + 32, then cuts the centre (dataset.py)

Boxes = NDArray[np.int64]
Sizes = NDArray[np.int64]


def random_resized_boxes(
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    heights: Sizes,
    widths: Sizes,
    size: int,
    purpose: Purpose = Purpose.RESIZED_CROP,
) -> Boxes:
    """Inception crops, (N, 4): the first that fits of 10 attempts at a random aspect and height, or else the centre.

    The distribution is that of TensorFlow's ``sample_distorted_bounding_box``, which the official code calls. The
    aspect is uniform in [3/4, 4/3], and the *height* is uniform among those that fit into the image and give an area of
    0.08 to 1 of it. A box of less than 0.1 of the image is rejected. So half of the boxes of a 500 x 375 image have
    less than 0.36 of its area; in torchvision, which draws the area, the median is 0.42. After ten failures the box is
    the central square of evaluation for images of ``size`` pixels.

    Source: official ``dataset.py``; TensorFlow ``sample_distorted_bounding_box_op.cc``; paper appendix A.1.
    """
    draws = uniforms(seed, epoch, purpose, indices, 4 * ATTEMPTS).reshape(-1, ATTEMPTS, 4)
    height, width = heights[:, None].astype(np.float64), widths[:, None].astype(np.float64)
    area = height * width
    aspect = ASPECT_RANGE[0] + draws[..., 0] * (ASPECT_RANGE[1] - ASPECT_RANGE[0])
    lowest = np.rint(np.sqrt(AREA_RANGE[0] * area / aspect))
    highest = np.rint(np.sqrt(AREA_RANGE[1] * area / aspect))
    highest = np.where(np.rint(highest * aspect) > width, np.floor((width + 0.5) / aspect), highest)
    highest -= np.rint(highest * aspect) > width  # half a pixel may have been rounded up
    highest = np.minimum(highest, height)
    lowest = np.minimum(lowest, highest)
    box_height = lowest + np.floor(draws[..., 1] * (highest - lowest + 1))
    box_width = np.rint(box_height * aspect)
    share = box_height * box_width / area
    fits: NDArray[np.bool_] = (share >= SMALLEST_KEPT_AREA) & (share <= AREA_RANGE[1]) & (box_width <= width)
    # TensorFlow never draws the last position, at which the box touches the lower or right edge.
    top = np.floor(draws[..., 2] * np.maximum(height - box_height, 1))
    left = np.floor(draws[..., 3] * np.maximum(width - box_width, 1))
    attempts = np.stack([top, left, box_height, box_width], axis=-1).astype(np.int64)
    first = attempts[np.arange(len(indices)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1, keepdims=True), first, central_square_boxes(heights, widths, size))


def whole_boxes(heights: Sizes, widths: Sizes) -> Boxes:
    """The whole of each image, (N, 4)."""
    zero = np.zeros_like(heights)
    return np.stack([zero, zero, heights, widths], axis=-1)


def central_square_boxes(heights: Sizes, widths: Sizes, size: int) -> Boxes:
    """The usual evaluation crop, (N, 4): a central square whose side is ``size / (size + 32)`` of the shorter side.

    An image that already has the size of evaluation is used whole.
    """
    shorter = np.minimum(heights, widths)
    side = np.maximum(np.rint(shorter * size / (size + EVAL_MARGIN_PIXELS)).astype(np.int64), 1)
    side = np.where((heights == size) & (widths == size), size, side)
    return _central(heights, widths, side, side)


def squash_and_crop(image_HWC: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Writes the crop of the official evaluation to ``out``, (size, size, 3) uint8.

    Both sides are resized to ``size + 32``, whatever the aspect, with Pillow's bicubic filter as in the official demo
    notebook, and the centre is cut out. The loader does not call this for an image that already has the size.
    """
    from PIL import Image  # here, so that training needs no Pillow

    size = out.shape[0]
    scaled, margin = size + EVAL_MARGIN_PIXELS, EVAL_MARGIN_PIXELS // 2
    resized = Image.fromarray(image_HWC).resize((scaled, scaled), Image.Resampling.BICUBIC)
    out[:] = np.asarray(resized)[margin : margin + size, margin : margin + size]


def _central(heights: Sizes, widths: Sizes, box_heights: Sizes, box_widths: Sizes) -> Boxes:
    tops, lefts = (heights - box_heights) // 2, (widths - box_widths) // 2
    return np.stack([tops, lefts, box_heights, box_widths], axis=-1)
