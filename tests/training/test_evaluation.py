"""An evaluation of batches that do not fit the memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nfnet_ray.data.batch import Batch
from nfnet_ray.recipe import Recipe
from nfnet_ray.training import PlainContext
from nfnet_ray.training.evaluation import evaluate

IMAGES = 21


class Net(nn.Module):
    """Holds ``most`` images at once."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 4)
        self.most, self.error, self.seen = most, error, list[int]()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        self.seen.append(len(images_NCHW))
        if len(images_NCHW) > self.most:
            raise self.error
        logits: Tensor = self.classifier(images_NCHW.mean((2, 3)))
        return logits


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 8, 8, 3), dtype=torch.uint8, generator=generator)
    whole = Batch(images, torch.arange(IMAGES) % 4, np.arange(IMAGES))
    return [whole.part(slice(start, start + 8)) for start in range(0, IMAGES, 8)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.24 GiB"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
    ],
    ids=["torch's", "cuDNN's"],
)
def test_a_batch_that_does_not_fit_the_memory_is_evaluated_in_parts(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A step of a large network may have far fewer images than an evaluation has at once."""
    context, found = PlainContext(device=torch.device("cpu"), threads=1), []
    for most in (8, 3):
        torch.manual_seed(0)
        model = Net(most, error)
        found.append(evaluate(model, batches(), IMAGES, Recipe(), context))
    assert model.seen == [8, 4, *(4 * [2]), *(4 * [2]), 2, 2, 1]
    assert found[1].metrics == pytest.approx(found[0].metrics)
    assert found[1].images.correct.tolist() == found[0].images.correct.tolist()
    assert found[1].images.measured.all()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines[-1] == "evaluation: a batch does not fit the memory; 2 images at once from now on"
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("most", "error", "tries"),
    [(0, "CUDA out of memory", 4), (7, "no such kernel", 1)],
    ids=["one image", "another"],
)
def test_an_error_that_is_not_for_want_of_memory_is_raised(most: int, error: str, tries: int) -> None:
    """And one of memory, where not even one image fits."""
    model = Net(most, RuntimeError(error))
    with pytest.raises(RuntimeError, match=error):
        evaluate(model, batches(), IMAGES, Recipe(), PlainContext(device=torch.device("cpu"), threads=1))
    assert len(model.seen) == tries
