"""The graphs that a run has captured, kept for the next run of its process if that differs only in numbers.

A CUDA graph reads and writes the memory that it was captured with. The next run is built as in a new process, with a
new network, optimiser, counters and schedule. Then its tensors move into the memory of the graphs, and their values
overwrite the old ones. So no value of the earlier run remains that the graphs or Python could read, however that run
ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nfnet_ray.recipe import Recipe, is_import_path
from nfnet_ray.training.form.forms import AUTO, Form

DROP_RATES = ("model.dropout", "model.stochastic_depth")
"""An NFNet reads these rates on the device."""
NUMBERS = (
    *DROP_RATES,
    "loss.label_smoothing",
    "optimizer.agc.clip_factor",
    "optimizer.agc.eps",
    "optimizer.ema.decay",
    "optimizer.momentum",
    "optimizer.rmsprop_decay",
    "optimizer.rmsprop_eps",
    "optimizer.sam.asam_eta",
    "optimizer.sam.esam_weight_share",
    "optimizer.sam.looksam_alpha",
    "optimizer.sam.rho",
    "optimizer.weight_decay",
)
"""The fields that a step reads as scalars on the device. List a new field of the Recipe here once that is so for it."""
_LEFT_OUT = ("seed", "schedule.")
"""Fields that act on a step only through its rates, which are on the device as well."""


def structure_of(recipe: Recipe, *, reads_drop_rates: bool) -> dict[str, Any]:
    """The values of a Recipe that decide which kernels its steps run. The :data:`NUMBERS` are left out.

    ``reads_drop_rates`` says that the network reads its drop rates on the device.

    >>> first, second, third = (Recipe().with_values({"optimizer.momentum": m}) for m in (0.9, 0.8, 0.0))
    >>> structures = [structure_of(recipe, reads_drop_rates=True) for recipe in (first, second, third)]
    >>> structures[0] == structures[1], structures[0] == structures[2]
    (True, False)
    """
    values = {name: value for name, value in recipe.to_values().items() if not name.startswith(_LEFT_OUT)}
    for name in NUMBERS if reads_drop_rates else set(NUMBERS).difference(DROP_RATES):
        if values[name] not in (None, 0, 1):  # with these values a part of the step is left out
            values[name] = "a number"
    return values


@dataclass(frozen=True)
class _Kept:
    recipe: Recipe
    reads_drop_rates: bool
    memory: list[Tensor]
    captured: Any

    def structure(self) -> dict[str, Any]:
        return structure_of(self.recipe, reads_drop_rates=self.reads_drop_rates)

    def fits(self, recipe: Recipe) -> bool:
        return structure_of(recipe, reads_drop_rates=self.reads_drop_rates) == self.structure()


class KeptGraphs:
    """Keeps the graphs of at most one run. A run takes them when it begins, and leaves its own if it ends regularly.

    So a run that raises an exception leaves none. A run that replays the graphs of an earlier one overwrites the
    network that the earlier one has returned.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    @property
    def holds_graphs(self) -> bool:
        """Whether there are graphs for the next run."""
        return self._kept is not None

    def keep(
        self, recipe: Recipe, memory: Iterable[Tensor], captured: Any, *, reads_drop_rates: bool
    ) -> None:
        """Keeps the graphs that a run with this Recipe has captured; None if it has none.

        ``memory`` are the tensors of the run that its steps read and write, in the same order for all runs of one
        structure. A user's own network may have other tensors than its parameters and buffers, so its graphs are not
        kept.
        """
        self.drop()
        if captured is not None and not is_import_path(recipe.model.name):
            without_gradients = [tensor.detach() for tensor in memory]
            self._kept = _Kept(recipe, reads_drop_rates, without_gradients, captured)

    def drop(self) -> None:
        """Drops the graphs, and releases their memory."""
        self._kept = None

    def drop_unless_for(self, recipe: Recipe) -> None:
        """Drops the graphs unless a run with this Recipe may use them. The form of the Recipe may still be ``auto``."""
        if self._kept:
            names = [field.name for field in dataclasses.fields(Form) if getattr(recipe, field.name) == AUTO]
            chosen = {name: getattr(self._kept.recipe, name) for name in names}
            if not self._kept.fits(recipe.with_values(chosen)):
                self.drop()

    @torch.no_grad()
    def take(self, recipe: Recipe, memory: Iterable[Tensor], *, reads_drop_rates: bool) -> Any:
        """Returns the graphs of a run of the same structure, and moves the tensors of ``memory`` into their memory.

        Returns None if none fit. In either case no graphs are kept any more.
        """
        kept, self._kept = self._kept, None
        own = list(memory)
        if kept is None or kept.reads_drop_rates != reads_drop_rates or not kept.fits(recipe):
            return None
        if list(map(_layout, own)) != list(map(_layout, kept.memory)):  # as with other classes
            return None
        for tensor, place in zip(own, kept.memory, strict=True):
            place.copy_(tensor)
            tensor.data = place
        return kept.captured


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
