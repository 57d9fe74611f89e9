"""Stores the weights of all lanes in one tensor, and likewise their gradients, momentum and moving averages.

Each lane has one row, with all trained parameters. Parameters that are treated alike are next to each other: those with
weight decay come first, and those that AGC clips are sorted by the number of values in their units. So AGC, decay,
momentum and the moving average take a few kernels, however many tensors and lanes there are.

The lanes keep their own networks and optimisers, whose tensors become views of the rows. So a lane is saved, evaluated
and reported by the same code as a single trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nfnet_ray.optim.agc import as_units


class Piece(NamedTuple):
    """A parameter and its columns in a row."""

    name: str
    shape: torch.Size
    columns: slice


class Clipped(NamedTuple):
    """Adjacent tensors whose units have the same number of ``values``.

    ``order`` has for each tensor (index among the parameters that AGC clips, number of units).
    """

    columns: slice
    values: int
    order: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """The columns of each parameter in a row. The first ``decayed`` columns have weight decay."""

    pieces: tuple[Piece, ...]
    decayed: int
    clipped: tuple[Clipped, ...]

    @property
    def columns(self) -> int:
        """The number of columns of a row."""
        return self.pieces[-1].columns.stop if self.pieces else 0

    @staticmethod
    def of(model: nn.Module, clipped: Sequence[str], decayed: Sequence[str]) -> Layout:
        """The layout of a network's trained parameters. ``clipped`` and ``decayed`` are names of parameters."""
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        place = {name: number for number, name in enumerate(clipped)}
        units = {name: as_units(parameter).shape for name, parameter in parameters.items()}

        def key(name: str) -> tuple[bool, bool, int]:
            return name not in decayed, name not in place, units[name][1] if name in place else 0

        pieces: list[Piece] = []
        groups: list[Clipped] = []
        last, start, end_of_decayed = None, 0, 0
        for name in sorted(parameters, key=key):
            columns = slice(start, start + parameters[name].numel())
            pieces.append(Piece(name, parameters[name].shape, columns))
            if name in place:
                count, values = units[name]
                if key(name) == last:
                    before = groups.pop()
                    groups.append(
                        Clipped(
                            slice(before.columns.start, columns.stop),
                            values,
                            (*before.order, (place[name], count)),
                        )
                    )
                else:
                    groups.append(Clipped(columns, values, ((place[name], count),)))
            last, start = key(name), columns.stop
            end_of_decayed = start if name in decayed else end_of_decayed
        return Layout(tuple(pieces), end_of_decayed, tuple(groups))

    def views(self, rows_LP: Tensor) -> dict[str, Tensor]:
        """{name: view (L, ...)} of each parameter in rows (L, columns)."""
        views = {}
        for name, shape, columns in self.pieces:
            of_piece = rows_LP[:, columns]
            views[name] = of_piece.unflatten(1, shape) if shape else of_piece.squeeze(1)
        return views

    def parts(self, row_P: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, view in the parameter's shape) of each parameter in the row of one lane."""
        for piece in self.pieces:
            yield piece.name, row_P[piece.columns].view(piece.shape)

    def rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """Concatenates tensors (L, ...) of all parameters, in the order of :meth:`views`, to rows (L, columns)."""
        return torch.cat(
            [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors], dim=1
        )

    def gathered(self, lanes: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Copies the lanes' tensors, {name: tensor} each, into new rows (L, columns)."""
        return torch.stack(
            [torch.cat([lane[piece.name].detach().reshape(-1) for piece in self.pieces]) for lane in lanes]
        )


class LaneWeights:
    """The parameters of several networks of one architecture, whose trained parameters become views of ``rows``.

    Attributes:
        rows: the trained parameters, (L, columns).
        leaves: {name: view (L, ...)} of the trained parameters. Each view is a leaf of the autograd graph.
        frozen: {name: copy (L, ...)} of the other parameters.
    """

    def __init__(self, layout: Layout, models: Sequence[nn.Module]) -> None:
        lanes = [dict(model.named_parameters()) for model in models]
        self.rows = layout.gathered(lanes)
        for lane, row_P in zip(lanes, self.rows, strict=True):
            for name, view in layout.parts(row_P):
                lane[name].data = view
        trained = {piece.name for piece in layout.pieces}
        self.leaves = {name: view.detach().requires_grad_() for name, view in layout.views(self.rows).items()}
        self.frozen = {
            name: torch.stack([lane[name].detach() for lane in lanes])
            for name in lanes[0]
            if name not in trained
        }

    def all(self) -> dict[str, Tensor]:
        """{name: (L, ...)} of all parameters, trained and frozen."""
        return {**self.leaves, **self.frozen}


def let_go(model: nn.Module) -> None:
    """Copies a network's parameters into separate tensors, so that they do not keep the rows of all lanes alive."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
