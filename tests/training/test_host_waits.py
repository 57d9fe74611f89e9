"""A step asks the device for nothing and brings it nothing, so that it can be captured as one CUDA graph.

On a CPU no step waits for a device. What would wait shows in its operators: a number read from a tensor, a tensor
made of Python numbers, or a result whose shape depends on values.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nfnet_ray.data.augmentation.augment import augment
from nfnet_ray.data.batch import Batch, TrainBatch, on_device, sent_to
from nfnet_ray.models import model_of
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe, Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.evaluation import Tally
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
def waits() -> Generator[list[str]]:
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
    model = model_of(recipe.model, 10)
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


@pytest.fixture
def no_tensor_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.tensor brings numbers to a device and waits; arrays go by ``on_device``, whose operator is the same."""

    def tensor(*given: object, **_options: object) -> torch.Tensor:
        raise AssertionError(f"torch.tensor{given} waits for the device")

    monkeypatch.setattr(torch, "tensor", tensor)


@pytest.mark.usefixtures("no_tensor_of_numbers")
@pytest.mark.parametrize("autoaugment", [False, True], ids=["RandAugment", "AutoAugment"])
def test_augmentation_never_waits_for_the_device(autoaugment: bool) -> None:
    """With every operation among the images."""
    recipe = DataRecipe(
        image_size=16,
        crop="padded",
        autoaugment=autoaugment,
        randaugment=RandAugmentRecipe(4, 10.0),
        mixing=MixingRecipe(0.2, 1.0),
    )
    places = np.arange(128)
    images = torch.randint(0, 256, (128, 16, 16, 3), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(128, dtype=torch.int64), places)
    with waits() as found:
        augment(batch, places, None, recipe, seed=0, epoch=0)
    assert set(found) <= {"aten::lift_fresh"}


@pytest.mark.usefixtures("no_tensor_of_numbers")
def test_the_counts_of_an_evaluation_never_wait_for_the_device() -> None:
    tally = Tally(4, PlainContext(device=torch.device("cpu"), threads=1))
    batch = Batch(torch.zeros(4, 2, 2, 3), torch.arange(4) % 3, np.arange(4))
    logits = torch.eye(3)[torch.arange(4).clamp(max=2)]
    with waits() as found:
        tally.add(logits, batch)
    assert set(found) <= {"aten::lift_fresh"}
    assert tally.result().metrics["validation_top1"] == 0.75


def test_what_goes_to_a_gpu_goes_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a copy from other memory the host waits."""
    calls: list[Any] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        calls.append("pinned")
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        calls.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.dtype == torch.uint8)
    on_device(np.arange(3), torch.device("cuda"))
    sent_to(torch.zeros(2, dtype=torch.uint8), torch.device("cuda"))
    sent_to(
        torch.zeros(2, device="meta"), torch.device("cuda")
    )  # what is on a device already cannot be pinned
    on_device(np.arange(3), torch.device("cpu"))
    assert calls == ["pinned", ("cuda", True), ("cuda", True), ("cuda", True), ("cpu", True)]
