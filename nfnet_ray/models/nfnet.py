"""NFNet: a residual network without normalisation layers, built from a variant's plan.

Source: Brock, De, Smith, Simonyan 2021 (arXiv 2102.06171), section 5 and appendix C;
google-deepmind/deepmind-research `nfnets/nfnet.py` at commit f5de0ed. Where paper and code disagree, the
code is followed, because the published weights belong to it. With the same weights the logits agree with
the official ones to 1e-6 in float32 and 1e-14 in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfnet_ray.models.layers import ACTIVATIONS, ScaledWSConv2d, SqueezeExcite, StochasticDepth
from nfnet_ray.models.variants import ACTIVATION_GAINS, STEM_STRIDES, BlockPlan, Variant, block_plan


class NFBlock(nn.Module):
    """One residual block. With `act(x) = gain * activation(x)` and two 3x3 convolutions in the middle:

        u        = beta * act(x)
        shortcut = conv_shortcut(average_pool(u)) in a transition block, x in the others
        r        = conv2(act(conv1b(act(conv1(act(conv0(u)))))))
        y        = shortcut + alpha * skip_gain * stochastic_depth(2 * squeeze_excite(r) * r)

    `skip_gain` is one scalar that starts at 0, so a new network is the chain of its transition shortcuts.
    Source: paper appendix C; `NFBlock` in nfnet.py.
    """

    def __init__(self, plan: BlockPlan, *, alpha: float, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.alpha = alpha
        gain = ACTIVATION_GAINS[activation]
        width, groups = plan.bottleneck_channels, plan.groups
        # ceil_mode is TensorFlow's 'SAME': the last pixels of an odd side are averaged over what exists.
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if plan.stride > 1 else nn.Identity()
        self.conv_shortcut: ScaledWSConv2d | None = None
        if plan.is_transition:
            self.conv_shortcut = ScaledWSConv2d(
                plan.in_channels, plan.out_channels, 1, input_scale=gain * plan.beta
            )
        self.conv0 = ScaledWSConv2d(plan.in_channels, width, 1, input_scale=gain * plan.beta)
        self.conv1 = ScaledWSConv2d(width, width, 3, stride=plan.stride, groups=groups, input_scale=gain)
        self.conv1b = ScaledWSConv2d(width, width, 3, groups=groups, input_scale=gain)
        self.conv2 = ScaledWSConv2d(width, plan.out_channels, 1, input_scale=gain)
        self.squeeze_excite = SqueezeExcite(plan.out_channels, plan.se_channels)
        self.stochastic_depth = StochasticDepth(plan.stochastic_depth)
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        u_NCHW = self.activation(x_NCHW)
        shortcut_NCHW = x_NCHW if self.conv_shortcut is None else self.conv_shortcut(self.pool(u_NCHW))
        r_NCHW = self.conv0(u_NCHW)
        r_NCHW = self.conv1(self.activation(r_NCHW))
        r_NCHW = self.conv1b(self.activation(r_NCHW))
        r_NCHW = self.conv2(self.activation(r_NCHW))
        # All factors of the branch are per image and channel at most: together they are one small tensor, and
        # the branch is multiplied and added in a single pass.
        gate_NC = self.stochastic_depth(self.squeeze_excite(r_NCHW)) * (2 * self.alpha * self.skip_gain)
        return torch.addcmul(shortcut_NCHW, r_NCHW, gate_NC[:, :, None, None])


class NFNet(nn.Module):
    """A network of the NFNet family for `num_classes` classes, with the official initial weights.

    Parameters are called `weight`, `gain`, `bias` and `skip_gain`; the last layer is `classifier`. Optimisers
    choose by these names: AGC leaves out `classifier.weight`, weight decay leaves out gains and biases.
    """

    def __init__(self, variant: Variant, num_classes: int) -> None:
        super().__init__()
        self.variant = variant
        self.activation = ACTIVATIONS[variant.activation]
        self.activation_gain = ACTIVATION_GAINS[variant.activation]
        self.stem = nn.ModuleList()
        channels = 3
        for index, (out_channels, stride) in enumerate(zip(variant.stem_channels, STEM_STRIDES, strict=True)):
            input_scale = self.activation_gain if index > 0 else 1.0  # the first one reads the image
            self.stem.append(
                ScaledWSConv2d(channels, out_channels, 3, stride=stride, input_scale=input_scale)
            )
            channels = out_channels
        self.blocks = nn.ModuleList(
            NFBlock(plan, alpha=variant.alpha, activation=variant.activation) for plan in block_plan(variant)
        )
        self.final_conv = ScaledWSConv2d(variant.stage_channels[-1], variant.final_conv_channels, 1)
        self.dropout = nn.Dropout(variant.dropout)
        self.classifier = nn.Linear(variant.final_conv_channels, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)  # nfnet.py
        nn.init.zeros_(self.classifier.bias)

    def pooled_features(self, x_NCHW: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the vector (N, final_conv_channels) that is classified."""
        for index, conv in enumerate(self.stem):
            x_NCHW = conv(x_NCHW if index == 0 else self.activation(x_NCHW))
        for block in self.blocks:
            x_NCHW = block(x_NCHW)
        x_NCHW = self.activation(self.final_conv(x_NCHW))
        return x_NCHW.mean((2, 3)) * self.activation_gain

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), of any size -> logits (N, num_classes)."""
        return self.classifier(self.dropout(self.pooled_features(x_NCHW)))
