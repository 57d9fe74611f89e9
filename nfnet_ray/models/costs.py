"""The cost of a normaliser-free network, part by part: parameters and multiply-adds, computed from its plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nfnet_ray.models.variants import Variant, block_name, block_plan


@dataclass(frozen=True)
class PartCost:
    """The cost of one part of a network: the stem, a block, the final convolution or the classifier."""

    name: str
    parameters: int  # learnable scalars: weights, gains, biases and skip gains
    multiply_adds: int  # for one image: convolutions, squeeze-excite and classifier
    output_size: int  # pixels per side


def part_costs(variant: Variant, image_size: int, num_classes: int) -> list[PartCost]:
    """The costs of a network's parts, in order, for square images of `image_size` pixels per side.

    The parts are called `stem`, `block_00` and so on, `final_conv` (not in NF-ResNets) and `classifier`.
    """
    parts: list[PartCost] = []
    size, channels = image_size, 3
    tally = _Tally()
    for conv in variant.stem:
        size = math.ceil(size / conv.stride)
        tally.conv(channels, conv.out_channels, conv.kernel_size, size)
        channels = conv.out_channels
    if variant.family.stem == "conv_and_max_pool":
        size = math.ceil(size / 2)
    parts.append(PartCost("stem", tally.parameters, tally.multiply_adds, size))

    for index, block in enumerate(block_plan(variant)):
        tally = _Tally(parameters=int(variant.skip_gain))
        width = block.bottleneck_channels
        tally.conv(block.in_channels, width, 1, size)
        size = math.ceil(size / block.stride)
        for _ in range(2 if block.use_two_convs else 1):
            tally.conv(width, width, 3, size, block.groups)
        tally.conv(width, block.out_channels, 1, size)
        if block.is_transition:
            tally.conv(block.in_channels, block.out_channels, 1, size)
        if block.se_channels:
            tally.linear(block.se_gated_channels, block.se_channels)
            tally.linear(block.se_channels, block.se_gated_channels)
        channels = block.out_channels
        parts.append(PartCost(block_name(index), tally.parameters, tally.multiply_adds, size))

    if variant.family.has_final_conv:
        tally = _Tally()
        tally.conv(channels, variant.pooled_channels, 1, size)
        parts.append(PartCost("final_conv", tally.parameters, tally.multiply_adds, size))
    tally = _Tally()
    tally.linear(variant.pooled_channels, num_classes)
    parts.append(PartCost("classifier", tally.parameters, tally.multiply_adds, 1))
    return parts


def count_parameters(variant: Variant, num_classes: int) -> int:
    """Learnable scalars of the network: weights, gains, biases and skip gains."""
    # Parameters do not depend on the size of the images.
    return sum(part.parameters for part in part_costs(variant, image_size=1, num_classes=num_classes))


def count_multiply_adds(variant: Variant, image_size: int, num_classes: int) -> int:
    """Multiply-adds of one forward pass of one square image of `image_size` pixels per side.

    Convolutions, squeeze-excite and the classifier count, as in the official `count_flops`. The FLOPs column of the
    paper is this number at the variant's *test* size.
    """
    return sum(part.multiply_adds for part in part_costs(variant, image_size, num_classes))


@dataclass
class _Tally:
    parameters: int = 0
    multiply_adds: int = 0

    def conv(
        self, in_channels: int, out_channels: int, kernel_size: int, output_size: int, groups: int = 1
    ) -> None:
        weights = kernel_size**2 * (in_channels // groups) * out_channels
        self.parameters += weights + 2 * out_channels  # gain and bias
        self.multiply_adds += weights * output_size**2

    def linear(self, in_features: int, out_features: int) -> None:
        self.parameters += in_features * out_features + out_features
        self.multiply_adds += in_features * out_features
