"""Counts on the device how many units AGC clips, layer by layer, and how large their gradients are.

Counting adds a dozen small kernels to a step and never waits for the device. Training does not read the counts.
``benchmarks/clipping_counts.py`` measures the cost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nfnet_ray.clipping import (
    BINS,
    BINS_PER_OCTAVE,
    EDGES,
    LOWEST_OCTAVE,
    REFERENCE_RATIO,
    Clipping,
    clipping_from_counts,
)
from nfnet_ray.models.nfnet import NFNet
from nfnet_ray.optim.agc import UnitNorms, as_units

RECORDS_OF_A_RUN = 32
"""The largest number of records of a run. In a longer run several epochs share a record, so that the journal stays
small: 32 points fill a chart."""
STEPS_BETWEEN_NORMS = 16
"""Without clipping, the norms are computed only for the counts, and only in every 16th step. Clipping takes 2 to 6% of
a step of nfnet_pico (benchmarks/results/step_parts.csv). Norms in every 16th step cost as little as counting does."""

_PART_OF_OTHERS = re.compile(r"[A-Za-z_]+(?:\d+|\.\d+)?")


class ClippingCounts:
    """Counts of units and steps. All workers have the same counts, since gradients are averaged before clipping.

    ``parameters`` is {name: parameter} of the parameters that AGC clips, in the order in which AGC receives them. The
    first step is counted, and then every ``steps_between``-th step.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        device: torch.device,
        steps_between: int = 1,
    ) -> None:
        self._layers, self._layer_of_tensor = _layers(model, parameters)
        layers = max(1, len(self._layers))
        self._counts = torch.zeros(layers * BINS, dtype=torch.int64, device=device)
        self._clipped = torch.zeros(layers, dtype=torch.int64, device=device)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)
        self._steps_between = steps_between
        self._step = torch.tensor(1 - steps_between, device=device)
        self._first_step_above = torch.zeros(len(EDGES), dtype=torch.int64, device=device)
        self._edges = torch.arange(len(EDGES), device=device)
        self._tensors: tuple[tuple[int, int], ...] = ()
        self._layer_of_unit = self._first_bin_of_unit = self._ones = torch.zeros(0, dtype=torch.int64)

    @torch.no_grad()
    def add(self, norms: UnitNorms | None) -> None:
        """Counts the units of one step."""
        if norms is None:
            return
        if norms.tensors != self._tensors:
            self._arrange(norms.tensors)
        bins = _bins(norms.gradient / norms.parameter)
        self._counts.scatter_add_(0, bins + self._first_bin_of_unit, self._ones)
        if norms.is_clipped is not None:
            self._clipped.scatter_add_(0, self._layer_of_unit, norms.is_clipped.long())
        self._steps.add_(1)
        self._step.add_(self._steps_between)
        is_first = (self._first_step_above == 0) & (self._edges < bins.max())
        self._first_step_above.add_(is_first * self._step)

    def use(self, tensors: Mapping[str, Tensor]) -> None:
        """Counts in ``tensors`` from now on. They have the names and shapes of :meth:`state_dict`."""
        self._counts, self._clipped = tensors["counts"], tensors["clipped"]
        self._steps, self._step = tensors["steps"], tensors["step"]
        self._first_step_above = tensors["first_step_above"]

    def layer_of_units(self, tensors: tuple[tuple[int, int], ...]) -> Tensor:
        """(units,) The index of each unit's layer. ``tensors`` is the field of :class:`UnitNorms`."""
        device = self._counts.device
        layers = torch.tensor([self._layer_of_tensor[place] for place, _ in tensors], device=device)
        units = [units for _, units in tensors]
        # Without output_size torch would wait for the device, to learn the size of the result.
        return layers.repeat_interleave(torch.tensor(units, device=device), output_size=sum(units))

    @property
    def steps_between(self) -> int:
        """The number of steps from one counted step to the next."""
        return self._steps_between

    def record_after(self, epoch: int, epochs: int) -> dict[str, str]:
        """Returns ``{"clipping": record as text}`` if a record is due after epoch ``epoch`` of ``epochs``.

        Otherwise, and if AGC clips no parameter of the network, returns {} without waiting for the device.
        """
        is_due = epoch % epochs_per_record(epochs) == 0 or epoch == epochs
        return {"clipping": self.take().to_text()} if self._layers and is_due else {}

    def take(self) -> Clipping:
        """Returns the counts since the last call, and resets them. Waits for the device."""
        found = clipping_from_counts(
            self._layers,
            self._counts.view(-1, BINS)[: len(self._layers)].cpu().numpy(),
            self._clipped[: len(self._layers)].cpu().numpy(),
            int(self._steps),
            self._first_step_above[::BINS_PER_OCTAVE].tolist(),
        )
        for count in (self._counts, self._clipped, self._steps):
            count.zero_()
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """The counts, to save in a checkpoint."""
        return {
            "counts": self._counts,
            "clipped": self._clipped,
            "steps": self._steps,
            "step": self._step,
            "first_step_above": self._first_step_above,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a :meth:`state_dict`. Ignores a state of other names or shapes, such as one with other bins."""
        own = self.state_dict()
        if all(name in state and state[name].shape == kept.shape for name, kept in own.items()):
            for name, kept in own.items():
                kept.copy_(state[name])

    def _arrange(self, tensors: tuple[tuple[int, int], ...]) -> None:
        """Stores the layer of each unit, for all steps that have the units in this order."""
        self._layer_of_unit = self.layer_of_units(tensors)
        self._first_bin_of_unit = self._layer_of_unit * BINS
        self._ones = torch.ones_like(self._layer_of_unit)
        self._tensors = tensors


class LaneClippingCounts:
    """The counts of all lanes of a cohort, stacked. The tensors of each lane's ClippingCounts become views of a stack.

    ``tensors`` is the field of :class:`UnitNorms`, the same for all lanes and steps.
    """

    def __init__(self, lanes: Sequence[ClippingCounts], tensors: tuple[tuple[int, int], ...]) -> None:
        states = [lane.state_dict() for lane in lanes]
        stacks = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        for number, lane in enumerate(lanes):
            lane.use({name: stack[number] for name, stack in stacks.items()})
        self._counts, self._clipped, self._steps = stacks["counts"], stacks["clipped"], stacks["steps"]
        self._step, self._first_step_above = stacks["step"], stacks["first_step_above"]
        device = self._counts.device
        layer_of_unit = lanes[0].layer_of_units(tensors)
        self._layer_of_unit = layer_of_unit.expand(len(lanes), -1)
        self._first_bin_of_unit = self._layer_of_unit * BINS
        self._steps_between = torch.tensor([lane.steps_between for lane in lanes], device=device)
        self._edges = torch.arange(len(EDGES), device=device)

    def tensors(self) -> list[Tensor]:
        """The tensors that :meth:`add` changes. They stay the same objects."""
        return [self._counts, self._clipped, self._steps, self._step, self._first_step_above]

    @torch.no_grad()
    def add(self, ratios_LU: Tensor, is_clipped_LU: Tensor, due_L: Tensor) -> None:
        """Counts the units of one step in the lanes for which ``due_L`` is true. Overwrites ``ratios_LU``."""
        bins_LU, due_L1 = _bins(ratios_LU), due_L[:, None]
        self._counts.scatter_add_(1, bins_LU + self._first_bin_of_unit, due_L1.expand_as(bins_LU).long())
        self._clipped.scatter_add_(1, self._layer_of_unit, (is_clipped_LU & due_L1).long())
        self._steps.add_(due_L)
        self._step.add_(self._steps_between * due_L)
        largest_L1 = bins_LU.amax(dim=1, keepdim=True)
        is_first = (self._first_step_above == 0) & (self._edges < largest_L1) & due_L1
        self._first_step_above.add_(is_first * self._step[:, None])


def _bins(ratios: Tensor) -> Tensor:
    """The bin of each ratio, int64. Overwrites ``ratios``."""
    offset = -math.log2(REFERENCE_RATIO) - LOWEST_OCTAVE
    place = ratios.log2_().add_(offset).mul_(BINS_PER_OCTAVE).ceil_()
    # A ratio that is not a number goes into the last bin, since fmin prefers numbers.
    top = torch.full_like(place[..., :1], BINS - 1)
    return torch.fmin(place, top).clamp_(min=0).long()


def epochs_per_record(epochs: int) -> int:
    """The number of epochs that share a record in a run of ``epochs``. The last record may cover fewer epochs."""
    return math.ceil(epochs / RECORDS_OF_A_RUN)


def _layers(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> tuple[list[tuple[str, str, int]], list[int]]:
    """(name, part, number of units) of each layer, and the index of each parameter's layer."""
    layers: dict[tuple[str, str], int] = {}
    keys = []
    for name, parameter in parameters.items():
        is_weight = parameter.squeeze().ndim > 1
        keys.append((name.removesuffix(".weight") if is_weight else "", part_of(model, name)))
        layers[keys[-1]] = layers.get(keys[-1], 0) + as_units(parameter).shape[0]
    numbers = {key: number for number, key in enumerate(layers)}
    return [(*key, units) for key, units in layers.items()], [numbers[key] for key in keys]


def part_of(model: nn.Module, name: str) -> str:
    """The part of the network to which a parameter belongs.

    For an NFNet: the stem, stage 1 to 4, the final conv or the classifier. For other networks: the beginning of the
    parameter's name, such as ``blocks.3`` or ``layer2``.
    """
    if isinstance(model, NFNet):
        kind, number = (*name.split("."), "")[:2]
        if kind == "blocks":
            stage, _ = model.variant.stages_and_inputs[int(number)]
            return f"stage {stage + 1}"
        return kind.replace("_", " ")
    found = _PART_OF_OTHERS.match(name)
    return found[0] if found else name
