"""What a run has captured, kept for the next run of its process, if that differs from it in numbers alone.

A CUDA graph reads and writes the memory that it was captured with. The next run is built as in a new process: its
network, optimiser, counters and schedule are objects of its own, with their first values. Then its tensors move into
the memory that the graphs have, which is overwritten with what they hold. So nothing of the earlier run is left that
the graphs read or that Python knows of, however it ended.
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
"""A network reads them on the device if it is an NFNet."""
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
"""The fields that a step reads as scalars on the device. A new field of the Recipe is not among them until it does."""
_LEFT_OUT = ("seed", "schedule.")
"""A step knows of these only the rates that follow from them, on the device as well."""


def structure_of(recipe: Recipe, *, reads_drop_rates: bool) -> dict[str, Any]:
    """What two Recipes have in common whose steps are the same kernels, whatever their :data:`NUMBERS` are.

    ``reads_drop_rates``: the network reads its drop rates on the device.

    >>> first, second, third = (Recipe().with_values({"optimizer.momentum": m}) for m in (0.9, 0.8, 0.0))
    >>> structures = [structure_of(recipe, reads_drop_rates=True) for recipe in (first, second, third)]
    >>> structures[0] == structures[1], structures[0] == structures[2]
    (True, False)
    """
    values = {name: value for name, value in recipe.to_values().items() if not name.startswith(_LEFT_OUT)}
    for name in NUMBERS if reads_drop_rates else set(NUMBERS).difference(DROP_RATES):
        if values[name] not in (None, 0, 1):  # with these a part of the step is left out
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
    """At most what one run has captured. A run takes it out when it begins, and a run that ends in order puts it back.

    So a run that raises anything leaves nothing. What a run has returned is overwritten by the next one that replays
    its graphs.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    @property
    def holds_graphs(self) -> bool:
        """Whether the next run finds some."""
        return self._kept is not None

    def keep(
        self, recipe: Recipe, memory: Iterable[Tensor], captured: Any, *, reads_drop_rates: bool
    ) -> None:
        """Keeps what a run with this Recipe has captured; None: nothing.

        ``memory`` is all that its steps read and write and that belongs to the run, in the same order for all runs of
        one structure. A network of one's own may have more than its parameters and buffers, so of that nothing is kept.
        """
        self.drop()
        if captured is not None and not is_import_path(recipe.model.name):
            without_gradients = [tensor.detach() for tensor in memory]
            self._kept = _Kept(recipe, reads_drop_rates, without_gradients, captured)

    def drop(self) -> None:
        """Lets go of what is kept, and of its memory."""
        self._kept = None

    def drop_unless_for(self, recipe: Recipe) -> None:
        """Makes room for a run with this Recipe, whose form may be open, unless it may use what is kept."""
        if self._kept:
            names = [field.name for field in dataclasses.fields(Form) if getattr(recipe, field.name) == AUTO]
            chosen = {name: getattr(self._kept.recipe, name) for name in names}
            if not self._kept.fits(recipe.with_values(chosen)):
                self.drop()

    @torch.no_grad()
    def take(self, recipe: Recipe, memory: Iterable[Tensor], *, reads_drop_rates: bool) -> Any:
        """What was captured by a run of the same structure, in whose memory the tensors of ``memory`` are from now on.

        None if nothing fits. In any case nothing is kept any more.
        """
        kept, self._kept = self._kept, None
        own = list(memory)
        if kept is None or kept.reads_drop_rates != reads_drop_rates or not kept.fits(recipe):
            return None
        if list(map(_layout, own)) != list(map(_layout, kept.memory)):  # as of data with other classes
            return None
        for tensor, place in zip(own, kept.memory, strict=True):
            place.copy_(tensor)
            tensor.data = place
        return kept.captured


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
