"""What happens to a batch on the device, after decoding: shift, flip, normalise."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nfnet_ray.data.draws import Purpose, uniforms
from nfnet_ray.recipe import DataRecipe

CHANNEL_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)  # official dataset.py, of uint8 pixels
CHANNEL_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def augment(
    images_NHWC: Tensor, indices: NDArray[np.int64], recipe: DataRecipe, seed: int, epoch: int
) -> Tensor:
    """Shifts (``crop="padded"``) and flips a uint8 batch (N, H, W, 3); same shape and dtype.

    What happens to an image depends on (seed, epoch, its sample index) alone.
    """
    if recipe.crop == "padded" and recipe.crop_padding:
        shifts = uniforms(seed, epoch, Purpose.SHIFT, indices, 2) * (2 * recipe.crop_padding + 1)
        images_NHWC = _shifted(images_NHWC, shifts.astype(np.int64), recipe.crop_padding)
    if recipe.flip:
        flipped = torch.from_numpy(uniforms(seed, epoch, Purpose.FLIP, indices)[:, 0] < 0.5)
        images_NHWC = torch.where(
            flipped.to(images_NHWC.device)[:, None, None, None], images_NHWC.flip(2), images_NHWC
        )
    return images_NHWC


def _shifted(images_NHWC: Tensor, offsets: NDArray[np.int64], padding: int) -> Tensor:
    """Each image's window at its (row, column) offset in the image padded with black."""
    count, height, width, _ = images_NHWC.shape
    padded = F.pad(images_NHWC, (0, 0, padding, padding, padding, padding))
    device = images_NHWC.device
    offset = torch.from_numpy(offsets).to(device)
    rows = offset[:, :1] + torch.arange(height, device=device)
    columns = offset[:, 1:] + torch.arange(width, device=device)
    return padded[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalise(images_NHWC: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) with zero mean and unit variance over ImageNet."""
    mean = torch.tensor(CHANNEL_MEAN, device=images_NHWC.device)
    std = torch.tensor(CHANNEL_STD, device=images_NHWC.device)
    normalised = images_NHWC.to(torch.float32).sub_(mean).div_(std)
    return normalised.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
