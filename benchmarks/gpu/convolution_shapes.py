"""The convolutions of a normaliser-free network: their shapes, how often each occurs, what each costs at least."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from nfnet_ray.models.variants import Variant, block_plan

Pass = Literal["forward", "input gradient", "weight gradient"]
PASSES: tuple[Pass, ...] = ("forward", "input gradient", "weight gradient")
BYTES_PER_VALUE = 2  # bfloat16


@dataclass(frozen=True)
class Convolution:
    """One shape, of square images, with TensorFlow's 'SAME' padding."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    groups: int
    input_size: int

    @property
    def output_size(self) -> int:
        """Pixels per side."""
        return math.ceil(self.input_size / self.stride)

    @property
    def padding(self) -> tuple[int, int]:
        """(before, after) of each side, in pixels (`nfnet_ray/models/layers.py`)."""
        total = max((self.output_size - 1) * self.stride + self.kernel_size - self.input_size, 0)
        return total // 2, total - total // 2

    @property
    def multiply_adds(self) -> int:
        """Of one pass over one image."""
        values = self.kernel_size**2 * (self.in_channels // self.groups)
        return values * self.out_channels * self.output_size**2

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Those of a training step: the first convolution's input is the image, which has no gradient."""
        return PASSES if self.in_channels != 3 else ("forward", "weight gradient")

    def __str__(self) -> str:
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return (
            f"{self.kernel_size}x{self.kernel_size} {self.in_channels}->{self.out_channels}{groups}{stride}, "
            f"{self.input_size} px"
        )

    def roof_seconds(self, images: int, flops_per_second: float, bytes_per_second: float) -> float:
        """The shortest possible time of one pass: of its arithmetic, or of reading and writing everything once.

        Each pass reads two of input, output and weights, and writes the third.
        """
        pixels = self.in_channels * self.input_size**2 + self.out_channels * self.output_size**2
        weights = self.kernel_size**2 * (self.in_channels // self.groups) * self.out_channels
        moved = BYTES_PER_VALUE * (images * pixels + weights)
        return max(2 * self.multiply_adds * images / flops_per_second, moved / bytes_per_second)


def convolutions_of(variant: Variant, image_size: int) -> Counter[Convolution]:
    """{convolution: how often the network has it}, in the network's order."""
    found: Counter[Convolution] = Counter()
    size, channels = image_size, 3
    for layer in variant.stem:
        found[Convolution(channels, layer.out_channels, layer.kernel_size, layer.stride, 1, size)] += 1
        size, channels = math.ceil(size / layer.stride), layer.out_channels
    if variant.family.stem == "conv_and_max_pool":
        size = math.ceil(size / 2)
    for plan in block_plan(variant):
        width, out = plan.bottleneck_channels, plan.out_channels
        smaller = math.ceil(size / plan.stride)
        if plan.is_transition:
            strides = plan.family.shortcut == "strided_conv"
            shortcut = (plan.stride, size) if strides else (1, smaller)
            found[Convolution(plan.in_channels, out, 1, shortcut[0], 1, shortcut[1])] += 1
        found[Convolution(plan.in_channels, width, 1, 1, 1, size)] += 1
        found[Convolution(width, width, 3, plan.stride, plan.groups, size)] += 1
        if plan.use_two_convs:
            found[Convolution(width, width, 3, 1, plan.groups, smaller)] += 1
        found[Convolution(width, out, 1, 1, 1, smaller)] += 1
        size, channels = smaller, out
    if variant.family.has_final_conv:
        found[Convolution(channels, variant.pooled_channels, 1, 1, 1, size)] += 1
    return found
