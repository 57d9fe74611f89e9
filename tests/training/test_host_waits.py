"""A step asks the device for nothing and brings it nothing, so that it can be captured as one CUDA graph.

On a CPU no step waits for a device. What would wait shows in its operators: a number read from a tensor, a tensor
made of Python numbers, or a result whose shape depends on values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import create_model
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.step import TrainStep

WAITING = {
    "aten::_local_scalar_dense",  # .item(), int(tensor), if tensor
    "aten::lift_fresh",  # torch.tensor([1, 2])
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
}
FIRST_STEPS = 2  # until the optimiser has its state and the counts are arranged


class Waits(TorchDispatchMode):
    """Notes the operators that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        is_by_mask = name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or is_by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    mode = Waits()
    with mode:
        yield mode.found


def test_what_waits_is_seen() -> None:
    with waits() as found:
        _ = torch.ones(3).sum().item()
        _ = torch.tensor([1.0, 2.0])
        _ = torch.arange(3)[torch.ones(3, dtype=torch.bool)]
    assert found == ["aten::_local_scalar_dense", "aten::lift_fresh", "aten::index"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer.agc.clip_factor": None},
        {"optimizer.sam.rho": 0.05, "optimizer.sam.ascent_share": 0.5},
        {"optimizer.sam.rho": 0.05, "optimizer.sam.method": "asam"},
        {"optimizer.sam.rho": 0.05, "optimizer.sam.method": "esam"},
        {"optimizer.sam.rho": 0.05, "optimizer.sam.perturbation": "micro_batch", "micro_batches": 2},
        {"micro_batches": 2},
    ],
    ids=["AGC", "without AGC", "SAM", "ASAM", "ESAM", "SAM by micro-batch", "accumulation"],
)
def test_a_step_never_waits_for_the_device(quick: Recipe, values: dict[str, object]) -> None:
    """In the form that it has on a GPU; its rates are brought there before it, from pinned memory."""
    recipe = quick.with_values({"batch_size": 8, **values})
    model = create_model(
        "nfnet_pico",
        10,
        dropout=recipe.model.dropout,
        stochastic_depth=recipe.model.stochastic_depth,
        overrides=recipe.model.overrides.chosen(),
    )
    context = PlainContext(device=torch.device("cpu"), threads=1)
    step = TrainStep(model, recipe, context, steps_per_epoch=5, rates_on_device=True)
    places = np.arange(8)
    batch = TrainBatch(
        torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8),
        torch.randint(0, 10, (8,)),
        places,
        places,
        torch.arange(8),
    )
    for _ in range(FIRST_STEPS):
        step(batch)
    rates = step.set_rates()
    with waits() as found:
        step.apply(batch, rates)
    assert found == []
