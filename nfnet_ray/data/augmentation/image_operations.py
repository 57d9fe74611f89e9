"""The 16 operations of RandAugment and AutoAugment, as the official ``autoaugment.py`` does them.

Each takes a batch, uint8 (N, H, W, 3), and returns another of the same shape. All are exact: the same bytes as the
official TensorFlow code's (``tests/parity/test_randaugment.py``). So the order of float32 operations matters here,
and float results are cut off, not rounded, where they become pixels. torchvision's operations of the same
names, which follow Pillow, give other bytes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

FILL = 128  # what comes in from outside, and what Cutout fills with (official replace_value)
GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)  # tf.image.rgb_to_grayscale
_BYTE = float(np.float32(1 / 255))  # tf.image.convert_image_dtype multiplies by it in float32
_SMOOTH, _SMOOTH_CENTRE = (float(np.float32(k) / np.float32(13)) for k in (1, 5))  # Pillow's SMOOTH kernel


def blend(degenerate: Tensor, images: Tensor, factor: float) -> Tensor:
    """``degenerate + factor * (images - degenerate)`` in float32, clipped to 0..255 and cut off to uint8."""
    if factor == 1.0:
        return images
    base = degenerate.to(torch.float32)
    # Three operations, not torch.lerp or addcmul: one rounding after each, as in the official code.
    return (base + factor * (images - base)).clamp_(0, 255).to(torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel of each image to 0..255; a channel of one value stays."""
    low = images.amin(dim=1).amin(dim=1).to(torch.float32)[..., None]
    high = images.amax(dim=1).amax(dim=1).to(torch.float32)[..., None]
    levels = torch.arange(256, dtype=torch.float32, device=images.device)
    scale = torch.full_like(low, 255) / (high - low)  # 255 / (...) would be 255 times a rounded reciprocal
    stretched = levels * scale + -low * scale  # where all values are the same: nan, not used
    return _looked_up(images, torch.where(high > low, stretched.clamp_(0, 255), levels).to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """Spreads each channel's histogram by a table of whole numbers, as Pillow's ``equalize``."""
    pixels = images.shape[1] * images.shape[2]
    planes = _planes(images)
    histogram = torch.zeros(*planes.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, planes, torch.ones_like(planes))
    brightest = histogram.gather(2, planes.amax(dim=2, keepdim=True))
    step = (pixels - brightest) // 255
    table = (histogram.cumsum(dim=2) - histogram + step // 2) // step.clamp(min=1)
    unchanged = torch.arange(256, device=images.device)
    return _looked_up(images, torch.where(step == 0, unchanged, table.clamp_(0, 255)).to(torch.uint8), planes)


def _planes(images: Tensor) -> Tensor:
    """(N, 3, H W), int64: a table's places."""
    return images.permute(0, 3, 1, 2).flatten(2).long()


def _looked_up(images: Tensor, tables: Tensor, planes: Tensor | None = None) -> Tensor:
    """Each pixel's entry in the table of its image and channel, uint8 (N, 3, 256)."""
    count, height, width, _ = images.shape
    found = tables.gather(2, _planes(images) if planes is None else planes)
    return found.view(count, 3, height, width).permute(0, 2, 3, 1)


def invert(images: Tensor) -> Tensor:
    """``255 - x``."""
    return 255 - images


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keeps the ``bits`` upper bits; 0 bits keep one.

    The official code shifts by ``8 - bits``, as uint8, and TensorFlow shifts by 7 at most. So more than 8 bits, of
    a magnitude of 22.5 or more, wrap round to a shift by 7 as well.
    """
    shift = min((8 - bits) % 256, 7)
    return images & (0xFF << shift & 0xFF)


def solarize(images: Tensor, threshold: int) -> Tensor:
    """Inverts what is not below the threshold, which is taken modulo 256.

    The official code compares uint8 numbers, so its threshold of 256 at magnitude 10 wraps round to 0, which
    inverts everything, and that of 384 at magnitude 15 to 128.
    """
    # 255 - x is x with every bit turned; on a CPU this is several times as fast as torch.where.
    return images ^ (images >= threshold % 256).to(torch.uint8) * 255


def solarize_add(images: Tensor, addition: int) -> Tensor:
    """Adds to what is below 128, up to 255."""
    addition = min(addition, 255)
    added = images.clamp(max=255 - addition) + addition - images
    return images + (images < 128).to(torch.uint8) * added


def color(images: Tensor, factor: float) -> Tensor:
    """Away from grey, or towards it below 1."""
    if factor == 1.0:
        return images
    channels = images.permute(3, 0, 1, 2).contiguous()  # channels apart: several times faster on a CPU
    red, green, blue = channels.to(torch.float32) * _BYTE
    grey = red * GREY_WEIGHTS[0] + green * GREY_WEIGHTS[1] + blue * GREY_WEIGHTS[2]
    degenerate = (grey * 255.5).clamp_(0, 255).to(torch.uint8)
    return blend(degenerate, channels, factor).permute(1, 2, 3, 0)


def contrast(images: Tensor, factor: float) -> Tensor:
    """Away from a grey level that is the number of pixels / 256, 255 at most, and not the image's mean.

    The official code sums the histogram's counts, not its values. For 192 px the level is 144.
    """
    pixels = images.shape[1] * images.shape[2]
    level = torch.full((), min(pixels // 256, 255), dtype=torch.uint8, device=images.device)
    return blend(level, images, factor)


def brightness(images: Tensor, factor: float) -> Tensor:
    """Away from black."""
    return blend(torch.zeros((), dtype=torch.uint8, device=images.device), images, factor)


def sharpness(images: Tensor, factor: float) -> Tensor:
    """Away from the image smoothed over 3 x 3 pixels; its outermost pixels stay."""
    if factor == 1.0:
        return images
    _, height, width, _ = images.shape
    pixels = images.to(torch.float32)
    around, centre = pixels * _SMOOTH, pixels * _SMOOTH_CENTRE
    total = torch.zeros_like(around[:, 2:, 2:])
    for row in range(3):  # row by row, one addition after the other, as TensorFlow's convolution
        for column in range(3):
            tap = centre if (row, column) == (1, 1) else around
            total += tap[:, row : height - 2 + row, column : width - 2 + column]
    degenerate = images.clone()
    degenerate[:, 1:-1, 1:-1] = total.clamp_(0, 255).to(torch.uint8)
    return blend(degenerate, images, factor)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """About the centre; nearest pixel. Positive angles turn the picture counterclockwise."""
    radians = np.float32(degrees) * np.float32(math.pi / 180)
    # Computed in float64 and then rounded: the same on every processor, and what TensorFlow gave.
    cos, sin = np.float32(np.cos(np.float64(radians))), np.float32(np.sin(np.float64(radians)))
    height, width = (np.float32(side - 1) for side in images.shape[1:3])
    x_offset = (width - (cos * width - sin * height)) / np.float32(2)
    y_offset = (height - (sin * width + cos * height)) / np.float32(2)
    return _warped(images, (cos, -sin, x_offset, sin, cos, y_offset))


def shear_x(images: Tensor, level: float) -> Tensor:
    """The pixel at (x, y) comes from (x + level y, y), the nearest one."""
    return _warped(images, (1, level, 0, 0, 1, 0))


def shear_y(images: Tensor, level: float) -> Tensor:
    """The pixel at (x, y) comes from (x, y + level x), the nearest one."""
    return _warped(images, (1, 0, 0, level, 1, 0))


def translate_x(images: Tensor, pixels: float) -> Tensor:
    """To the left, by pixels whatever the size of the image."""
    return _warped(images, (1, 0, pixels, 0, 1, 0))


def translate_y(images: Tensor, pixels: float) -> Tensor:
    """Upwards, by pixels whatever the size of the image."""
    return _warped(images, (1, 0, 0, 0, 1, pixels))


def cutout(images: Tensor, half_side: int, centres_N2: Tensor) -> Tensor:
    """Fills the square of ``2 * half_side`` pixels about each image's (row, column), int64."""
    _, height, width, _ = images.shape
    row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (row >= centres_N2[:, :1] - half_side) & (row < centres_N2[:, :1] + half_side)
    in_columns = (column >= centres_N2[:, 1:] - half_side) & (column < centres_N2[:, 1:] + half_side)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[..., None], FILL)


def _warped(images: Tensor, transform: tuple[float | np.float32, ...]) -> Tensor:
    """Each pixel (x, y) from the one nearest to (a x + b y + c, d x + e y + f); from outside comes FILL."""
    count, height, width, channels = images.shape
    coefficients = tuple(float(np.float32(value)) for value in transform)
    source, outside = _source_pixels(coefficients, height, width, images.device)
    moved = images.reshape(count, height * width, channels).index_select(1, source)
    return moved.masked_fill_(outside[:, None], FILL).view(images.shape)


@functools.lru_cache(maxsize=64)  # a run needs ten: five operations, two signs
def _source_pixels(
    transform: tuple[float, ...], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from: its source's place, row by row, and whether that is outside; (H W,) each.

    In float32, term by term, and ties away from zero, as TensorFlow's ImageProjectiveTransform.
    """
    a, b, c, d, e, f = (np.float32(value) for value in transform)
    x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    column, row = _rounded(a * x + b * y + c), _rounded(d * x + e * y + f)
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    source = np.where(outside, 0, row * width + column).astype(np.int64).reshape(-1)
    return torch.from_numpy(source).to(device), torch.from_numpy(outside.reshape(-1)).to(device)


def _rounded(values: np.ndarray) -> np.ndarray:
    whole = np.trunc(values)
    return np.where(np.abs(values - whole) >= 0.5, whole + np.sign(values), whole)


OPERATIONS: dict[str, Callable[..., Tensor]] = {  # in the official order of RandAugment
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "Posterize": posterize,
    "Solarize": solarize,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Cutout": cutout,
    "SolarizeAdd": solarize_add,
}
