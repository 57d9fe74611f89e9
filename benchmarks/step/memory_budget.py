"""What a memory budget keeps and computes again: ``python -m benchmarks.step.memory_budget [CASE …]``.

A case is MODEL:BATCH:PIXELS, in bfloat16. The network is compiled with each ``activation_memory_budget`` to the point
where inductor would write its code, which makes no difference here: the graphs of the forward and backward pass are run
as they are. ``kept_mib`` are the bytes of activations that the forward pass keeps for the backward pass, and
``flops_ratio`` is the arithmetic of both passes / that with a budget of 1. Neither depends on the machine, so one run
is enough. Appends a row for each budget to ``results/memory_budget.csv``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._functorch import config
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor import compile_fx
from torch._inductor.fx_utils import count_flops_fx

from benchmarks.record import Row, append_rows
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.models import model_of
from nfnet_ray.models.published import published_recipe
from nfnet_ray.training.form import compilation

RESULTS = Path(__file__).parents[1] / "results" / "memory_budget.csv"
BUDGETS = (1.0, 0.75, 0.5, 0.25, 0.1)
CLASSES = 1000


class Graphs(compilation.Inductor):
    """Inductor without its last part: its graphs are run operation by operation."""

    flops: ClassVar[list[float]] = []
    """Operations of each graph."""

    def __call__(self, graph: Any, inputs: Any) -> Any:
        """Makes the graphs of both passes."""

        def as_it_is(graph: Any, *_: Any, **__: Any) -> Any:
            self.flops.append(sum(count_flops_fx(node) or 0 for node in graph.graph.nodes))
            return make_boxed_func(graph.forward)

        with config.patch(activation_memory_budget=self.activation_memory_budget):
            return compile_fx.compile_fx(
                graph, inputs, inner_compile=as_it_is, config_patches=dict(self.switches)
            )


def measure(name: str, batch_size: int, pixels: int) -> list[Row]:
    """A row for each budget."""
    recipe = published_recipe(name).with_values({"compile": True})
    model = model_of(recipe.model, CLASSES).train()
    images, keys = torch.randn(batch_size, 3, pixels, pixels), torch.arange(batch_size)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: list[tuple[float, int, float]] = []
    for budget in BUDGETS:
        network = compilation.compiled(model, recipe.with_values({"activation_memory_budget": budget}))
        kept: dict[int, int] = {}

        def keep(saved: Tensor) -> Tensor:
            place = saved.untyped_storage().data_ptr()
            if place not in own:
                kept[place] = max(kept.get(place, 0), saved.nbytes)  # noqa: B023
            return saved

        Graphs.flops.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
            torch.autocast("cpu", torch.bfloat16),
        ):
            loss = network(images, keys).float().square().mean()
        loss.backward()
        found.append((budget, sum(kept.values()), sum(Graphs.flops)))
        model.zero_grad(set_to_none=True)
    return [
        {
            "model": name,
            "batch_size": batch_size,
            "pixels": pixels,
            "precision": "bfloat16",
            "budget": budget,
            "kept_mib": round(kept / 2**20, 1),
            "kept_ratio": round(kept / found[0][1], 3),
            "flops_ratio": round(flops / found[0][2], 3),
            "torch": str(torch.__version__),
        }
        for budget, kept, flops in found
    ]


def main() -> None:
    """Measures, prints, and appends to the results."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        default=["nfnet_f0:2:192"],
        help="MODEL:BATCH:PIXELS (default: %(default)s)",
    )
    options = parser.parse_args()
    compilation.Inductor = Graphs
    for case in options.cases:
        name, batch_size, pixels = case.split(":")
        append_rows(RESULTS, measure(name, int(batch_size), int(pixels)))


if __name__ == "__main__":
    main()
