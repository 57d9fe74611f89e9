"""A compiled network is the same however many others its process compiled before, and keeps to its memory budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager_decomp_partition
from torch._inductor import compile_fx

from nfnet_ray.recipe import Recipe
from nfnet_ray.settings import RecipeError
from nfnet_ray.training import PlainContext
from nfnet_ray.training.form import compilation
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
    graphs = []

    def backend(graph: Any, _inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        forward: Callable[..., Any] = graph.forward
        return forward

    monkeypatch.setattr(compilation, "backend_of", lambda _recipe: backend)
    context = PlainContext(device=torch.device("cpu"))
    for number in range(20):
        gradient = Gradient(Scaled(1 + number / 10), Recipe(compile=True), context)
        gradient._network(torch.ones(3, 2))
        assert len(graphs) == number + 1
    again = Gradient(Scaled(1.0), Recipe(compile=True), context)
    again._network(torch.ones(3, 2))
    assert len(graphs) == 20


@pytest.mark.parametrize("compile", [False, "auto"])
def test_a_memory_budget_needs_a_compiled_network(compile: bool | str) -> None:
    with pytest.raises(RecipeError, match=r"activation_memory_budget = 0.5 .* it takes compile = true"):
        Recipe(compile=compile, activation_memory_budget=0.5)  # type: ignore[arg-type]


def test_a_smaller_budget_keeps_less_and_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, whose compiler must not take the first network's code for the second one.

    What is kept is decided before inductor writes its code, which is left out here: a C++ compiler takes seconds.
    """

    def without_code(graph: Any, inputs: Any, config_patches: dict[str, Any]) -> Any:
        assert config_patches["layout_optimization"] is False
        return aot_eager_decomp_partition(graph, inputs)

    monkeypatch.setattr(compile_fx, "compile_fx", without_code)
    layers = [layer for _ in range(4) for layer in (nn.Linear(32, 32), nn.GELU())]
    network, images = nn.Sequential(*layers), torch.randn(64, 32)
    kept: dict[float, int] = {}
    gradients: dict[float, list[Tensor]] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()} | {
        images.untyped_storage().data_ptr()
    }
    for budget in (1.0, 0.3):
        compiled = compilation.compiled(network, Recipe(compile=True, activation_memory_budget=budget))
        kept[budget] = 0

        def keep(saved: Tensor, budget: float = budget) -> Tensor:
            if saved.untyped_storage().data_ptr() not in own:
                kept[budget] += saved.nbytes
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            loss = compiled(images).square().sum()
        gradients[budget] = list(torch.autograd.grad(loss, list(network.parameters())))
    assert 0 < kept[0.3] < 0.7 * kept[1.0]
    for first, second in zip(gradients[1.0], gradients[0.3], strict=True):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-6)
