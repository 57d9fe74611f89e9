"""The exponential moving average of a network's weights, with the official warm-up."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nfnet_ray.recipe import EMARecipe


def ema_decay(step: int, decay: float, warmup: bool = True) -> float:
    r"""The decay of the average at optimiser step ``step``, counted from 0.

    .. math::  d(t) = \min\Bigl(d_{max}, \frac{1 + t}{10 + t}\Bigr)

    and :math:`d_{max}` without warm-up. With the published 0.99999 the maximum is reached at step 899,990,
    eight times the whole official run: there the warm-up alone decides. Source: official ``utils.py``.

    >>> ema_decay(0, 0.99999), ema_decay(990, 0.99999), ema_decay(0, 0.99999, warmup=False)
    (0.1, 0.991, 0.99999)
    """
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


_HALF_PRECISION = (torch.bfloat16, torch.float16)
"""An average in half precision loses small changes: with a decay of 0.9999, 1,000 steps after the weights had grown by
1 an average in bfloat16 had moved by 0.004 instead of 0.095."""


class ExponentialMovingAverage:
    r"""An average of a network's weights over the steps, as a second network (``model``).

    .. math::  \bar p \leftarrow d(t) \, \bar p + (1 - d(t)) \, p

    after every optimiser step. The average starts as a copy of the initial weights. Statistics of normalisation layers
    (EfficientNet) are averaged like weights, and counters are copied. Source: paper appendix A.1; official
    ``experiment.py`` and ``utils.py``.

    The weights are float32 or float64. The network has to keep its parameter objects: a layer that is replaced later is
    not averaged. The network may be wrapped by ``torch.compile`` or DistributedDataParallel.

    Raises ValueError for an EMARecipe without a decay, for weights in half precision, and for a network whose
    parameters or buffers differ in shape from those that the average started with.
    """

    def __init__(self, model: nn.Module, recipe: EMARecipe) -> None:
        if recipe.decay is None:
            raise ValueError("an EMARecipe without a decay asks for no average")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dtype in _HALF_PRECISION:
                raise ValueError(
                    f"{name} is {parameter.dtype}, in which an average loses the small changes that it consists of: "
                    "keep the weights in float32, and compute under torch.autocast"
                )
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay, self._warmup = recipe.decay, recipe.warmup
        self._pairs = _Pairs(self.model, model)

    def update(self, model: nn.Module, step: int) -> None:
        """Updates the average with the weights after optimiser step ``step``, counted from 0."""
        self.take(model, 1.0 - ema_decay(step, self._decay, self._warmup))

    @torch.no_grad()
    def take(self, model: nn.Module, share: float | Tensor) -> None:
        """Updates the average. ``share`` is the weight of the new values, :math:`1 - d(t)`, on the host or the
        device."""
        if self._pairs.of is not model:
            self._pairs = _Pairs(self.model, model)
        pairs = list(self._pairs)
        averaged = [(mean, new) for mean, new in pairs if mean.is_floating_point()]
        means, news = [mean for mean, _ in averaged], [new for _, new in averaged]
        if isinstance(share, Tensor):  # torch._foreach_lerp_ accepts only a number of the host
            changes = torch._foreach_sub(news, means)
            torch._foreach_mul_(changes, share)
            torch._foreach_add_(means, changes)
        else:
            torch._foreach_lerp_(means, news, share)
        for mean, new in pairs:
            if not mean.is_floating_point():
                mean.copy_(new)

    def state_dict(self) -> dict[str, Tensor]:
        """The state to keep in a checkpoint."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a :meth:`state_dict`."""
        self.model.load_state_dict(state)


class _Pairs:
    """Pairs of the tensors of two networks, (average, new).

    Walking through the modules takes longer than averaging, so it happens once. Parameters stay the same objects.
    Buffers are looked up each time, since a module may replace them.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        self.of = model
        _check_shapes(average, model)
        self._parameters = list(zip(average.parameters(), model.parameters(), strict=True))
        buffers = {  # a buffer that several modules share is averaged once
            id(buffer): (mean._buffers, new._buffers, name)
            for mean, new in zip(_with_buffers(average), _with_buffers(model), strict=True)
            for name, buffer in mean._buffers.items()
            if buffer is not None
        }
        self._buffers = list(buffers.values())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._parameters
        for means, news, name in self._buffers:
            mean, new = means[name], news[name]
            assert mean is not None
            assert new is not None
            yield mean, new


def _with_buffers(network: nn.Module) -> list[nn.Module]:
    """The modules that have buffers. A wrapper around the network has none, so it does not shift the pairs."""
    return [
        module for module in network.modules() if any(part is not None for part in module._buffers.values())
    ]


def _check_shapes(average: nn.Module, model: nn.Module) -> None:
    shapes, others = (
        [part.shape for part in (*network.parameters(), *network.buffers())] for network in (average, model)
    )
    if shapes != others:
        raise ValueError(
            f"the network has other parameters or buffers than the average ({len(others)} and {len(shapes)} tensors): "
            "make a new average for it"
        )
