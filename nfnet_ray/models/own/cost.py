"""What a network of one's own costs: it is built and tried once, on a network without memory if possible."""

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
_IMAGES = 2  # one would hide a network that drops the dimension of the batch


@dataclass(frozen=True)
class OwnCost:
    """Learnable scalars, multiply-adds of one image's forward pass, and what else a plan has to know."""

    parameters: int
    multiply_adds: int
    has_batch_norm: bool


def cost_of(name: str, image_size: int | None, num_classes: int) -> OwnCost:
    """The cost of a network at square images of ``image_size`` pixels per side; None: it is built and not tried.

    Convolutions and products of matrices are counted, those of attention too (``torch.utils.flop_counter``). torch's
    generators are as they were.

    Raises UserError, in one line, where the network cannot be built or fails on such images, and where it returns
    something else than logits (N, num_classes).
    """
    return _cost_of(pinned_network(name), image_size, num_classes)


@functools.lru_cache(maxsize=256)
def _cost_of(name: str, image_size: int | None, num_classes: int) -> OwnCost:
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _tried(name, image_size, num_classes, "meta")
        except UserError:  # it may be a network that makes tensors on a device of its own
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
