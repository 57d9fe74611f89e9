"""Residual networks without normalisation layers, built from a variant's plan: NFNet, NF-ResNet, NF-RegNet.

Source: Brock, De, Smith, Simonyan 2021 (arXiv 2102.06171), section 5 and appendix C; Brock, De, Smith 2021
(arXiv 2101.08692) for the other two families; google-deepmind/deepmind-research `nfnets/nfnet.py`,
`nf_resnet.py` and `nf_regnet.py` at commit f5de0ed. Where paper and code disagree, the code is followed,
because the published weights belong to it. With the same weights the logits agree with the official ones to
1e-6 in float32 and 1e-14 in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from nfnet_ray.models.draws import Stream, keyed_uniforms
from nfnet_ray.models.layers import (
    ACTIVATIONS,
    BatchNormConv2d,
    Dropout,
    SameMaxPool2d,
    ScaledWSConv2d,
    SqueezeExcite,
    StochasticDepth,
)
from nfnet_ray.models.standardisation import JointStandardisation
from nfnet_ray.models.variants import ACTIVATION_GAINS, BlockPlan, Variant, block_plan


def _convolution(variant: Variant) -> Callable[..., nn.Module]:
    """The class of a network's convolutions, as a function that takes their shape."""
    if variant.batch_norm:
        return BatchNormConv2d
    return partial(ScaledWSConv2d, standardises=variant.weight_standardisation)


class NFBlock(nn.Module):
    """A residual block. In an NFNet, with `act(x) = gain * activation(x)`, it computes

        u        = beta * act(x)
        shortcut = conv_shortcut(average_pool(u)) in a transition block, x in the others
        r        = conv2(act(conv1b(act(conv1(act(conv0(u)))))))
        y        = shortcut + alpha * skip_gain * stochastic_depth(2 * squeeze_excite(r) * r)

    The block of an NF-ResNet has no `conv1b`, its `conv_shortcut` has the stride instead of the pooling, and
    squeeze-excite is left out unless asked for. The block of an NF-RegNet has no `conv1b`, and its squeeze-excite acts
    on the output of `conv1`.

    `skip_gain` is a scalar that starts at 0, so a new network is the chain of its transition shortcuts. In a variant
    without skip gains it is 1.
    Source: paper appendix C; `NFBlock` in nfnet.py and nf_regnet.py, `NFResBlock` in nf_resnet.py.
    """

    def __init__(self, plan: BlockPlan, variant: Variant) -> None:
        super().__init__()
        self.plan = plan
        self.activation = ACTIVATIONS[variant.activation]
        self.alpha = variant.alpha
        gain = ACTIVATION_GAINS[variant.activation]
        conv = _convolution(variant)
        width, groups = plan.bottleneck_channels, plan.groups
        self.pool: nn.Module = nn.Identity()
        self.conv_shortcut: nn.Module | None = None
        if plan.is_transition:
            stride = plan.stride
            if stride > 1 and plan.family.shortcut == "average_pool":
                # ceil_mode is TensorFlow's 'SAME': the last pixels of an odd side are averaged over what exists.
                self.pool, stride = nn.AvgPool2d(2, ceil_mode=True), 1
            self.conv_shortcut = conv(
                plan.in_channels, plan.out_channels, 1, stride=stride, input_scale=gain * plan.beta
            )
        self.conv0 = conv(plan.in_channels, width, 1, input_scale=gain * plan.beta)
        self.conv1 = conv(width, width, 3, stride=plan.stride, groups=groups, input_scale=gain)
        self.conv1b: nn.Module | None = None
        if plan.use_two_convs:
            self.conv1b = conv(width, width, 3, groups=groups, input_scale=gain)
        self.conv2 = conv(width, plan.out_channels, 1, input_scale=gain)
        self.squeeze_excite: SqueezeExcite | None = None
        if plan.se_channels:
            self.squeeze_excite = SqueezeExcite(plan.se_gated_channels, plan.se_channels)
        self.stochastic_depth = StochasticDepth(plan.stochastic_depth)
        self.skip_gain: Tensor
        if variant.skip_gain:
            self.skip_gain = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("skip_gain", torch.ones(()), persistent=False)

    def shortcut(self, x_NCHW: Tensor, u_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W), the block's input and the activation of that input -> (N, out_channels, H', W')."""
        return x_NCHW if self.conv_shortcut is None else self.conv_shortcut(self.pool(u_NCHW))

    def branch(self, u_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The activation of the block's input -> `r`, and the factors of its channels from squeeze-excite.

        `r` is (N, out_channels, H', W'), and the factors are (N, out_channels), or (N, 1) without squeeze-excite.
        """
        r_NCHW = self.conv1(self.activation(self.conv0(u_NCHW)))
        if self.conv1b is not None:
            r_NCHW = self.conv1b(self.activation(r_NCHW))
        gates_bottleneck = self.plan.family.squeeze_excite == "bottleneck"
        if self.squeeze_excite is not None and gates_bottleneck:
            r_NCHW = r_NCHW * (2 * self.squeeze_excite(r_NCHW))[:, :, None, None]
        r_NCHW = self.conv2(self.activation(r_NCHW))
        if self.squeeze_excite is not None and not gates_bottleneck:
            return r_NCHW, 2 * self.squeeze_excite(r_NCHW)
        return r_NCHW, r_NCHW.new_ones(r_NCHW.shape[0], 1)

    def forward(
        self, x_NCHW: Tensor, uniforms_N: Tensor | None = None, drop_rate: Tensor | None = None
    ) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

        `uniforms_N` and `drop_rate` decide which samples' branches are dropped, see `StochasticDepth`.
        """
        u_NCHW = self.activation(x_NCHW)
        shortcut_NCHW = self.shortcut(x_NCHW, u_NCHW)
        r_NCHW, gate_NC = self.branch(u_NCHW)
        # All factors of the branch differ at most by image and channel. They are combined in one small tensor, so that
        # a single pass multiplies and adds the branch.
        gate_NC = self.stochastic_depth(gate_NC, uniforms_N, drop_rate) * (self.alpha * self.skip_gain)
        return torch.addcmul(shortcut_NCHW, r_NCHW, gate_NC[:, :, None, None])


class NFNet(nn.Module):
    """A network of a normaliser-free family for `num_classes` classes, with the official initial weights.

    Parameters are called `weight`, `gain`, `bias` and `skip_gain`, and the last layer is called `classifier`.
    Optimisers select parameters by these names: AGC leaves out `classifier.weight`, and weight decay gains and biases.
    """

    # A training loop may pass a key for each sample and the drop rates (see `forward`).
    draws_by_sample: ClassVar[bool] = True

    def __init__(self, variant: Variant, num_classes: int) -> None:
        super().__init__()
        self.variant = variant
        self.activation = ACTIVATIONS[variant.activation]
        self.activation_gain = ACTIVATION_GAINS[variant.activation]
        conv = _convolution(variant)
        self.stem = nn.ModuleList()
        channels = 3
        for index, layer in enumerate(variant.stem):
            input_scale = self.activation_gain if index > 0 else 1.0  # the first one reads the image
            self.stem.append(
                conv(
                    channels,
                    layer.out_channels,
                    layer.kernel_size,
                    stride=layer.stride,
                    input_scale=input_scale,
                )
            )
            channels = layer.out_channels
        has_pool = variant.family.stem == "conv_and_max_pool"
        self.stem_pool: nn.Module = SameMaxPool2d() if has_pool else nn.Identity()
        self.blocks = nn.ModuleList(NFBlock(plan, variant) for plan in block_plan(variant))
        self.final_conv: nn.Module = nn.Identity()
        if variant.family.has_final_conv:
            self.final_conv = conv(variant.stage_channels[-1], variant.pooled_channels, 1)
        self.drops_branches = variant.stochastic_depth > 0
        self.dropout = Dropout(variant.dropout)
        self.classifier = nn.Linear(variant.pooled_channels, num_classes)
        nn.init.normal_(self.classifier.weight, std=variant.family.classifier_std)
        nn.init.zeros_(self.classifier.bias)
        self.standardisation = JointStandardisation(
            [layer for layer in self.modules() if isinstance(layer, ScaledWSConv2d) and layer.standardises]
        )

    def stem_features(self, x_NCHW: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the first block's input."""
        for index, conv in enumerate(self.stem):
            x_NCHW = conv(x_NCHW if index == 0 else self.activation(x_NCHW))
        return self.stem_pool(x_NCHW)

    def drop_rates(self) -> list[float]:
        """The numbers of the vector that `forward` takes: each block's drop rate, dropout's `p`, and `1 / (1 - p)`."""
        blocks = [block.stochastic_depth.drop_rate for block in self.blocks if isinstance(block, NFBlock)]
        return [*blocks, self.dropout.p, 1 / (1 - self.dropout.p)]

    def pooled_features(
        self, x_NCHW: Tensor, sample_keys: Tensor | None = None, drop_rates: Tensor | None = None
    ) -> Tensor:
        """Normalised images (N, 3, H, W) -> the input of the classifier, (N, pooled_channels)."""
        x_NCHW = self.stem_features(x_NCHW)
        uniforms_NB: Tensor | None = None
        if sample_keys is not None and self.training and self.drops_branches:
            uniforms_NB = keyed_uniforms(sample_keys, Stream.STOCHASTIC_DEPTH, len(self.blocks))
        for index, block in enumerate(self.blocks):
            uniforms_N = None if uniforms_NB is None else uniforms_NB[:, index]
            x_NCHW = block(x_NCHW, uniforms_N, None if drop_rates is None else drop_rates[index])
        x_NCHW = self.activation(self.final_conv(x_NCHW))
        return x_NCHW.mean((2, 3)) * self.activation_gain

    def forward(
        self, x_NCHW: Tensor, sample_keys: Tensor | None = None, drop_rates: Tensor | None = None
    ) -> Tensor:
        """Normalised images (N, 3, H, W), of any size -> logits (N, num_classes).

        `sample_keys` is int64 (N,), for each sample a hash of everything that makes its use unique, such as (seed,
        epoch, sample index). With keys, stochastic depth and dropout depend only on a sample's key, the layer and the
        channel. Without keys they draw from torch's generator. In evaluation nothing is drawn.

        `drop_rates` is a vector with the numbers of :meth:`drop_rates`, in the weights' dtype. With it, a captured or
        compiled network works for other rates too, as long as the same rates are 0.
        """
        if torch.compiler.is_compiling():
            pooled_NC = self.pooled_features(x_NCHW, sample_keys, drop_rates)
        else:
            with self.standardisation.for_a_pass():
                pooled_NC = self.pooled_features(x_NCHW, sample_keys, drop_rates)
        uniforms_NC: Tensor | None = None
        if sample_keys is not None and self.training and self.dropout.drops:
            uniforms_NC = keyed_uniforms(sample_keys, Stream.DROPOUT, pooled_NC.shape[1])
        numbers = None if drop_rates is None else (drop_rates[-2], drop_rates[-1])
        return self.classifier(self.dropout(pooled_NC, uniforms_NC, numbers))
