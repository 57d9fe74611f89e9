"""Normalisation of images for a network: float32, channels first, with zero mean and unit variance over ImageNet."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# The official dataset.py, times 255 for pixels of 8 bits.
CHANNEL_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
CHANNEL_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def normalise(images_NHWC: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """(N, H, W, 3), uint8 or float32 in 0..255, to float32 (N, 3, H, W) of zero mean and unit variance over ImageNet.

    ``(x - mean) / std`` for each channel, with the constants of the official ``dataset.py``.
    """
    mean, std = _constants(images_NHWC.device)
    is_copied = (
        images_NHWC.dtype != torch.float32
    )  # float32 images are not copied, and the batch needs them later
    if memory_format == torch.channels_last:
        # Loop over rows, because on a CPU loops over three channels are several times as slow.
        width = images_NHWC.shape[2]
        rows = images_NHWC.flatten(2).to(torch.float32)
        rows = rows.sub_(mean.repeat(width)) if is_copied else rows.sub(mean.repeat(width))
        images_NCHW = rows.div_(std.repeat(width)).view(images_NHWC.shape).permute(0, 3, 1, 2)
        return images_NCHW.contiguous(memory_format=memory_format)
    images_NCHW = images_NHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=memory_format)
    mean, std = mean[:, None, None], std[:, None, None]
    return (images_NCHW.sub_(mean) if is_copied else images_NCHW.sub(mean)).div_(std)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of the channels, which are copied to the device once in a process.

    A copy from the host's memory would wait for the device, and could not be part of a CUDA graph.
    """
    # The constants stay for all later trials, so they must not depend on torch's modes during the first batch.
    with torch.inference_mode(False):
        return (
            torch.tensor(CHANNEL_MEAN, dtype=torch.float32, device=device),
            torch.tensor(CHANNEL_STD, dtype=torch.float32, device=device),
        )
