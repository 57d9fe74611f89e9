"""A compiled network is the same however many others its process has compiled before."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.gradient import Gradient


class Scaled(nn.Module):
    """A network with a number that is compiled into its code, as a dropout rate is."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.linear = scale, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2) to (N, 2)."""
        scaled: Tensor = self.linear(x) * self.scale
        return scaled


def test_the_twentieth_network_of_a_process_is_compiled_like_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch stops compiling after the eighth variant of a piece of code, and trains on without."""
    compiled = []

    def backend(graph: Any, _inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        forward: Callable[..., Any] = graph.forward
        return forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    context = PlainContext(device=torch.device("cpu"))
    for number in range(20):
        gradient = Gradient(Scaled(1 + number / 10), Recipe(compile=True), context)
        gradient._network(torch.ones(3, 2))
        assert len(compiled) == number + 1
    again = Gradient(Scaled(1.0), Recipe(compile=True), context)
    again._network(torch.ones(3, 2))
    assert len(compiled) == 20
