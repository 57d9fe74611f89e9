"""The layers of an NFNet: standardised convolution, activations, squeeze-excite, stochastic depth, dropout.

Images are (N, C, H, W), in either memory format. Every layer works in float32, float64, bfloat16 and under
autocast. Source: google-deepmind/deepmind-research `nfnets/base.py` at commit f5de0ed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfnet_ray.models.grouped_convolution import SLICED_PASSES, Pass, grouped_conv2d
from nfnet_ray.models.standardisation import SQUARED_DEVIATIONS_FLOOR


def _identity(x_NCHW: Tensor) -> Tensor:
    return x_NCHW


# The names are those of base.py, and the functions have jax's defaults, hence the tanh form of GELU. They are unscaled:
# `variants.ACTIVATION_GAINS` has the factors, which the next convolution applies (`input_scale`).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "identity": _identity,
    "leaky_relu": F.leaky_relu,
    "log_sigmoid": F.logsigmoid,
    "log_softmax": partial(F.log_softmax, dim=1),
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "soft_sign": F.softsign,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


class ScaledWSConv2d(nn.Module):
    """Convolution with scaled weight standardisation and TensorFlow's 'SAME' padding.

    For each output channel with its `fan_in = in_channels / groups * kernel_size^2` weights `w`:

        w_hat = gain * (w - mean(w)) / sqrt(max(fan_in * var(w), 1e-4))        (biased variance)
        y     = conv(input_scale * x, w_hat) + bias

    `weight` is (out_channels, in_channels / groups, kernel_size, kernel_size), drawn from N(0, 1 / fan_in);
    `gain` starts at 1 and `bias` at 0, both (out_channels,).

    `input_scale` is the constant factor of the preceding activation. A convolution is linear, so scaling its few
    weights has the same effect and saves a pass over the activations, forward and backward.

    Without `standardises` the weights are used as they are, `w_hat = gain * w`, for ablation studies.

    `sliced_passes` are the passes that compute each group separately (`grouped_convolution.py`).

    Source: paper section 3; `WSConv2D` in base.py.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        input_scale: float = 1.0,
        standardises: bool = True,
    ) -> None:
        super().__init__()
        self.standardises = standardises
        self.stride = stride
        self.groups = groups
        self.sliced_passes: frozenset[Pass] = frozenset()
        self.input_scale = input_scale
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.gain = nn.Parameter(torch.ones(out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.fan_in = self.weight[0].numel()
        self.given_weight: Tensor | None = None
        """The standardised weight, during passes for which ``JointStandardisation`` has computed it."""
        nn.init.normal_(self.weight, std=self.fan_in**-0.5)

    def standardized_weight(self) -> Tensor:
        """`input_scale * w_hat`, shaped like `weight`."""
        if not self.standardises:
            return self.weight * (self.input_scale * self.gain).view(-1, 1, 1, 1)
        # The divisor of the variance is fan_in - correction = 1: the sum of squared deviations, fan_in * var.
        squared_deviations, mean = torch.var_mean(
            self.weight, dim=(1, 2, 3), correction=self.fan_in - 1, keepdim=True
        )
        scale = squared_deviations.clamp(min=SQUARED_DEVIATIONS_FLOOR).rsqrt()
        scale = scale * (self.input_scale * self.gain).view(-1, 1, 1, 1)
        # (w - mean) * scale with one pass over the weights.
        return torch.addcmul(-mean * scale, self.weight, scale)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        weight = self.standardized_weight() if self.given_weight is None else self.given_weight
        return _same_conv2d(x_NCHW, weight, self.bias, self.stride, self.groups, self.sliced_passes)

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel_size, _ = self.weight.shape
        return (
            f"{in_channels * self.groups}, {out_channels}, kernel_size={kernel_size}, stride={self.stride}, "
            f"groups={self.groups}, input_scale={self.input_scale:.4f}"
        )


class BatchNormConv2d(nn.Module):
    """A convolution with 'SAME' padding whose output is batch-normalised, in place of :class:`ScaledWSConv2d`.

    Both normalise each channel to a mean of 0 and a variance of 1, and then scale and shift it by two trained numbers.
    This class does so by the statistics of the batch, and ScaledWSConv2d by its weights. They have the same number of
    parameters. `input_scale` would cancel, and is not used. Momentum and epsilon of the running statistics are torch's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        input_scale: float = 1.0,  # noqa: ARG002 (the other convolution has it)
    ) -> None:
        super().__init__()
        self.stride = stride
        self.groups = groups
        self.sliced_passes: frozenset[Pass] = frozenset()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.norm(
            _same_conv2d(x_NCHW, self.weight, None, self.stride, self.groups, self.sliced_passes)
        )


def slice_grouped_convolutions(network: nn.Module, how: str) -> None:
    """Computes the grouped convolutions of an NFNet as `SLICED_PASSES[how]` says. Other networks have none."""
    for module in network.modules():
        if isinstance(module, ScaledWSConv2d | BatchNormConv2d):
            module.sliced_passes = SLICED_PASSES[how]


def _same_conv2d(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int, sliced: frozenset[Pass]
) -> Tensor:
    if torch._C._are_functorch_transforms_active() and _is_bfloat16_on_cpu(x_NCHW):
        # vmap calls aten::convolution, which autocast casts on a GPU alone (ATen/autocast_mode.h).
        x_NCHW, weight = x_NCHW.bfloat16(), weight.bfloat16()
        bias = bias if bias is None else bias.bfloat16()
    kernel_size = weight.shape[-1]
    top, bottom = _same_padding(x_NCHW.shape[2], kernel_size, stride)
    left, right = _same_padding(x_NCHW.shape[3], kernel_size, stride)
    if kernel_size > 1 and x_NCHW.shape[2:] == (1, 1) and _is_bfloat16_on_cpu(x_NCHW):
        # All weights but one see padding alone. In the gradient of a 3x3 convolution of stride 2 torch 2.15 (oneDNN)
        # leaves those as it found the memory, and not 0.
        return F.conv2d(x_NCHW, weight[:, :, top : top + 1, left : left + 1], bias, groups=groups)
    padding = (top, left)
    if top != bottom or left != right:
        x_NCHW = F.pad(x_NCHW, (left, right, top, bottom))
        padding = (0, 0)
    if groups > 1 and sliced:
        return grouped_conv2d(x_NCHW, weight, bias, stride, padding, groups, sliced)
    return F.conv2d(x_NCHW, weight, bias, stride, padding, groups=groups)


def _is_bfloat16_on_cpu(x: Tensor) -> bool:
    """Whether a convolution of ``x`` is one of a CPU in bfloat16, by its dtype or under autocast."""
    if x.device.type != "cpu":
        return False
    is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_cast or x.dtype == torch.bfloat16


def _same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's 'SAME' padding (before, after) of one side: ceil(size / stride) outputs, and where the
    padding is odd the extra pixel goes after. A 3x3 convolution of stride 2 pads an even side by (0, 1), an
    odd one by (1, 1)."""
    outputs = (size + stride - 1) // stride
    total = max((outputs - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class SameMaxPool2d(nn.Module):
    """3x3 max pooling of stride 2 with TensorFlow's 'SAME' padding, whose pixels never win.

    On an even side the windows start at the first pixel, on an odd one a pixel before it (nf_resnet.py).
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2))."""
        top, bottom = _same_padding(x_NCHW.shape[2], 3, 2)
        left, right = _same_padding(x_NCHW.shape[3], 3, 2)
        padded_NCHW = F.pad(x_NCHW, (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(padded_NCHW, 3, stride=2)


class SqueezeExcite(nn.Module):
    """The gate of squeeze-excite, one factor in (0, 1) per image and channel:

        gate = sigmoid(W2 relu(W1 mean_hw(x) + b1) + b2)

    The ReLU is plain, whatever the network's activation (base.py; the paper's appendix C says GELU). Weights
    start as a normal of standard deviation 1 / sqrt(inputs) cut at two of them (haiku's default for a
    linear layer, whose actual deviation is 0.88 of that), biases at 0.
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, hidden_channels)
        self.expand = nn.Linear(hidden_channels, channels)
        for linear in (self.reduce, self.expand):
            std = linear.in_features**-0.5
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> gate (N, C). The caller multiplies, together with its other factors."""
        gate_NC = torch.sigmoid(self.expand(F.relu(self.reduce(x_NCHW.mean((2, 3))))))
        # Under autocast a linear layer is float32 within vmap (torch 2.15), and with it would be all activations after
        # the block.
        return gate_NC.to(x_NCHW.dtype)


class StochasticDepth(nn.Module):
    """In training, sets whole samples of its input to zero, each with probability `drop_rate`.

    Unlike in most later code, the kept samples are NOT divided by the probability of being kept (`StochDepth` in
    base.py). A sample is dropped if its number in `uniforms_N`, uniform in [0, 1), is below the rate. Without
    `uniforms_N` the numbers come from torch's generator. Nothing is drawn in evaluation, or if `drop_rate` is 0.
    """

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.drops = drop_rate > 0  # compiled code depends on this, and not on the rate

    def forward(self, x: Tensor, uniforms_N: Tensor | None = None, rate: Tensor | None = None) -> Tensor:
        """(N, ...) -> (N, ...). `rate` is a scalar tensor that replaces `drop_rate`, which must not be 0 then."""
        if not self.training or not self.drops:
            return x
        if uniforms_N is None:
            uniforms_N = torch.rand(x.shape[0], device=x.device)
        stays_N = uniforms_N >= (self.drop_rate if rate is None else rate)
        return x * stays_N.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate:.4f}"


class Dropout(nn.Module):
    """In training, sets each number of a vector to zero with probability `p` and divides the others by `1 - p`.

    A number is set to zero if its entry in `uniforms_NC`, uniform in [0, 1), is below `p`. Without `uniforms_NC` torch
    draws. Nothing is drawn in evaluation, or if `p` is 0. Source: `hk.dropout`, which nfnet.py applies to the pooled
    vector.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.drops = p > 0  # compiled code depends on this, and not on the rate

    def forward(
        self, x_NC: Tensor, uniforms_NC: Tensor | None = None, numbers: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """(N, C) -> (N, C). `numbers` are `p` and `1 / (1 - p)` as scalar tensors.

        They replace the module's `p`, which must not be 0 then, and are used only with `uniforms_NC`.
        """
        if not self.training or not self.drops:
            return x_NC
        if uniforms_NC is None:
            return F.dropout(x_NC, self.p)
        if numbers is None:
            return x_NC * (uniforms_NC >= self.p) * (1 / (1 - self.p))
        p, scale = numbers
        # In the precision of the scale: in bfloat16 the scale itself would be rounded, with the same error everywhere.
        return ((x_NC * (uniforms_NC >= p)).to(scale.dtype) * scale).to(x_NC.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"
