"""A step, augmentation and evaluation on a device that is not the host, for want of a GPU: torch's ``meta``.

Its tensors have shapes and no memory. An operator that is given a tensor of the host beside one of the device fails
there as it would on a GPU, and so does whoever asks for a number.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from nfnet_ray.data.augmentation.augment import augment
from nfnet_ray.data.batch import TrainBatch
from nfnet_ray.models import create_model
from nfnet_ray.recipe import DataRecipe, MixingRecipe, RandAugmentRecipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.agreement import EpochSums
from nfnet_ray.training.evaluation import Tally
from nfnet_ray.training.gradient import MEMORY_FORMATS
from nfnet_ray.training.step import TrainStep
from tests.training.test_captured import BASELINE
from tests.training.test_rates import CASES, STEPS, recipe_of

DEVICE = torch.device("meta")
IMAGES, PIXELS, CLASSES = 64, 16, 10


def batch_of(count: int) -> TrainBatch:
    def numbers() -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int64, device=DEVICE)

    return TrainBatch(
        images=torch.zeros(count, PIXELS, PIXELS, 3, dtype=torch.uint8, device=DEVICE),
        labels=numbers(),
        indices=np.arange(count),
        positions=np.arange(count),
        keys=numbers(),
        partner_labels=numbers(),
        label_share=torch.zeros(count, device=DEVICE),
    )


def context() -> PlainContext:
    return PlainContext(device=DEVICE, threads=1)


def test_a_tensor_of_the_host_is_noticed() -> None:
    on_device = torch.zeros(2, device=DEVICE)
    with pytest.raises(RuntimeError, match="device"):
        on_device + torch.zeros(2)
    with pytest.raises(RuntimeError, match="meta"):
        on_device.sum().item()


TRIED = ("AGC", "RMSProp", "ASAM", "LookSAM", "ESAM", "SAM by micro-batch")


@pytest.mark.parametrize(
    "values", [*(CASES[name] for name in TRIED), BASELINE], ids=[*TRIED, "timm's network"]
)
def test_a_step_stays_on_its_device(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: contextlib.nullcontext()
    )  # it knows no such device
    recipe = recipe_of(values)
    model = create_model(
        recipe.model.name,
        CLASSES,
        dropout=0.3,
        stochastic_depth=0.3,
        overrides=recipe.model.overrides.chosen(),
    ).train()
    model.to(DEVICE).to(memory_format=MEMORY_FORMATS[recipe.memory_format])
    step = TrainStep(model, recipe, context(), STEPS, rates_on_device=True)
    sums = EpochSums(context())
    for _ in range(2):  # of LookSAM, with an ascent and without
        sums.add(step.apply(batch_of(recipe.batch_size), step.set_rates()))
        step.number += 1
    # RMSProp's counter is on the host.
    assert {tensor.device for tensor in (*step.tensors(), *sums.tensors()) if tensor.ndim} == {DEVICE}


@pytest.mark.parametrize("autoaugment", [False, True], ids=["RandAugment", "AutoAugment"])
def test_augmentation_stays_on_its_device(autoaugment: bool) -> None:
    recipe = DataRecipe(
        image_size=PIXELS,
        crop="padded",
        autoaugment=autoaugment,
        randaugment=RandAugmentRecipe(4, 10.0),
        mixing=MixingRecipe(0.2, 1.0),
    )
    batch = batch_of(IMAGES)
    found = augment(batch, batch.positions, None, recipe, seed=0, epoch=0)
    assert {tensor.device for tensor in found if tensor is not None} == {DEVICE}


def test_the_counts_of_an_evaluation_stay_on_their_device() -> None:
    tally, batch = Tally(IMAGES, context()), batch_of(IMAGES)
    tally.add(torch.zeros(IMAGES, CLASSES, device=DEVICE), batch)
    assert tally._sums.device == tally._by_image.device == DEVICE
