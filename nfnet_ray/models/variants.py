"""The normaliser-free families as plain data: the variant table, and the plan of every block.

Nothing here needs torch, so a command line can check a model's name, its settings and its size before it
pays for the import. `nfnet_ray.models.nfnet` builds its modules from the same plan.

Source: Brock, De, Smith, Simonyan 2021, "High-Performance Large-Scale Image Recognition Without
Normalization" (arXiv 2102.06171); for NF-ResNets and NF-RegNets Brock, De, Smith 2021, "Characterizing Signal
Propagation to Close the Performance Gap in Unnormalized ResNets" (arXiv 2101.08692); and the official
implementation, google-deepmind/deepmind-research `nfnets/` at commit f5de0ed: tables and constants from
`base.py`, the plans from `nfnet.py`, `nf_resnet.py` and `nf_regnet.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from nfnet_ray.errors import UserError
from nfnet_ray.settings import did_you_mean

STAGES = 4

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

# The settings of the official class and of its variant table that decide the architecture, and four switches that it
# does not have: three take one of its techniques away, and one replaces its normaliser-free convolutions.
OVERRIDES = (
    "width",
    "depth",
    "group_width",
    "expansion",
    "width_multiplier",
    "se_ratio",
    "alpha",
    "activation",
    "weight_standardisation",
    "squeeze_excite",
    "skip_gain",
    "batch_norm",
    "final_conv_mult",
    "final_conv_ch",
    "use_two_convs",
    "big_width",
)
OVERRIDE_FORM = "FIELD=VALUE, such as width=[128,256,768,768]"


@dataclass(frozen=True)
class Family:
    """The differences between the official classes; everything else about a network is in its `Variant`."""

    name: str  # of the official class
    stem: Literal["four_convs", "conv_and_max_pool", "conv"]
    stage_strides: tuple[int, ...]  # of the first block of each stage; the others do not stride
    shortcut: Literal["average_pool", "strided_conv"]  # how the shortcut of a striding block gets smaller
    # What it gates: the last convolution's output, or the 3x3's.
    squeeze_excite: Literal["output", "bottleneck"]
    has_final_conv: bool  # a 1x1 convolution between the last block and the pooling
    classifier_std: float  # of the classifier's initial weights


NFNET = Family(  # nfnet.py
    "NFNet",
    stem="four_convs",
    stage_strides=(1, 2, 2, 2),
    shortcut="average_pool",
    squeeze_excite="output",
    has_final_conv=True,
    classifier_std=0.01,
)
NF_RESNET = Family(  # nf_resnet.py
    "NF_ResNet",
    stem="conv_and_max_pool",
    stage_strides=(1, 2, 2, 2),
    shortcut="strided_conv",
    squeeze_excite="output",
    has_final_conv=False,
    classifier_std=0.01,
)
NF_REGNET = Family(  # nf_regnet.py
    "NF_RegNet",
    stem="conv",
    stage_strides=(2, 2, 2, 2),
    shortcut="average_pool",
    squeeze_excite="bottleneck",
    has_final_conv=True,
    classifier_std=0.0,
)


@dataclass(frozen=True)
class StemConv:
    """One convolution of the stem; 'SAME' padding."""

    out_channels: int
    kernel_size: int
    stride: int


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _four(values: object, is_allowed: Any) -> bool:
    return isinstance(values, tuple) and len(values) == STAGES and all(map(is_allowed, values))


@dataclass(frozen=True)
class Variant:
    """One member of a family. Names and defaults are those of the official NFNet class, except
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
    family: Family = NFNET
    # Channels per group of the 3x3 convolutions, per stage; None: they are not grouped.
    group_width: tuple[int, ...] | None = (128, 128, 128, 128)
    # Bottleneck width / width of the block, per stage; that is the block's output's with `big_width`, else its
    # input's. The network's first block may have an expansion of its own.
    expansion: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5)
    big_width: tuple[bool, ...] = (True, True, True, True)
    first_expansion: float | None = None
    use_two_convs: bool = True  # two 3x3 convolutions in a bottleneck, or one
    width_multiplier: float = 1.0  # scales the blocks, and the stem of all families but NFNet
    se_ratio: float | None = 0.5  # squeeze-excite hidden width / channels that it gates; None: there is none
    alpha: float = 0.2  # scale of the residual branch
    activation: str = "gelu"
    weight_standardisation: bool = True
    squeeze_excite: bool = True  # where se_ratio asks for it
    skip_gain: bool = True  # a trained scalar on each residual branch, which starts at 0
    batch_norm: bool = False  # after each convolution, in place of scaled weight standardisation
    final_conv_mult: float | None = 2.0  # final convolution's channels / last block's channels; if None,
    final_conv_ch: int | None = None  # the final convolution's channels themselves

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            self._require(name, _four(getattr(self, name), _is_count), "four whole numbers, at least 1 each")
        self._require("expansion", _four(self.expansion, _is_positive), "four numbers above 0")
        self._require("big_width", _four(self.big_width, _is_bool), "four of true or false")
        for name in ("use_two_convs", "weight_standardisation", "squeeze_excite", "skip_gain", "batch_norm"):
            self._require(name, _is_bool(getattr(self, name)), "true or false")
        for name in ("width_multiplier", "alpha"):
            self._require(name, _is_positive(getattr(self, name)), "a number above 0")
        for name in ("se_ratio", "first_expansion"):
            value = getattr(self, name)
            self._require(name, value is None or _is_positive(value), "a number above 0, or None")
        for name in ("dropout", "stochastic_depth"):
            rate = getattr(self, name)
            self._require(name, _is_number(rate) and 0 <= rate < 1, "a number from 0 to below 1")
        self._require(
            "activation",
            isinstance(self.activation, str) and self.activation in ACTIVATION_GAINS,
            f"one of {', '.join(ACTIVATION_GAINS)}",
        )
        self._require(
            "width_multiplier", min(self.stage_channels) >= 1, "enough for a channel in every stage"
        )
        stem_channels = self.stem[-1].out_channels
        self._require(
            "width", stem_channels >= 1, "a larger first entry: the stem has a part of its channels"
        )
        self._check_bottlenecks()
        self._check_final_conv()

    def _check_bottlenecks(self) -> None:
        if self.group_width is not None:
            allowed = "four whole numbers, at least 1 each"
            self._require("group_width", _four(self.group_width, _is_count), allowed)
        for index, (stage, in_channels) in enumerate(self.stages_and_inputs):
            bottleneck = self.bottleneck_channels(index, stage, in_channels)
            self._require("expansion", bottleneck >= 1, f"enough for one channel in stage {stage + 1}")
            if self.group_width is not None:
                self._require(
                    "group_width",
                    self.group_width[stage] <= bottleneck,
                    f"at most {bottleneck} in stage {stage + 1}, the bottleneck's width (expansion * width)",
                )

    def _check_final_conv(self) -> None:
        if not self.family.has_final_conv:
            for name in ("final_conv_mult", "final_conv_ch"):
                allowed = f"None: {self.family.name} has no final convolution"
                self._require(name, getattr(self, name) is None, allowed)
        elif self.final_conv_mult is None:
            self._require(
                "final_conv_ch", _is_count(self.final_conv_ch), "a whole number when final_conv_mult is None"
            )
        else:
            self._require("final_conv_mult", _is_positive(self.final_conv_mult), "a number above 0, or None")
            # The official class ignores final_conv_ch here, without a word.
            self._require("final_conv_ch", self.final_conv_ch is None, "None unless final_conv_mult is None")
            self._require("final_conv_mult", self.pooled_channels >= 1, "enough for one channel")

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
    def stem(self) -> tuple[StemConv, ...]:
        """The stem's convolutions, in order. NF-ResNet's is followed by a 3x3 max pooling of stride 2."""
        if self.family.stem == "four_convs":  # the width multiplier leaves it alone
            channels, strides = (16, 32, 64, self.width[0] // 2), (2, 1, 1, 2)
            return tuple(StemConv(*numbers) for numbers in zip(channels, (3, 3, 3, 3), strides, strict=True))
        if self.family.stem == "conv_and_max_pool":
            return (StemConv(self.stage_channels[0] // 4, kernel_size=7, stride=2),)
        return (StemConv(self.stage_channels[0], kernel_size=3, stride=2),)

    @property
    def stages_and_inputs(self) -> list[tuple[int, int]]:
        """(stage from 0, input channels) of every block, in order."""
        blocks = []
        in_channels = self.stem[-1].out_channels
        for stage, out_channels in enumerate(self.stage_channels):
            for _ in range(self.depth[stage]):
                blocks.append((stage, in_channels))
                in_channels = out_channels
        return blocks

    def bottleneck_channels(self, index: int, stage: int, in_channels: int) -> int:
        """Width of block `index`'s bottleneck, before it is rounded down to whole groups."""
        expansion = self.expansion[stage]
        if index == 0 and self.first_expansion is not None:
            expansion = self.first_expansion
        return int(expansion * (self.stage_channels[stage] if self.big_width[stage] else in_channels))

    @property
    def pooled_channels(self) -> int:
        """Length of the pooled vector that the classifier sees: the final convolution's, or the last block's."""
        if not self.family.has_final_conv:
            return self.stage_channels[-1]
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


# Two additional members, for machines without an accelerator and for small images. They regularise less, as
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


def _nf_resnets() -> dict[str, Variant]:
    # nf_resnet.py has depths and architecture only. Sizes and the dropout of 0 are those of experiment.py, whose
    # plain recipe the ablation of AGC follows (paper section 4.1); stochastic depth is the class's default.
    depths = {
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
        200: (3, 24, 36, 3),
        288: (24, 24, 24, 24),
        600: (50, 50, 50, 50),
    }
    return {
        name: Variant(
            name,
            width=(256, 512, 1024, 2048),
            depth=depth,
            train_size=224,
            test_size=224,
            dropout=0.0,
            stochastic_depth=0.1,
            family=NF_RESNET,
            group_width=None,
            expansion=(0.25, 0.25, 0.25, 0.25),
            use_two_convs=False,
            se_ratio=None,  # 0.25 where the official class is asked for it
            activation="relu",
            final_conv_mult=None,
        )
        for name, depth in ((f"nf_resnet{layers}", depth) for layers, depth in depths.items())
    }


def _nf_regnets() -> dict[str, Variant]:
    # base.py; the settings that all of them share from nf_regnet.py and experiment_nf_regnets.py.
    table = (
        ((48, 104, 208, 440), (1, 3, 6, 6), 192, 224, 0.2),
        ((48, 104, 208, 440), (2, 4, 7, 7), 224, 256, 0.2),
        ((56, 112, 232, 488), (2, 4, 8, 8), 240, 272, 0.3),
        ((56, 128, 248, 528), (2, 5, 9, 9), 288, 320, 0.3),
        ((64, 144, 288, 616), (2, 6, 11, 11), 320, 384, 0.4),
        ((80, 168, 336, 704), (3, 7, 14, 14), 384, 456, 0.4),
    )
    variants = (
        Variant(
            f"nf_regnet_b{level}",
            *row,
            stochastic_depth=0.1,
            family=NF_REGNET,
            group_width=(8, 8, 8, 8),
            expansion=(2.25, 2.25, 2.25, 2.25),
            big_width=(False, False, False, False),
            first_expansion=1.0,  # as in EfficientNet
            use_two_convs=False,
            width_multiplier=0.75,
            activation="silu",
            final_conv_mult=1280 / 440,
        )
        for level, row in enumerate(table)
    )
    return {variant.name: variant for variant in variants}


_VARIANTS: Mapping[str, Variant] = (
    {variant.name: variant for variant in _SMALL} | _f_series() | _nf_resnets() | _nf_regnets()
)


@dataclass(frozen=True)
class BlockPlan:
    """The parts of one residual block; channels are counts, rates and scales have no unit."""

    in_channels: int
    out_channels: int
    bottleneck_channels: int
    groups: int  # of the 3x3 convolutions
    stride: int
    beta: float  # 1 / expected standard deviation of the block's input at initialisation
    stochastic_depth: float  # probability that the residual branch is dropped
    se_channels: int  # hidden units of squeeze-excite; 0: there is none
    use_two_convs: bool  # two 3x3 convolutions, or one
    family: Family

    @property
    def is_transition(self) -> bool:
        """Whether the shortcut is a convolution of the scaled activation, not the input itself."""
        return self.stride > 1 or self.in_channels != self.out_channels

    @property
    def se_gated_channels(self) -> int:
        """Channels that squeeze-excite, if there is any, looks at and multiplies."""
        return self.out_channels if self.family.squeeze_excite == "output" else self.bottleneck_channels


def block_plan(variant: Variant) -> list[BlockPlan]:
    """All blocks of a network, in order (paper section 3 and nfnet.py).

    Every block adds `alpha^2` to the variance of its input; a transition block starts again at 1, after
    having been scaled by what had accumulated in the stage before. Block `i` of `N`, counted from 0
    through the whole network, is dropped at the rate `stochastic_depth * i / N`.
    """
    plan: list[BlockPlan] = []
    expected_std = 1.0
    previous_stage = -1
    for index, (stage, in_channels) in enumerate(variant.stages_and_inputs):
        is_first = stage != previous_stage
        previous_stage = stage
        bottleneck = variant.bottleneck_channels(index, stage, in_channels)
        group_width = bottleneck if variant.group_width is None else variant.group_width[stage]
        groups = bottleneck // group_width
        block = BlockPlan(
            in_channels=in_channels,
            out_channels=variant.stage_channels[stage],
            bottleneck_channels=groups * group_width,
            groups=groups,
            stride=variant.family.stage_strides[stage] if is_first else 1,
            beta=1.0 / expected_std,
            stochastic_depth=variant.stochastic_depth * index / sum(variant.depth),
            se_channels=0,
            use_two_convs=variant.use_two_convs,
            family=variant.family,
        )
        if variant.se_ratio is not None and variant.squeeze_excite:
            block = replace(block, se_channels=max(1, int(variant.se_ratio * block.se_gated_channels)))
        plan.append(block)
        if is_first:
            expected_std = 1.0
        expected_std = math.sqrt(expected_std**2 + variant.alpha**2)
    return plan


def block_name(index: int) -> str:
    """`block_07` for block 7, counted from 0 through the whole network."""
    return f"block_{index:02d}"


def list_models() -> list[str]:
    """Names that `create_model` takes, smallest family member first."""
    return list(_VARIANTS)


def get_variant(name: str, overrides: Mapping[str, Any] | None = None) -> Variant:
    """The variant called `name`, with the settings in `overrides` (see `OVERRIDES`) put in their place.

    Sequences have one entry per stage and may be lists, as they come from a file. Raises `UserError` for
    an unknown name or setting and for a value that is not allowed.
    """
    if not isinstance(name, str) or name not in _VARIANTS:
        raise UserError(f"unknown model {name!r}; {did_you_mean(name, list_models())}")
    changes: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        if key not in OVERRIDES:
            raise UserError(
                f"model {name}: unknown override {key!r}={value!r}; {did_you_mean(key, OVERRIDES)}"
            )
        changes[key] = tuple(value) if isinstance(value, list) else value
    return replace(_VARIANTS[name], **changes)
