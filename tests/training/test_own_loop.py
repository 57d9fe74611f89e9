"""The training loop of nfnet_ray's parts in docs/how_to.md runs as it is printed, and trains as the platform does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from nfnet_ray.data.files.dataset import open_dataset
from nfnet_ray.models import create_model
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.step import TrainStep

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "how_to.md"


def test_a_loop_of_the_parts_trains_as_the_platform_does(few_digits: Path) -> None:
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    code = code.replace('"data/mine"', repr(str(few_digits))).replace('"schedule.epochs": 8', LESS)
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(code, found)

    recipe: Recipe = found["recipe"]
    torch.manual_seed(0)
    model = create_model("nfnet_pico", len(open_dataset(few_digits).class_names))
    step = TrainStep(model, recipe, PlainContext(threads=1), found["batches"].batches_per_epoch)
    for epoch in range(recipe.schedule.epochs):
        for batch in found["batches"].epoch(epoch):
            step(batch)
    assert found["step"] == step.number == 3
    for name, weight in found["model"].named_parameters():
        torch.testing.assert_close(weight, model.get_parameter(name), rtol=1e-3, atol=1e-5, msg=name)
    assert step.average is not None
    for name, weight in found["average"].model.named_parameters():
        expected = step.average.model.get_parameter(name)
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-5, msg=name)


# In the document the loss has no smoothing.
LESS = (
    '"schedule.epochs": 3, "schedule.warmup_epochs": 1, "loss.label_smoothing": 0.0, "data.train_share": 0.3'
)
