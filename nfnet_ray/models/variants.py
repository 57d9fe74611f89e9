"""The NFNet family as plain data: the variant table, the plan of every block, and what a network costs.

Nothing here needs torch, so a command line can check a model's name, its settings and its size before it
pays for the import. `nfnet_ray.models.nfnet` builds its modules from the same plan.

Source: Brock, De, Smith, Simonyan 2021, "High-Performance Large-Scale Image Recognition Without
Normalization" (arXiv 2102.06171), and the official implementation, google-deepmind/deepmind-research
`nfnets/` at commit f5de0ed: the table and the constants from `base.py`, the plan from `nfnet.py`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nfnet_ray.errors import UserError

STAGE_STRIDES = (1, 2, 2, 2)  # nfnet.py; a stage's first block strides, the others do not
STEM_CHANNELS = (16, 32, 64)  # nfnet.py; the fourth stem convolution has width[0] // 2 channels
STEM_STRIDES = (2, 1, 1, 2)

# What an activation of N(0, 1) is multiplied by to have variance 1 again (paper section 3). The numbers
# are base.py's, sampled rather than derived: sqrt(2 / (1 - 1/pi)) for ReLU differs in the fourth digit.
# base.py's glu is not here: it halves the channels, so no block can be built with it.
ACTIVATION_GAINS: Mapping[str, float] = {
    "celu": 1.270926833152771,
    "elu": 1.2716004848480225,
    "gelu": 1.7015043497085571,
    "identity": 1.0,
    "leaky_relu": 1.70590341091156,
    "log_sigmoid": 1.9193484783172607,
    "log_softmax": 1.0002083778381348,
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "selu": 1.0008515119552612,
    "sigmoid": 4.803835391998291,
    "silu": 1.7881293296813965,
    "soft_sign": 2.338853120803833,
    "softplus": 1.9203323125839233,
    "tanh": 1.5939117670059204,
}

# The settings of the official class and of its variant table that decide the architecture.
OVERRIDES = (
    "width",
    "depth",
    "group_width",
    "expansion",
    "width_multiplier",
    "se_ratio",
    "alpha",
    "activation",
    "final_conv_mult",
    "final_conv_ch",
)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _four(values: object, is_allowed: Any) -> bool:
    return isinstance(values, tuple) and len(values) == len(STAGE_STRIDES) and all(map(is_allowed, values))


@dataclass(frozen=True)
class Variant:
    """One member of the family. Names and defaults are those of the official class, except
    `width_multiplier` (there `width`), `dropout` (`drop_rate`) and `stochastic_depth` (`stochdepth_rate`).

    Raises `UserError`, naming the field, the value and what is allowed, when a field is wrong.
    """

    name: str
    width: tuple[int, ...]  # output channels per stage
    depth: tuple[int, ...]  # blocks per stage
    train_size: int  # pixels per side in training ...
    test_size: int  # ... and in evaluation
    dropout: float  # drop probability on the pooled vector
    stochastic_depth: float = 0.25  # the drop rate that the last block approaches (experiment_nfnets.py)
    group_width: tuple[int, ...] = (128, 128, 128, 128)  # channels per group of the 3x3 convolutions
    expansion: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5)  # bottleneck width / output width, per stage
    width_multiplier: float = 1.0  # scales the blocks, not the stem
    se_ratio: float = 0.5  # squeeze-excite hidden width / output width
    alpha: float = 0.2  # scale of the residual branch
    activation: str = "gelu"
    final_conv_mult: float | None = 2.0  # final convolution's channels / last block's channels; if None,
    final_conv_ch: int | None = None  # the final convolution's channels themselves

    def __post_init__(self) -> None:
        for name in ("width", "depth", "group_width"):
            self._require(name, _four(getattr(self, name), _is_count), "four whole numbers, at least 1 each")
        self._require("width", self.width[0] >= 2, "a first entry of at least 2: the stem has half of it")
        self._require("expansion", _four(self.expansion, _is_positive), "four numbers above 0")
        for name in ("width_multiplier", "se_ratio", "alpha"):
            self._require(name, _is_positive(getattr(self, name)), "a number above 0")
        for name in ("dropout", "stochastic_depth"):
            rate = getattr(self, name)
            self._require(name, _is_number(rate) and 0 <= rate < 1, "a number from 0 to below 1")
        self._require(
            "activation",
            isinstance(self.activation, str) and self.activation in ACTIVATION_GAINS,
            f"one of {', '.join(ACTIVATION_GAINS)}",
        )
        if self.final_conv_mult is None:
            self._require(
                "final_conv_ch", _is_count(self.final_conv_ch), "a whole number when final_conv_mult is None"
            )
        else:
            self._require("final_conv_mult", _is_positive(self.final_conv_mult), "a number above 0, or None")
            # The official class ignores final_conv_ch here, without a word.
            self._require("final_conv_ch", self.final_conv_ch is None, "None unless final_conv_mult is None")
        for stage, group_width in enumerate(self.group_width):
            bottleneck = int(self.expansion[stage] * self.stage_channels[stage])
            self._require(
                "group_width",
                group_width <= bottleneck,
                f"at most {bottleneck} in stage {stage + 1}, the bottleneck's width (expansion * width)",
            )
        self._require("final_conv_mult", self.final_conv_channels >= 1, "enough for one channel")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(
                f"model {self.name}: {name}={getattr(self, name)!r} is not allowed; use {allowed}"
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Output channels of every stage's blocks."""
        return tuple(int(width * self.width_multiplier) for width in self.width)

    @property
    def stem_channels(self) -> tuple[int, ...]:
        """Output channels of the four stem convolutions, which the width multiplier leaves alone."""
        return (*STEM_CHANNELS, self.width[0] // 2)

    @property
    def final_conv_channels(self) -> int:
        """Length of the pooled vector that the classifier sees."""
        if self.final_conv_mult is None:
            assert self.final_conv_ch is not None
            return self.final_conv_ch
        return int(self.final_conv_mult * self.stage_channels[-1])


def _f_series() -> dict[str, Variant]:
    # base.py. `nfnet_f0_plus` is its F0+, and so on; FN has N + 1 times the blocks of F0. The paper prints F0
    # to F6 (table 3) and F4+ (table 5), the latter with 527 M parameters where the official code makes 525 M.
    train_sizes = (192, 224, 256, 320, 384, 416, 448, 480)
    test_sizes = (256, 320, 352, 416, 512, 544, 576, 608)
    dropouts = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)
    table = {}
    for suffix, width in (("", (256, 512, 1536, 1536)), ("_plus", (384, 768, 2048, 2048))):
        for index, (train_size, test_size, dropout) in enumerate(
            zip(train_sizes, test_sizes, dropouts, strict=True)
        ):
            name = f"nfnet_f{index}{suffix}"
            depth = tuple((index + 1) * blocks for blocks in (1, 2, 6, 3))
            table[name] = Variant(name, width, depth, train_size, test_size, dropout)
    return table


# Two members of our own, for machines without an accelerator and for small images. They regularise less, as
# the published ones do the smaller they are.
_SMALL = (
    # 192,703 parameters at 10 classes. A training step of 64 images takes one CPU core about 0.1 s (float32).
    Variant(
        "nfnet_pico",
        width=(32, 64, 96, 96),
        depth=(1, 1, 2, 1),
        group_width=(16, 16, 16, 16),
        train_size=32,
        test_size=32,
        dropout=0.0,
        stochastic_depth=0.0,
    ),
    # F0 with an eighth of its widths.
    Variant(
        "nfnet_nano",
        width=(32, 64, 192, 192),
        depth=(1, 2, 6, 3),
        group_width=(16, 16, 16, 16),
        train_size=32,
        test_size=32,
        dropout=0.1,
        stochastic_depth=0.1,
    ),
)

_VARIANTS: Mapping[str, Variant] = {variant.name: variant for variant in _SMALL} | _f_series()


@dataclass(frozen=True)
class BlockPlan:
    """What one residual block is made of; channels are counted, rates and scales have no unit."""

    in_channels: int
    out_channels: int
    bottleneck_channels: int
    groups: int  # of the two 3x3 convolutions
    stride: int
    beta: float  # 1 / expected standard deviation of the block's input at initialisation
    stochastic_depth: float  # probability that the residual branch is dropped
    se_channels: int  # hidden units of squeeze-excite

    @property
    def is_transition(self) -> bool:
        """Whether the shortcut is a convolution of the scaled activation, not the input itself."""
        return self.stride > 1 or self.in_channels != self.out_channels


def block_plan(variant: Variant) -> list[BlockPlan]:
    """All blocks of a network, in order (paper section 3 and nfnet.py).

    Every block adds `alpha^2` to the variance of its input; a transition block starts again at 1, after
    having been scaled by what had accumulated in the stage before. Block `i` of `N`, counted from 0
    through the whole network, is dropped at the rate `stochastic_depth * i / N`.
    """
    plan: list[BlockPlan] = []
    in_channels = variant.stem_channels[-1]
    expected_std = 1.0
    for stage, out_channels in enumerate(variant.stage_channels):
        # The bottleneck is rounded down to whole groups.
        groups = int(variant.expansion[stage] * out_channels) // variant.group_width[stage]
        for position in range(variant.depth[stage]):
            is_first = position == 0
            plan.append(
                BlockPlan(
                    in_channels=in_channels,
                    out_channels=out_channels,
                    bottleneck_channels=groups * variant.group_width[stage],
                    groups=groups,
                    stride=STAGE_STRIDES[stage] if is_first else 1,
                    beta=1.0 / expected_std,
                    stochastic_depth=variant.stochastic_depth * len(plan) / sum(variant.depth),
                    se_channels=max(1, int(variant.se_ratio * out_channels)),
                )
            )
            if is_first:
                expected_std = 1.0
            expected_std = math.sqrt(expected_std**2 + variant.alpha**2)
            in_channels = out_channels
    return plan


def count_parameters(variant: Variant, num_classes: int) -> int:
    """Learnable scalars of the network: weights, gains, biases and skip gains."""
    # Parameters do not depend on the image's size, so any will do.
    return _tally(variant, image_size=1, num_classes=num_classes).parameters


def count_multiply_adds(variant: Variant, image_size: int, num_classes: int) -> int:
    """Multiply-adds of one forward pass of one square image of `image_size` pixels per side.

    Counts what the official `count_flops` counts: convolutions, squeeze-excite and the classifier. The
    paper's FLOPs column is this number at the variant's *test* size.
    """
    return _tally(variant, image_size, num_classes).multiply_adds


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


def _tally(variant: Variant, image_size: int, num_classes: int) -> _Tally:
    tally = _Tally()
    size, channels = image_size, 3
    for out_channels, stride in zip(variant.stem_channels, STEM_STRIDES, strict=True):
        size = math.ceil(size / stride)
        tally.conv(channels, out_channels, 3, size)
        channels = out_channels
    for block in block_plan(variant):
        width = block.bottleneck_channels
        tally.conv(block.in_channels, width, 1, size)
        size = math.ceil(size / block.stride)
        tally.conv(width, width, 3, size, block.groups)
        tally.conv(width, width, 3, size, block.groups)
        tally.conv(width, block.out_channels, 1, size)
        if block.is_transition:
            tally.conv(block.in_channels, block.out_channels, 1, size)
        tally.linear(block.out_channels, block.se_channels)
        tally.linear(block.se_channels, block.out_channels)
        tally.parameters += 1  # skip gain
        channels = block.out_channels
    tally.conv(channels, variant.final_conv_channels, 1, size)
    tally.linear(variant.final_conv_channels, num_classes)
    return tally


def list_models() -> list[str]:
    """Names that `create_model` takes, smallest family member first."""
    return list(_VARIANTS)


def get_variant(name: str, overrides: Mapping[str, Any] | None = None) -> Variant:
    """The variant called `name`, with the settings in `overrides` (see `OVERRIDES`) put in their place.

    Sequences have one entry per stage and may be lists, as they come from a file. Raises `UserError` for
    an unknown name or setting and for a value that is not allowed.
    """
    if name not in _VARIANTS:
        raise UserError(f"unknown model {name!r}; {_suggest(name, list_models())}")
    changes: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        if key not in OVERRIDES:
            raise UserError(f"model {name}: unknown override {key!r}={value!r}; {_suggest(key, OVERRIDES)}")
        changes[key] = tuple(value) if isinstance(value, list) else value
    return replace(_VARIANTS[name], **changes)


def _suggest(word: str, known: list[str] | tuple[str, ...]) -> str:
    matches = difflib.get_close_matches(str(word), known)
    return f"did you mean {' or '.join(matches)}?" if matches else f"use one of {', '.join(known)}"
