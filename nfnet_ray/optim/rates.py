"""The numbers of a step that a schedule changes or a sweep varies, as floats or as scalars on the device.

A CUDA graph keeps a float for ever, and torch.compile compiles again for each value of it. A scalar on the device is
read when the device runs the step, so the host can change it before each step.

Both forms compute the same equations. Some of torch's functions take a number only from the host (``add(alpha=…)``,
``lerp``). With scalars, other functions have to be used, which round differently. A CPU captures no graphs, so there
the rates stay floats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nfnet_ray.optim.ema import ema_decay
from nfnet_ray.optim.sam import ascent_numbers
from nfnet_ray.optim.schedule import learning_rate_at
from nfnet_ray.recipe import Recipe

Number = float | Tensor


@dataclass(frozen=True)
class Rates:
    """The rates of one step. A rate of a technique that the Recipe does not use is 0, and is not read."""

    learning_rate: Number
    momentum: Number
    weight_decay: Number
    rmsprop_new: Number
    """The share of a new square in RMSProp's mean, 1 - decay."""
    rmsprop_eps: Number
    clip_factor: Number
    agc_eps: Number
    average_new: Number
    """The share of the new weights in the moving average, 1 - decay at this step."""
    label_smoothing: Number
    ascent_length: Number
    """SAM's rho, divided by ESAM's share of the weights."""
    asam_eta: Number
    looksam_alpha: Number
    step_of_epoch: Number
    """From 1."""
    mask_start: int | Tensor
    """Where the hashes of ESAM's mask start (:func:`nfnet_ray.optim.sam.ascent_numbers`), an int64."""
    mask_limit: int | Tensor
    """Weights whose hash is smaller are moved, an int64."""


_WHOLE = ("mask_start", "mask_limit")
_REAL = tuple(field.name for field in dataclasses.fields(Rates) if field.name not in _WHOLE)


def rates_at(step: int, recipe: Recipe, steps_per_epoch: int) -> Rates:
    """The Recipe's rates of optimiser step ``step``, counted from 0, as floats."""
    optimizer = recipe.optimizer
    average, sam = optimizer.ema, optimizer.sam
    ascent = ascent_numbers(sam, seed=(recipe.seed << 32) + step)
    return Rates(
        learning_rate=learning_rate_at(
            step, recipe.schedule, peak=recipe.peak_learning_rate, steps_per_epoch=steps_per_epoch
        ),
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
        rmsprop_new=1.0 - optimizer.rmsprop_decay,
        rmsprop_eps=optimizer.rmsprop_eps,
        clip_factor=optimizer.agc.clip_factor or 0.0,
        agc_eps=optimizer.agc.eps,
        average_new=0.0 if average.decay is None else 1.0 - ema_decay(step, average.decay, average.warmup),
        label_smoothing=recipe.loss.label_smoothing,
        ascent_length=ascent.length,
        asam_eta=ascent.eta,
        looksam_alpha=sam.looksam_alpha,
        step_of_epoch=float(step % steps_per_epoch + 1),
        mask_start=ascent.mask_start,
        mask_limit=ascent.mask_limit,
    )


class DeviceRates:
    """Rates as scalars on a device, which keep their addresses. ``dtype`` is the dtype of the weights.

    With scalars of another dtype torch's foreach functions would launch a kernel for each tensor.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._reals = torch.zeros(len(_REAL), dtype=dtype, device=device)
        self._wholes = torch.zeros(len(_WHOLE), dtype=torch.int64, device=device)
        self._filled: dict[tuple[str, ...], list[float]] = {}
        scalars = dict(zip(_REAL, self._reals.unbind(), strict=True))
        self.rates = Rates(**scalars, **dict(zip(_WHOLE, self._wholes.unbind(), strict=True)))

    def tensors(self) -> Iterator[Tensor]:
        """The two tensors that hold the values, and the scalars, which are views of them."""
        yield from (self._reals, self._wholes)
        yield from (getattr(self.rates, name) for name in (*_REAL, *_WHOLE))

    def fill(self, rates: Rates) -> None:
        """Sets :attr:`rates` to the floats in ``rates``, for the kernels that are launched from now on.

        The host does not wait. It may be many steps ahead of the device, so each step has a separate host tensor, which
        torch keeps until it has been copied.
        """
        for kept, names in ((self._reals, _REAL), (self._wholes, _WHOLE)):
            values = [getattr(rates, name) for name in names]
            if values == self._filled.get(names):
                continue
            self._filled[names] = values
            pinned = torch.tensor(values, dtype=kept.dtype, pin_memory=kept.device.type == "cuda")
            kept.copy_(pinned, non_blocking=True)
