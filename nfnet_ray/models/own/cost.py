"""The cost of a user's own network, which is built and tried once to measure it, without memory if possible."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter
from torch.utils.flop_counter import FlopCounterMode

from nfnet_ray.errors import UserError
from nfnet_ray.models.own.build import build_own, told
from nfnet_ray.models.own.source import pinned_network
from nfnet_ray.recipe import split_weights

_FLOPS_PER_MULTIPLY_ADD = 2
_IMAGES = 2  # with one image, a network that drops the batch dimension would not be noticed


@dataclass(frozen=True)
class OwnCost:
    """The number of learnable scalars, the multiply-adds of the forward pass of one image, and whether the network has
    batch normalisation."""

    parameters: int
    multiply_adds: int
    has_batch_norm: bool


def cost_of(name: str, image_size: int | None, num_classes: int) -> OwnCost:
    """The cost of a network for square images of ``image_size`` pixels per side.

    With an ``image_size`` of None the network is built but not run, and ``multiply_adds`` is 0. Convolutions and matrix
    products are counted, including those of attention (``torch.utils.flop_counter``). The state of torch's generators
    does not change.

    Raises UserError, in one line, if the network cannot be built, fails on such images, or does not return logits
    (N, num_classes).
    """
    return _cost_of(pinned_network(name), image_size, num_classes)


@functools.lru_cache(maxsize=256)
def _cost_of(name: str, image_size: int | None, num_classes: int) -> OwnCost:
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _tried(name, image_size, num_classes, "meta")
        except UserError:  # the network may create tensors on a certain device, so try it with memory
            return _tried(name, image_size, num_classes, "cpu")


def _tried(name: str, image_size: int | None, num_classes: int, device: str) -> OwnCost:
    label = split_weights(name)[0]
    network = build_own(name, num_classes)
    if any(isinstance(parameter, UninitializedParameter) for parameter in network.parameters()):
        raise UserError(f"{label} has lazy layers, whose weights nobody can load or count: give their sizes")
    return OwnCost(
        parameters=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        multiply_adds=_multiply_adds(network, label, image_size, num_classes, device) if image_size else 0,
        has_batch_norm=any(isinstance(module, _BatchNorm) for module in network.modules()),
    )


def _multiply_adds(network: nn.Module, label: str, image_size: int, num_classes: int, device: str) -> int:
    shape = (_IMAGES, 3, image_size, image_size)
    images = torch.zeros(shape, device=device)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = network.eval()(images)
    except Exception as error:
        raise UserError(f"{label} fails on images of {image_size} px: {told(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != (_IMAGES, num_classes):
        what = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(
            f"{label} returns {what} for images {shape}: it must return logits ({_IMAGES}, {num_classes}), a row for "
            "each image and a column for each class"
        )
    return counter.get_total_flops() // (_FLOPS_PER_MULTIPLY_ADD * _IMAGES)
