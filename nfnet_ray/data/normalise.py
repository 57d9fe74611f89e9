"""Images as networks take them: float32, channels first, of zero mean and unit variance over ImageNet."""

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
    is_copied = images_NHWC.dtype != torch.float32  # images that are float32 already are used again
    if memory_format == torch.channels_last:
        # Row by row: on a CPU, loops over three channels are several times as slow.
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
    """Mean and deviation of the channels, copied to the device once in a process.

    A copy from the host's memory waits for the device, and cannot be part of a CUDA graph.
    """
    # Whatever torch's default dtype and mode are when the first batch comes: they stay for all later trials.
    with torch.inference_mode(False):
        return (
            torch.tensor(CHANNEL_MEAN, dtype=torch.float32, device=device),
            torch.tensor(CHANNEL_STD, dtype=torch.float32, device=device),
        )
