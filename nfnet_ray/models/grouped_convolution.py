"""Grouped convolutions, some passes of which are computed as one dense convolution for each group.

The mathematics is the same, but numbers are added in another order. Convolutions with groups can be much slower than
those without, above all backward and in channels_last, which made NFNets 2.4 times slower on an RTX 3090, and networks
without such groups faster (timm's tables; docs/performance.md). A slice costs a copy of its channels instead.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Pass = Literal["forward", "input_gradient", "weight_gradient"]

SLICED_PASSES: dict[str, frozenset[Pass]] = {
    "whole": frozenset(),
    "sliced_weight_gradient": frozenset({"weight_gradient"}),
    "sliced_gradients": frozenset({"input_gradient", "weight_gradient"}),
    "sliced": frozenset({"forward", "input_gradient", "weight_gradient"}),
}
"""{value of the Recipe's ``grouped_convolutions``: passes that are sliced}."""


def grouped_conv2d(
    x_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    groups: int,
    sliced: frozenset[Pass],
) -> Tensor:
    """``F.conv2d`` of these arguments, with the ``sliced`` passes computed group by group.

    ``x_NCHW`` is (N, C, H, W), ``weight`` (out_channels, C / groups, height, width) and ``bias`` (out_channels,); the
    result is (N, out_channels, H', W'), in autocast's dtype under autocast and else in that of the arguments.
    ``padding`` is that of both sides, (rows, columns) in pixels.
    """
    if torch.is_autocast_enabled(x_NCHW.device.type):  # which knows only torch's own functions
        dtype = torch.get_autocast_dtype(x_NCHW.device.type)
        x_NCHW, weight = x_NCHW.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    result: Tensor = _GroupedConv2d.apply(x_NCHW, weight, bias, stride, padding, groups, sliced)
    return result


class _GroupedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: tuple[int, int],
        groups: int,
        sliced: frozenset[Pass],
    ) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight)
        ctx.stride, ctx.padding, ctx.groups, ctx.sliced = stride, padding, groups, sliced
        if "forward" not in sliced:
            return F.conv2d(x_NCHW, weight, bias, stride, padding, groups=groups)
        biases = [None] * groups if bias is None else bias.chunk(groups)
        parts = zip(x_NCHW.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
        return torch.cat([F.conv2d(*part, stride, padding) for part in parts], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        x_NCHW, weight = ctx.saved_tensors
        groups, sliced = ctx.groups, ctx.sliced
        wanted: dict[Pass, bool] = {
            "input_gradient": ctx.needs_input_grad[0],
            "weight_gradient": ctx.needs_input_grad[1],
        }

        def gradients(
            x: Tensor, w: Tensor, grad: Tensor, groups: int, which: dict[Pass, bool]
        ) -> tuple[Tensor | None, Tensor | None]:
            mask = [which["input_gradient"], which["weight_gradient"], False]
            of_x, of_w, _ = torch.ops.aten.convolution_backward(
                grad, x, w, None, [ctx.stride] * 2, list(ctx.padding), [1, 1], False, [0, 0], groups, mask
            )
            return (of_x if mask[0] else None), (of_w if mask[1] else None)

        of_x: Tensor | None = None
        of_weight: Tensor | None = None
        whole = {name: is_wanted and name not in sliced for name, is_wanted in wanted.items()}
        if any(whole.values()):
            of_x, of_weight = gradients(x_NCHW, weight, grad_NCHW, groups, whole)
        by_group = {name: is_wanted and name in sliced for name, is_wanted in wanted.items()}
        if any(by_group.values()):
            chunks = zip(
                x_NCHW.chunk(groups, 1), weight.chunk(groups), grad_NCHW.chunk(groups, 1), strict=True
            )
            parts = [gradients(*chunk, 1, by_group) for chunk in chunks]
            if by_group["input_gradient"]:
                of_x = torch.cat([part for part, _ in parts if part is not None], 1)
            if by_group["weight_gradient"]:
                of_weight = torch.cat([part for _, part in parts if part is not None])
        # As torch's own backward pass has it.
        of_bias = grad_NCHW.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None, None, None, None
